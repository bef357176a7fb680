//! A step's layers: the launches, in order.
//!
//! A phase begins with the kernel that ends the one before it: the sums go into the residual, which is normalized on the way.
//! Where all rows decode and no host has to add, the launches from the first layer to the last are captured once and repeated.

use std::time::Instant;

use kvasir_kv::TokenId;

use super::{
    EpochTables, Gpu,
    attention::row_places,
    device::{DeviceBuffer as _, Gemm, GemmDtype, GpuDevice, GraphKey, LaunchShape},
    kernel::{
        Arguments as _, EmbedRowsArgs, Int8Rows, Kernel, MatmulArgs, QuantizeArgs, ResidualNormArgs, SealSumsArgs,
        SiluGateArgs, WriteCellsArgs,
    },
    layer_tables::{ColumnsTable, ColumnsWeights, LayerTables, PartialsTable, PartialsWeights, Units},
    product::{Product, fast_product},
    step_memory::{Capacity, StepMemory, address_or_none},
    table::Place,
};
use crate::{backend::BackendError, collective::Collective, rank_books::WorkInput, weights::tensor};

/// Where the sums of the phase before are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sums {
    /// This rank's are all there are.
    Own,
    /// Added by the devices, in place, with poison.
    Reduced,
    /// Added by the host, in `reduced`, with poison.
    FromHost,
    /// In the residual already: the fast mode's products add there where no other rank has a part.
    Added,
}

/// Addresses of normalized rows, in the forms that products take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Normed {
    pub x: u64,
    pub halves: u64,
    pub int8: Int8Rows,
}

/// What is launched over and over: the device, and where things are.
pub(super) struct Launcher<'a, D: GpuDevice> {
    pub device: &'a mut D,
    pub epoch: &'a EpochTables<D::Buffer>,
    pub memory: &'a StepMemory<D::Buffer>,
    pub tokens: u32,
    pub hidden: u32,
    pub eps: f32,
    /// Whether no other rank has a part.
    pub alone: bool,
}

impl<D: GpuDevice> Gpu<D> {
    /// Rows, block tables and rotations go to the device; the residual begins with zeros.
    pub(super) fn begin_step(&mut self, work: &[WorkInput]) -> Result<(), BackendError> {
        let epoch = self.epoch.as_ref().expect("an epoch has begun");
        let blocks = work.iter().map(|work| work.blocks.len()).max().unwrap_or(1);
        let stride = self.memory.as_ref().map_or(0, |memory| memory.capacity.blocks);
        let stride = stride.max(blocks.next_power_of_two());
        let run_rows = epoch.shape.run_rows() as u32;
        self.rows.set(work, &self.frequencies, run_rows, stride as u32);
        let needed = Capacity {
            rows: self.rows.len(),
            blocks: stride,
            chunk_floats: epoch.shape.chunk_room(&self.rows),
        };
        StepMemory::reserve(&mut self.memory, &mut self.device, &epoch.widths, needed)?;
        let memory = self.memory.as_ref().expect("just reserved");
        let rows = &self.rows;
        let uploads: [(&D::Buffer, &[u8]); 6] = [
            (&memory.positions, bytemuck::cast_slice(&rows.positions)),
            (&memory.sequences, bytemuck::cast_slice(&rows.sequences)),
            (&memory.rotations, bytemuck::cast_slice(&rows.rotations)),
            (&memory.tables, bytemuck::cast_slice(&rows.tables)),
            (&memory.singles, bytemuck::cast_slice(&rows.singles)),
            (&memory.runs, bytemuck::cast_slice(&rows.runs)),
        ];
        for (target, bytes) in uploads {
            if !bytes.is_empty() {
                self.device.upload(bytes, target, 0)?;
            }
        }
        let hidden = self.layout.shape().hidden_size as usize;
        self.device.clear(&memory.x, 0, 4 * hidden * rows.len())?;
        self.device.clear(&memory.poison, 0, 4 * rows.len())?;
        self.reduce_us = 0;
        Ok(())
    }

