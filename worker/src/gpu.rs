//! The GPU backend: the forward pass in kernels of our own, over any `GpuDevice`.
//!
//! Two modes, never in one group. The *exact* mode computes the canonical arithmetic itself, the definition in `arith/reference.rs`: what is promised of the
//! canonical backend holds here, for any plan, batch, chunking and history. On the host (`host_device`) its bits are those of
//! the CPU backend, and tests compare them; on a GPU that has to be seen, and until then its numerics id is its own.
//! The *fast* mode multiplies bf16 weights and activations with f32 sums in whatever order the matrix library takes, and attends
//! on tensor cores: it promises answers that are right within bf16's precision, and no bit. Between ranks it adds as the exact
//! mode does.
//!
//! All device work is started by the rank thread. A step waits for the device where the host needs something: sums, if other
//! ranks must add theirs and the devices cannot do so among themselves, poison, and what the sampler looks at.

pub mod attention;
#[cfg(feature = "cuda")]
pub mod cuda_device;
pub mod dense_weights;
pub mod device;
pub mod device_cells;
#[cfg(feature = "cuda")]
mod door;
#[cfg(not(feature = "cuda"))]
#[path = "gpu/closed_door.rs"]
mod door;
mod forward;
#[cfg(any(feature = "cuda", test))]
mod group_card;
mod head;
#[cfg(feature = "cuda-on-host")]
pub mod host_device;
pub mod kernel;
pub mod layer_tables;
pub mod packed_rows;
pub mod product;
pub mod step_memory;
pub mod step_rows;
pub mod table;
#[cfg(feature = "cuda-on-host")]
pub mod test_device;
#[cfg(all(test, feature = "cuda-on-host"))]
mod tests;
pub mod unit_weights;

pub use door::open;

use std::{sync::Arc, time::Instant};

use kvasir_kv::{BlockId, CellLayout, EpochSpec, KvHead, LoadReport, RankShare, UnitKind, UnitLayout};
use kvasir_model::{Checkpoint, ModelSpec, WeightMode};

use self::{
    attention::{AttentionShape, READERS_MAX, fits_tensor_cores},
    dense_weights::DenseWeights,
    device::GpuDevice,
    device_cells::DeviceCells,
    layer_tables::{ColumnsTable, LayerTables, dense_head_tables, dense_layer_tables, head_tables, layer_tables},
    step_memory::{StepMemory, Widths},
    step_rows::StepRows,
    table::{Place, Table, TableDraft},
    unit_weights::UnitWeights,
};
use crate::{
    arith::rope_frequencies,
    backend::{Backend, BackendError, ForwardOutput, Preload, Preloaded},
    collective::Collective,
    rank_books::WorkInput,
    sampler::UnitRows,
    weights::{RankWeights, Taken},
};

/// Of the kernels: threads of a block that each take one dimension.
const HEAD_DIM_MAX: u32 = 256;

/// What is promised, and how it is computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arithmetic {
    /// The canonical bits.
    Exact,
    /// bf16 with f32 sums; no promise about bits.
    Fast,
}

#[derive(Debug)]
enum Weights<B> {
    Exact(UnitWeights<B>),
    /// `None` before the first epoch.
    Fast(Option<DenseWeights<B>>),
}

#[derive(Debug)]
pub struct Gpu<D: GpuDevice> {
    // Buffers before the device that they are of.
    epoch: Option<EpochTables<D::Buffer>>,
    memory: Option<StepMemory<D::Buffer>>,
    weights: Weights<D::Buffer>,
    cells: DeviceCells<D::Buffer>,
    device: D,
    layout: UnitLayout,
    mode: WeightMode,
    /// What is on every rank: norms and biases. It holds no unit.
    replicated: RankWeights,
    vocab_units: Vec<UnitRows>,
    frequencies: Vec<f64>,
    eps: f32,
    rows: StepRows,
    reduce_us: u32,
    /// Whether this rank is the only one.
    alone: bool,
    /// Of this epoch: whether the devices add among themselves. `None` before the first step.
    joined: Option<bool>,
}

/// What an epoch's launches go by.
#[derive(Debug)]
struct EpochTables<B> {
    table: Table<B>,
    layers: Vec<LayerTables>,
    output_norm: Place,
    head: ColumnsTable,
    /// u32 `[vocab units + 1]`
    head_begins: Place,
    /// u64 `[heads]`
    slabs: Place,
    shape: AttentionShape,
    widths: Widths,
}

