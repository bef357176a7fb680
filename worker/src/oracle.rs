//! The candle backend: the same forward pass in plain f32 tensor operations, written a second time.
//!
//! It is the oracle of parity tests and the way to other devices, so it shares no arithmetic with [`crate::arith`]:
//! what both backends have in common is the checkpoint, the cut into units, and the exact reduce between ranks.
//! Weights become f32 tensors whatever their type in the file; K and V are rounded to the cells' dtype.
//!
//! Not here: speed, and the canonical backend's promise. The bits are candle's own and may change with the batch and
//! the device. Threads, too, are candle's: one pool for the process, of `RAYON_NUM_THREADS`.

mod attention;
mod cell_tensors;
mod partial_sums;
mod rank_tensors;
mod rotation;
mod summary;

use std::{sync::Arc, time::Instant};

use candle_core::{D, Device, Tensor};
use kvasir_kv::{BlockId, CellLayout, EpochSpec, KvHead, LoadReport, UnitLayout};
use kvasir_model::{Checkpoint, WeightMode};

use self::{
    attention::{SequenceRows, attend},
    cell_tensors::CellTensors,
    partial_sums::PartialSums,
    rank_tensors::RankTensors,
    rotation::{Rotation, RotationSpec},
    summary::summarize,
};
use crate::{
    arith::UnitSummary,
    backend::{Backend, BackendError, ForwardOutput, HEAD_ROWS_MAX, Preload, Preloaded, head_rows},
    collective::Collective,
    rank_books::WorkInput,
    sampler::UnitRows,
};

#[derive(Debug)]
pub struct Oracle {
    device: Device,
    layout: UnitLayout,
    weights: RankTensors,
    cells: CellTensors,
    vocab_units: Vec<UnitRows>,
    rotation: RotationSpec,
    eps: f64,
}

/// What all layers of a step have in common.
struct Step<'a> {
    sequences: Vec<SequenceRows<'a>>,
    rotation: Rotation,
}

impl Oracle {
    /// Nothing but the norms is loaded yet. `mode` decides what plans count as a unit's bytes, not how it computes.
    pub fn new(checkpoint: Arc<Checkpoint>, mode: WeightMode, cell: CellLayout) -> Result<Self, BackendError> {
        let device = Device::Cpu;
        let layout = checkpoint.unit_layout(mode).map_err(|error| BackendError::Load {
            what: "the model".to_owned(),
            reason: error.to_string(),
        })?;
        let spec = checkpoint.spec();
        Ok(Self {
            layout,
            cells: CellTensors::new(cell, device.clone()),
            vocab_units: Vec::new(),
            rotation: RotationSpec {
                theta: f64::from(spec.rope_theta),
                dim: spec.rope_dim as usize,
                pairs: spec.rope_pairs,
                divisors: spec.rope_divisors.clone(),
            },
            eps: f64::from(spec.rms_norm_eps),
            weights: RankTensors::new(checkpoint, device.clone())?,
            device,
        })
    }