    /// Each token's embedding row, from the rank that owns it, to the sums. The table stays in the file: a step reads one row
    /// per token of it.
    pub(super) fn embed(&mut self, work: &[WorkInput], collective: &mut dyn Collective) -> Result<(), BackendError> {
        let hidden = self.hidden();
        let mut rows = vec![0.0f32; hidden * self.rows.len()];
        let checkpoint = self.replicated.checkpoint();
        let table = tensor(checkpoint, &checkpoint.tensors().token_embedding)?;
        let tokens = work.iter().flat_map(|work| &work.tokens);
        for (token, row) in tokens.zip(rows.chunks_exact_mut(hidden)) {
            if self.owns(*token) {
                table.dequantize_row(token.0 as usize, row);
            }
        }
        let mut launcher = self.launcher();
        let embedded = &launcher.memory.embedded;
        launcher.device.upload(bytemuck::cast_slice(&rows), embedded, 0)?;
        launcher.rows_to_sums()?;
        let sums = self.reduce_integers(collective)?;
        self.launcher().residual(sums, None, None, false)
    }

    fn owns(&self, token: TokenId) -> bool {
        let mut units = self.vocab_units.iter();
        units.any(|unit| (unit.first..unit.first + unit.rows).contains(&token.0))
    }

    pub(super) fn launcher(&mut self) -> Launcher<'_, D> {
        Launcher {
            device: &mut self.device,
            epoch: self.epoch.as_ref().expect("an epoch has begun"),
            memory: self.memory.as_ref().expect("a step has begun"),
            tokens: self.rows.len() as u32,
            hidden: self.layout.shape().hidden_size,
            eps: self.eps,
            alone: self.alone,
        }
    }

    pub(super) fn layers(&mut self, collective: &mut dyn Collective) -> Result<(), BackendError> {
        let on_device = collective.world_size() == 1 || self.joined == Some(true);
        if !on_device || !self.rows.all_decode() {
            return self.launch_layers(collective);
        }
        let key = GraphKey {
            tokens: self.rows.len() as u32,
            chunks: self.rows.num_chunks,
        };
        if self.device.replay(key)? {
            return Ok(());
        }
        let captures = self.device.begin_capture()?;
        self.launch_layers(collective)?;
        if captures {
            self.device.end_capture(key)?;
        }
        Ok(())
    }

    fn launch_layers(&mut self, collective: &mut dyn Collective) -> Result<(), BackendError> {
        // The embedding's sums are in the residual already.
        let mut before = None;
        for layer in 0..self.layout.shape().num_layers as usize {
            self.attention(layer, before)?;
            let sums = self.reduce(collective)?;
            self.ffn(layer, sums)?;
            before = Some(self.reduce(collective)?);
        }
        let last = self.epoch().layers.last().map(|layer| layer.ffn.end_bias);
        match before {
            Some(sums) => self.launcher().residual(sums, last.flatten(), None, false),
            None => Ok(()),
        }
    }

    fn epoch(&self) -> &EpochTables<D::Buffer> {
        self.epoch.as_ref().expect("an epoch has begun")
    }

    /// From the residual, after the sums of the layer before, to this phase's sums.
    fn attention(&mut self, layer: usize, before: Option<Sums>) -> Result<(), BackendError> {
        let bias = layer
            .checked_sub(1)
            .and_then(|before| self.epoch().layers[before].ffn.end_bias);
        let cells = self
            .cells
            .places(self.epoch().table.address(self.epoch().slabs), layer as u32);
        let rope_dim = 2 * self.frequencies.len() as u32;
        let launcher = Launcher {
            device: &mut self.device,
            epoch: self.epoch.as_ref().expect("an epoch has begun"),
            memory: self.memory.as_ref().expect("a step has begun"),
            tokens: self.rows.len() as u32,
            hidden: self.layout.shape().hidden_size,
            eps: self.eps,
            alone: self.alone,
        };
        let (epoch, memory, tokens) = (launcher.epoch, launcher.memory, launcher.tokens);
        let tables = &epoch.layers[layer];
        let mut launcher = launcher;
        launcher.begin_phase(before, bias, tables.attention.norm, &tables.attention.columns)?;
        let Some(partials) = tables.attention.partials else {
            return Ok(());
        };
        let shape = epoch.shape;
        let args = WriteCellsArgs {
            columns: memory.columns.address(),
            biases: epoch.table.address_or_none(tables.attention.biases),
            q_norm: epoch.table.address_or_none(tables.q_norm),
            k_norm: epoch.table.address_or_none(tables.k_norm),
            rotations: memory.rotations.address(),
            poison: memory.poison.address(),
            cells,
            rows: row_places(memory, &self.rows),
            group: shape.group as u32,
            rope_dim,
            eps: self.eps,
            heads: shape.heads as u32,
        };
        let vectors = (shape.heads * (shape.group + 2)) as u32;
        let launch = LaunchShape::new([vectors, tokens, 1], 32).shared(4 * shape.head_dim);
        args.launch(launcher.device, Kernel::WriteCells, launch)?;
        shape.launch(launcher.device, memory, &self.rows, cells)?;
        launcher.quantize_inner(&partials)?;
        launcher.partials(&partials)
    }

    fn ffn(&mut self, layer: usize, before: Sums) -> Result<(), BackendError> {
        let mut launcher = self.launcher();
        let tables: &LayerTables = &launcher.epoch.layers[layer];
        let end_bias = tables.attention.end_bias;
        launcher.begin_phase(Some(before), end_bias, tables.ffn.norm, &tables.ffn.columns)?;
        let Some(partials) = tables.ffn.partials else {
            return Ok(());
        };
        let memory = launcher.memory;
        let args = SiluGateArgs {
            columns: memory.columns.address(),
            biases: launcher.epoch.table.address_or_none(tables.ffn.biases),
            inner: memory.inner.address(),
            halves: address_or_none(&memory.inner_halves),
            int8: memory.inner_int8.rows_if(partials.wants_int8()),
            poison: memory.poison.address(),
            cols: partials.cols,
            padding: 0,
        };
        let shape = launcher.elementwise(partials.cols);
        args.launch(launcher.device, Kernel::SiluGate, shape)?;
        launcher.partials(&partials)
    }

    /// Of a phase, over all ranks.
    fn reduce(&mut self, collective: &mut dyn Collective) -> Result<Sums, BackendError> {
        if self.is_fast() && self.alone {
            return Ok(Sums::Added);
        }
        self.reduce_integers(collective)
    }

    fn reduce_integers(&mut self, collective: &mut dyn Collective) -> Result<Sums, BackendError> {
        if collective.world_size() == 1 {
            return Ok(Sums::Own);
        }
        let begun = Instant::now();
        let launcher = self.launcher();
        let (memory, tokens) = (launcher.memory, launcher.tokens);
        let values = (launcher.hidden * tokens) as usize;
        let args = SealSumsArgs {
            poison: memory.poison.address(),
            tail: memory.sums.address() + 8 * values as u64,
            tokens,
            padding: 0,
        };
        let shape = LaunchShape::new([tokens.div_ceil(256), 1, 1], 256);
        args.launch(launcher.device, Kernel::SealSums, shape)?;
        let len = values + tokens as usize;
        let sums = if launcher.device.all_reduce(&memory.sums, len)? {
            Sums::Reduced
        } else {
            let mut sums = vec![0i64; len];
            let mut reduced = vec![0.0f32; len];
            let device = launcher.device;
            device.download(&memory.sums, 0, bytemuck::cast_slice_mut(&mut sums))?;
            device.clear(&memory.sums, 0, 8 * len)?;
            collective.all_reduce(&sums, &mut reduced)?;
            device.upload(bytemuck::cast_slice(&reduced), &memory.reduced, 0)?;
            Sums::FromHost
        };
        self.reduce_us = self.reduce_us.saturating_add(begun.elapsed().as_micros() as u32);
        Ok(sums)
    }
}