impl<D: GpuDevice> Gpu<D> {
    /// Nothing but the norms is loaded yet. Errors if the model's heads are beyond the kernels.
    pub fn new(
        device: D,
        arithmetic: Arithmetic,
        checkpoint: Arc<Checkpoint>,
        mode: WeightMode,
        cell: CellLayout,
    ) -> Result<Self, BackendError> {
        let spec = checkpoint.spec();
        check_heads(spec)?;
        let layout = checkpoint.unit_layout(mode).map_err(|error| BackendError::Load {
            what: "the model".to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Self {
            epoch: None,
            memory: None,
            weights: match arithmetic {
                Arithmetic::Exact => Weights::Exact(UnitWeights::default()),
                Arithmetic::Fast => Weights::Fast(None),
            },
            cells: DeviceCells::new(cell),
            device,
            layout,
            mode,
            frequencies: rope_frequencies(f64::from(spec.rope_theta), spec.rope_dim as usize, &spec.rope_divisors),
            eps: spec.rms_norm_eps,
            replicated: RankWeights::new(checkpoint, mode)?,
            vocab_units: Vec::new(),
            rows: StepRows::default(),
            reduce_us: 0,
            alone: true,
            joined: None,
        })
    }

    pub fn device(&mut self) -> &mut D {
        &mut self.device
    }

    /// Cells of a local head, in the order of `kv::CellLayout`.
    pub fn gather_cells(&mut self, head: usize, blocks: &[BlockId]) -> Result<Vec<u8>, BackendError> {
        Ok(self.cells.gather(&mut self.device, head, blocks)?)
    }

    /// Puts cells of a local head where [`Self::gather_cells`] would take them from.
    pub fn scatter_cells(&mut self, head: usize, blocks: &[BlockId], bytes: &[u8]) -> Result<(), BackendError> {
        Ok(self.cells.scatter(&mut self.device, head, blocks, bytes)?)
    }

    fn is_fast(&self) -> bool {
        matches!(self.weights, Weights::Fast(_))
    }

    /// Makes `share` what is held.
    fn take(&mut self, share: &RankShare) -> Result<Taken, BackendError> {
        let checkpoint = self.replicated.checkpoint();
        let (device, layout) = (&mut self.device, &self.layout);
        match &mut self.weights {
            Weights::Exact(weights) => weights.take(device, checkpoint, self.mode, layout, share),
            Weights::Fast(weights) => {
                let num_units = UnitKind::ALL
                    .into_iter()
                    .map(|kind| share.units(kind).len() as u32)
                    .sum();
                let (mut loaded, mut kept) = (0, num_units);
                if weights.as_ref().is_none_or(|weights| weights.share() != share) {
                    (loaded, kept) = (num_units, 0);
                    // Before the new ones come: both may not fit.
                    *weights = None;
                    *weights = Some(DenseWeights::load(device, checkpoint, layout, share)?);
                }
                let bytes = weights.as_ref().map_or(0, DenseWeights::bytes);
                Ok(Taken { loaded, kept, bytes })
            }
        }
    }

    fn hidden(&self) -> usize {
        self.layout.shape().hidden_size as usize
    }

    fn epoch_tables(&mut self, share: &RankShare) -> Result<EpochTables<D::Buffer>, BackendError> {
        let mut draft = TableDraft::default();
        let replicated = &self.replicated.replicated;
        let (layers, (head, head_begins)) = match &self.weights {
            Weights::Exact(weights) => (
                layer_tables(weights, replicated, &mut draft),
                head_tables(weights, &mut draft),
            ),
            Weights::Fast(weights) => {
                let weights = weights.as_ref().expect("loaded before");
                let units = self.vocab_units.iter().map(|unit| unit.rows);
                (
                    dense_layer_tables(weights, replicated, &mut draft),
                    dense_head_tables(weights, units, &mut draft),
                )
            }
        };
        let output_norm = draft.put(&self.replicated.output_norm);
        let slabs = draft.put(&self.cells.slab_addresses());
        let heads = self.layout.shape().heads;
        let shape = AttentionShape {
            head_dim: heads.head_dim() as usize,
            heads: share.num_kv_heads() as usize,
            group: heads.group_size() as usize,
            fast: self.is_fast() && fits_tensor_cores(self.cells.layout(), heads.group_size()),
        };
        Ok(EpochTables {
            widths: self.widths(&layers, &head),
            table: draft.upload(&mut self.device)?,
            layers,
            output_norm,
            head,
            head_begins,
            slabs,
            shape,
        })
    }

    fn widths(&self, layers: &[LayerTables], head: &ColumnsTable) -> Widths {
        let phases = || layers.iter().flat_map(|layer| [&layer.attention, &layer.ffn]);
        let columns = phases().map(|phase| phase.columns.rows as usize).max();
        let inner = phases().filter_map(|phase| Some(phase.partials?.cols as usize)).max();
        Widths {
            hidden: self.hidden(),
            columns: columns.unwrap_or(0),
            inner: inner.unwrap_or(0),
            vocab: head.rows as usize,
            vocab_units: self.vocab_units.len(),
            rope_pairs: self.frequencies.len(),
            halves: self.is_fast(),
        }
    }
}

fn check_heads(spec: &ModelSpec) -> Result<(), BackendError> {
    let group = spec.num_q_heads / spec.num_kv_heads;
    let reason = if group > READERS_MAX {
        format!("{group} query heads share a KV head; the GPU's kernels take up to {READERS_MAX}")
    } else if spec.head_dim > HEAD_DIM_MAX {
        format!(
            "heads have {} dimensions; the GPU's kernels take up to {HEAD_DIM_MAX}",
            spec.head_dim
        )
    } else {
        return Ok(());
    };
    Err(BackendError::Load {
        what: "the model".to_owned(),
        reason,
    })
}

impl<D: GpuDevice> Gpu<D> {
    /// Nothing of the epoch before is under way or pointed to any more.
    fn end_epoch(&mut self) -> Result<(), BackendError> {
        self.device.forget_graphs();
        self.device.synchronize()?;
        (self.epoch, self.memory, self.joined) = (None, None, None);
        Ok(())
    }