    fn step<'a>(&self, work: &'a [WorkInput]) -> Result<Step<'a>, BackendError> {
        let positions = work.iter().flat_map(|work| work.start..work.end());
        Ok(Step {
            rotation: Rotation::new(positions, &self.rotation, &self.device)?,
            sequences: SequenceRows::of(work, &self.device)?,
        })
    }

    /// The embedding rows of the tokens whose vocab unit is here.
    fn embed(&self, work: &[WorkInput], sums: &mut PartialSums) -> Result<(), BackendError> {
        let tokens = work.iter().flat_map(|work| &work.tokens);
        for (row, token) in tokens.enumerate() {
            let owns = |unit: &UnitRows| (unit.first..unit.first + unit.rows).contains(&token.0);
            if self.vocab_units.iter().any(owns) {
                sums.add_row(row, &self.weights.embedding_row(*token)?);
            }
        }
        Ok(())
    }

    /// x: `[tokens, hidden]`. Adds the output projection of each local KV head.
    fn attention(
        &mut self,
        layer: usize,
        step: &Step<'_>,
        x: &Tensor,
        sums: &mut PartialSums,
    ) -> Result<(), BackendError> {
        let replicated = &self.weights.replicated[layer];
        let normed = rms_norm(x, &replicated.attention_norm, self.eps)?;
        let [q_norm, k_norm] = &replicated.qk_norms;
        let heads = self.layout.shape().heads;
        let shape = (x.dim(0)?, (), heads.head_dim() as usize);
        for (&head, layers) in &self.weights.attention {
            let weights = &layers[layer];
            let [q_bias, k_bias, v_bias] = &weights.biases;
            let rotated = |weight: &Tensor, bias: &Option<Tensor>, norm: &Option<Tensor>| {
                let heads = project_and_add(&normed, weight, bias)?.reshape(shape)?;
                step.rotation.rotate(&match norm {
                    Some(norm) => rms_norm(&heads, norm, self.eps)?,
                    None => heads,
                })
            };
            let q = rotated(&weights.wq, q_bias, q_norm)?;
            let k = rotated(&weights.wk, k_bias, k_norm)?;
            let v = project_and_add(&normed, &weights.wv, v_bias)?;
            let mut cells = self.cells.of_head(head, layer);
            let attended = attend(&step.sequences, &q, &k.squeeze(1)?, &v, &mut cells)?;
            sums.add(&project(&attended, &weights.wo)?)?;
        }
        Ok(())
    }

    /// x: `[tokens, hidden]`. Adds the down projection of each local FFN unit.
    fn ffn(&self, layer: usize, x: &Tensor, sums: &mut PartialSums) -> Result<(), BackendError> {
        let normed = rms_norm(x, &self.weights.replicated[layer].ffn_norm, self.eps)?;
        for layers in self.weights.ffn.values() {
            let weights = &layers[layer];
            let [gate_bias, up_bias] = &weights.biases;
            let gate = project_and_add(&normed, &weights.gate, gate_bias)?.silu()?;
            let inner = (gate * project_and_add(&normed, &weights.up, up_bias)?)?;
            sums.add(&project(&inner, &weights.down)?)?;
        }
        Ok(())
    }

    /// x: `[tokens, hidden]`. Logits of the rows that are sampled or scored, for the local vocab units, so many rows at a
    /// time.
    fn head(&self, work: &[WorkInput], x: &Tensor, output: &mut ForwardOutput) -> Result<(), BackendError> {
        output.clear_head(work);
        for rows in head_rows(work).chunks(HEAD_ROWS_MAX) {
            let at = rows.iter().map(|head| head.row as u32).collect();
            let at = Tensor::from_vec(at, rows.len(), &self.device)?;
            let normed = rms_norm(&x.index_select(&at, 0)?, &self.weights.output_norm, self.eps)?;
            let mut units = Vec::new();
            for weight in self.weights.vocab.values() {
                units.push(project(&normed, weight)?.to_vec2::<f32>()?);
            }
            for (at, row) in rows.iter().enumerate() {
                let summaries: Vec<UnitSummary> = units.iter().map(|unit| summarize(&unit[at])).collect();
                let logits = |logits: &mut Vec<f32>| logits.extend(units.iter().flat_map(|unit| &unit[at]));
                output.take_head_row(row, &work[row.work], &self.vocab_units, &summaries, logits);
            }
        }
        Ok(())
    }
}

/// x: `[tokens, columns]`, weight: `[rows, columns]` -> `[tokens, rows]`
fn project(x: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
    x.matmul(&weight.t()?)
}

/// As `project`, plus bias: `[rows]`.
fn project_and_add(x: &Tensor, weight: &Tensor, bias: &Option<Tensor>) -> candle_core::Result<Tensor> {
    let y = project(x, weight)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

/// A phase's sum over all ranks, and its bias, which is no rank's.
fn add_to_residual(x: &Tensor, reduced: &Tensor, bias: &Option<Tensor>) -> candle_core::Result<Tensor> {
    let x = (x + reduced)?;
    match bias {
        Some(bias) => x.broadcast_add(bias),
        None => Ok(x),
    }
}

/// x: `[.., columns]`, weight: `[columns]`
fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> candle_core::Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean_square + eps)?.sqrt()?)?.broadcast_mul(weight)
}