impl<D: GpuDevice> Launcher<'_, D> {
    /// The sums of the phase before go into the residual; it is normalized and multiplied.
    fn begin_phase(
        &mut self,
        before: Option<Sums>,
        bias: Option<Place>,
        norm: Place,
        columns: &ColumnsTable,
    ) -> Result<(), BackendError> {
        match before {
            Some(sums) => self.residual(sums, bias, Some(norm), columns.wants_int8())?,
            None => self.norm_only(norm, columns.wants_int8())?,
        }
        self.columns(columns)
    }

    /// `x += sums + bias`, then the norm if there is one.
    pub fn residual(
        &mut self,
        sums: Sums,
        bias: Option<Place>,
        norm: Option<Place>,
        wants_int8: bool,
    ) -> Result<(), BackendError> {
        let memory = self.memory;
        let args = ResidualNormArgs {
            sums: match sums {
                Sums::Own | Sums::Reduced => memory.sums.address(),
                Sums::FromHost | Sums::Added => 0,
            },
            reduced: match sums {
                Sums::FromHost => memory.reduced.address(),
                Sums::Own | Sums::Reduced | Sums::Added => 0,
            },
            bias: self.epoch.table.address_or_none(bias),
            weight: self.epoch.table.address_or_none(norm),
            sealed: u32::from(sums == Sums::Reduced),
            ..self.norm_args(wants_int8)
        };
        self.launch_norm(&args)
    }

    fn norm_only(&mut self, norm: Place, wants_int8: bool) -> Result<(), BackendError> {
        let args = ResidualNormArgs {
            weight: self.epoch.table.address(norm),
            ..self.norm_args(wants_int8)
        };
        self.launch_norm(&args)
    }

    fn norm_args(&self, wants_int8: bool) -> ResidualNormArgs {
        ResidualNormArgs {
            x: self.memory.x.address(),
            normed: self.memory.normed.address(),
            halves: address_or_none(&self.memory.normed_halves),
            int8: self.memory.normed_int8.rows_if(wants_int8),
            poison: self.memory.poison.address(),
            cols: self.hidden,
            eps: self.eps,
            ..ResidualNormArgs::default()
        }
    }

    fn launch_norm(&mut self, args: &ResidualNormArgs) -> Result<(), BackendError> {
        let shape = LaunchShape::new([self.tokens, 1, 1], 256).shared(4 * (self.hidden as usize + 1));
        Ok(args.launch(self.device, Kernel::ResidualNorm, shape)?)
    }

    fn columns(&mut self, columns: &ColumnsTable) -> Result<(), BackendError> {
        let memory = self.memory;
        let input = Normed {
            x: memory.normed.address(),
            halves: address_or_none(&memory.normed_halves),
            int8: memory.normed_int8.rows_if(columns.wants_int8()),
        };
        self.multiply(columns, input, memory.columns.address(), memory.poison.address())
    }

    /// out: f32 `[tokens][columns.rows]`
    pub fn multiply(
        &mut self,
        columns: &ColumnsTable,
        input: Normed,
        out: u64,
        poison: u64,
    ) -> Result<(), BackendError> {
        let launches = match &columns.weights {
            ColumnsWeights::Packed(launches) => launches,
            ColumnsWeights::Dense(weights) => {
                let gemm = Gemm {
                    x: input.halves,
                    weights: *weights,
                    out,
                    rows: columns.rows,
                    cols: self.hidden,
                    out_stride: columns.rows,
                    ..self.gemm()
                };
                return Ok(fast_product(self.device, &gemm)?);
            }
        };
        for groups in launches {
            let args = MatmulArgs {
                pieces: self.epoch.table.address(groups.groups),
                num_row_groups: groups.count,
                num_units: 1,
                unit_sub_blocks: self.hidden / 32,
                last_sub_blocks: self.hidden / 32,
                cols: self.hidden,
                out_stride: columns.rows,
                x: input.x,
                int8: input.int8,
                out,
                poison,
                tokens: self.tokens,
                padding: 0,
            };
            Product::Columns.launch(self.device, groups.kind, &args)?;
        }
        Ok(())
    }

    fn elementwise(&self, cols: u32) -> LaunchShape {
        LaunchShape::new([cols.div_ceil(256), self.tokens, 1], 256)
    }

    fn quantize_inner(&mut self, partials: &PartialsTable) -> Result<(), BackendError> {
        if !partials.wants_int8() {
            return Ok(());
        }
        let args = QuantizeArgs {
            x: self.memory.inner.address(),
            int8: self.inner_int8(partials),
            poison: self.memory.poison.address(),
            cols: partials.cols,
            padding: 0,
        };
        let shape = self.elementwise(partials.cols);
        Ok(args.launch(self.device, Kernel::Quantize, shape)?)
    }

    fn inner_int8(&self, partials: &PartialsTable) -> Int8Rows {
        self.memory.inner_int8.rows_if(partials.wants_int8())
    }

    /// `inner` times each unit's columns, rounded and added in the sums; or, in the fast mode, all columns at once.
    fn partials(&mut self, partials: &PartialsTable) -> Result<(), BackendError> {
        match &partials.weights {
            PartialsWeights::Packed(units) => self.unit_partials(partials, units),
            PartialsWeights::Dense(weights) => self.dense_partials(partials, *weights),
        }
    }

    fn gemm(&self) -> Gemm {
        Gemm {
            dtype: GemmDtype::BF16,
            x: 0,
            weights: 0,
            out: 0,
            tokens: self.tokens,
            rows: 0,
            cols: 0,
            out_stride: 0,
            accumulate: false,
        }
    }

    /// Straight into the residual, or, where other ranks have a part, rounded into the sums.
    fn dense_partials(&mut self, partials: &PartialsTable, weights: u64) -> Result<(), BackendError> {
        let memory = self.memory;
        let target = if self.alone { &memory.x } else { &memory.embedded };
        let gemm = Gemm {
            x: address_or_none(&memory.inner_halves),
            weights,
            out: target.address(),
            rows: self.hidden,
            cols: partials.cols,
            out_stride: self.hidden,
            accumulate: self.alone,
            ..self.gemm()
        };
        fast_product(self.device, &gemm)?;
        match self.alone {
            true => Ok(()),
            false => self.rows_to_sums(),
        }
    }

    /// Rows in `embedded` become integers.
    pub fn rows_to_sums(&mut self) -> Result<(), BackendError> {
        let memory = self.memory;
        let args = EmbedRowsArgs {
            rows: memory.embedded.address(),
            sums: memory.sums.address(),
            poison: memory.poison.address(),
            cols: self.hidden,
            padding: 0,
        };
        let shape = LaunchShape::new([self.tokens, 1, 1], 256);
        Ok(args.launch(self.device, Kernel::EmbedRows, shape)?)
    }

    fn unit_partials(&mut self, partials: &PartialsTable, units: &Units) -> Result<(), BackendError> {
        let args = MatmulArgs {
            pieces: self.epoch.table.address(units.units),
            x: self.memory.inner.address(),
            int8: self.inner_int8(partials),
            out: self.memory.sums.address(),
            poison: self.memory.poison.address(),
            num_row_groups: self.hidden / 16,
            num_units: units.count,
            unit_sub_blocks: units.unit_cols / 32,
            last_sub_blocks: units.last_cols / 32,
            cols: partials.cols,
            tokens: self.tokens,
            out_stride: self.hidden,
            padding: 0,
        };
        Ok(Product::Partials.launch(self.device, units.kind, &args)?)
    }
}