    /// The share's units are here, and there is room for its cells.
    fn take_up(&mut self, share: &RankShare, taken: &Taken, begun: Instant) -> Result<LoadReport, BackendError> {
        self.vocab_units = UnitRows::of(&self.layout, share);
        self.epoch = Some(self.epoch_tables(share)?);
        Ok(LoadReport {
            units_loaded: taken.loaded,
            units_kept: taken.kept,
            weight_bytes: taken.bytes,
            load_ms: begun.elapsed().as_millis() as u32,
        })
    }
}

impl<D: GpuDevice> Backend for Gpu<D> {
    fn layout(&self) -> &UnitLayout {
        &self.layout
    }

    fn begin_epoch(&mut self, spec: &EpochSpec) -> Result<LoadReport, BackendError> {
        let begun = Instant::now();
        let share = &spec.shares[spec.rank.0 as usize];
        self.end_epoch()?;
        let taken = self.take(share)?;
        self.cells
            .resize(&mut self.device, share.attention.clone(), spec.num_blocks)?;
        self.take_up(share, &taken, begun)
    }

    fn prepare_epoch(&mut self, spec: &EpochSpec) -> Result<(), BackendError> {
        let heads = spec.shares[spec.rank.0 as usize].attention.clone();
        Ok(self.cells.prepare(&mut self.device, heads, spec.num_blocks)?)
    }

    /// All device work is the rank thread's: units are loaded when the epoch begins.
    fn preload(&self, _: &EpochSpec) -> Option<Preload> {
        None
    }

    fn switch_epoch(
        &mut self,
        spec: &EpochSpec,
        _: Option<Preloaded>,
        _: &[BlockId],
    ) -> Result<LoadReport, BackendError> {
        let begun = Instant::now();
        let share = &spec.shares[spec.rank.0 as usize];
        self.end_epoch()?;
        let taken = self.take(share)?;
        self.cells
            .switch(&mut self.device, share.attention.clone(), spec.num_blocks)?;
        self.take_up(share, &taken, begun)
    }

    fn export_cell(&mut self, head: KvHead, block: BlockId, bytes: &mut [u8]) -> Result<(), BackendError> {
        let exported = self.cells.export(&mut self.device, head, block, bytes)?;
        exported.ok_or(BackendError::NoSuchCell { head, block })
    }

    fn import_cell(&mut self, head: KvHead, block: BlockId, bytes: &[u8]) -> Result<(), BackendError> {
        let imported = self.cells.import(&mut self.device, head, block, bytes)?;
        imported.ok_or(BackendError::NoSuchCell { head, block })
    }

    fn vocab_units(&self) -> &[UnitRows] {
        &self.vocab_units
    }

    fn held_bytes(&self, blocks: &[BlockId]) -> Option<u64> {
        Some(self.cells.held_bytes(blocks))
    }

    /// Its cells lie on a device; reading them back would cost more than it protects.
    fn checksums(&self, _: BlockId) -> Vec<u32> {
        Vec::new()
    }

    fn forward(
        &mut self,
        work: &[WorkInput],
        collective: &mut dyn Collective,
        output: &mut ForwardOutput,
    ) -> Result<(), BackendError> {
        output.poisoned.clear();
        output.clear_head(work);
        output.reduce_us = 0;
        // No grid is empty; every rank sees the same work.
        if work.is_empty() {
            return Ok(());
        }
        if self.joined.is_none() {
            self.joined = Some(collective.world_size() > 1 && self.device.join(collective)?);
        }
        self.alone = collective.world_size() == 1;
        self.begin_step(work)?;
        self.embed(work, collective)?;
        self.layers(collective)?;
        self.head(work, output)?;
        output.reduce_us = self.reduce_us;
        Ok(())
    }
}