impl From<candle_core::Error> for BackendError {
    fn from(error: candle_core::Error) -> Self {
        let reason = error.to_string();
        Self::Device {
            backend: "candle",
            reason,
        }
    }
}

impl Backend for Oracle {
    fn layout(&self) -> &UnitLayout {
        &self.layout
    }

    fn begin_epoch(&mut self, spec: &EpochSpec) -> Result<LoadReport, BackendError> {
        let begun = Instant::now();
        let share = &spec.shares[spec.rank.0 as usize];
        let taken = self.weights.take(&self.layout, share)?;
        self.cells.clear();
        self.vocab_units = UnitRows::of(&self.layout, share);
        Ok(LoadReport {
            units_loaded: taken.loaded,
            units_kept: taken.kept,
            weight_bytes: taken.bytes,
            load_ms: begun.elapsed().as_millis() as u32,
        })
    }

    fn prepare_epoch(&mut self, _: &EpochSpec) -> Result<(), BackendError> {
        Ok(())
    }

    fn preload(&self, _: &EpochSpec) -> Option<Preload> {
        None
    }

    /// Cells are tensors by head and block: those that came ahead lie beside the others.
    fn switch_epoch(
        &mut self,
        spec: &EpochSpec,
        _: Option<Preloaded>,
        held: &[BlockId],
    ) -> Result<LoadReport, BackendError> {
        let cells = self
            .cells
            .take(spec.shares[spec.rank.0 as usize].attention.clone(), held);
        let report = self.begin_epoch(spec)?;
        self.cells.put_back(cells);
        Ok(report)
    }

    fn vocab_units(&self) -> &[UnitRows] {
        &self.vocab_units
    }

    /// Its cells may lie on a device; reading them back would cost more than it protects.
    fn held_bytes(&self, _: &[BlockId]) -> Option<u64> {
        None
    }

    fn checksums(&self, _: BlockId) -> Vec<u32> {
        Vec::new()
    }

    fn export_cell(&mut self, head: KvHead, block: BlockId, bytes: &mut [u8]) -> Result<(), BackendError> {
        self.cells.export(head, block, bytes)
    }

    fn import_cell(&mut self, head: KvHead, block: BlockId, bytes: &[u8]) -> Result<(), BackendError> {
        self.cells.import(head, block, bytes)
    }

    fn forward(
        &mut self,
        work: &[WorkInput],
        collective: &mut dyn Collective,
        output: &mut ForwardOutput,
    ) -> Result<(), BackendError> {
        *output = ForwardOutput::default();
        // candle has no tensors without rows; every rank sees the same work.
        if work.is_empty() {
            return Ok(());
        }
        let step = self.step(work)?;
        let tokens = work.iter().map(|work| work.tokens.len()).sum();
        let mut sums = PartialSums::new(tokens, self.layout.shape().hidden_size as usize);
        self.embed(work, &mut sums)?;
        let mut x = sums.reduce(collective, &self.device)?;
        for layer in 0..self.layout.shape().num_layers as usize {
            self.attention(layer, &step, &x, &mut sums)?;
            let replicated = &self.weights.replicated[layer];
            x = add_to_residual(&x, &sums.reduce(collective, &self.device)?, &replicated.attention_bias)?;
            self.ffn(layer, &x, &mut sums)?;
            x = add_to_residual(&x, &sums.reduce(collective, &self.device)?, &replicated.ffn_bias)?;
        }
        self.head(work, &x, output)?;
        let sequences = step.sequences.iter();
        output.poisoned = sequences.map(|sequence| sums.is_poisoned(&sequence.rows)).collect();
        output.reduce_us = sums.reduce_us();
        Ok(())
    }
}
