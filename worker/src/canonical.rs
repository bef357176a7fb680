//! The canonical backend: the forward pass whose bits do not depend on the plan, the batch or the history.
//!
//! A layer is two phases, attention and FFN, and each ends in an exact all-reduce of unit partials. Between them the
//! residual is replicated: every rank adds the same reduced values in the same order. Poison (a value out of range)
//! travels as one more element per token at the end of each reduce.

mod attention;
mod by_units;
mod inputs;
mod phases;
mod products;

use std::{sync::Arc, time::Instant};

use kvasir_kv::{BlockId, CellLayout, EpochSpec, KvHead, LoadReport, RankShare, UnitLayout};
use kvasir_model::{Checkpoint, WeightMode};

use self::{
    inputs::{InputBuffers, Inputs},
    phases::PhaseBuffers,
};
use crate::{
    arith::{Kernels, LANES, Normed, PackedMatrix, RopeTable, UnitSummary, panels, rope_frequencies},
    backend::{Backend, BackendError, ForwardOutput, HEAD_ROWS_MAX, HeadRow, Preload, Preloaded, head_rows},
    cells::Cells,
    collective::Collective,
    rank_books::WorkInput,
    sampler::UnitRows,
    threads::ThreadTeam,
    weights::{AttentionLayer, FfnLayer, RankWeights, Taken},
};

/// One in the fixed-point format of the reduce.
const FIXED_ONE: i64 = 1 << 30;

#[derive(Debug)]
pub struct Canonical {
    kernels: Kernels,
    team: ThreadTeam,
    layout: UnitLayout,
    weights: RankWeights,
    cells: Cells,
    vocab_units: Vec<UnitRows>,
    rope: RopeTable,
    eps: f32,
    step: StepBuffers,
}

/// What a reduce ends.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Embedding,
    Attention(usize),
    Ffn(usize),
}

/// What a step computes in; kept from step to step.
#[derive(Debug, Default)]
struct StepBuffers {
    /// Rows of the step.
    tokens: usize,
    /// Per row.
    positions: Vec<u32>,
    poison: Vec<bool>,
    /// The residual, `[hidden / 16][tokens]`[16].
    x: Vec<f32>,
    /// Of each row, from its norm.
    scales: Vec<f32>,
    normed: InputBuffers,
    /// Of all units of the rank.
    whole: PhaseBuffers,
    /// Of the units of each thread.
    members: Vec<by_units::Member>,
    reduced: Vec<f32>,
    reduce_us: u32,
    attend_ns: u64,
}

impl Canonical {
    /// Nothing is loaded yet. Errors if a tensor cannot be read or the system gives no thread.
    pub fn new(
        checkpoint: Arc<Checkpoint>,
        mode: WeightMode,
        cell: CellLayout,
        threads: usize,
    ) -> Result<Self, BackendError> {
        let load = |reason: String| BackendError::Load {
            what: "the model".to_owned(),
            reason,
        };
        let layout = checkpoint.unit_layout(mode).map_err(|error| load(error.to_string()))?;
        let spec = checkpoint.spec();
        let frequencies = rope_frequencies(f64::from(spec.rope_theta), spec.rope_dim as usize, &spec.rope_divisors);
        Ok(Self {
            kernels: Kernels::best(),
            team: ThreadTeam::new(threads).map_err(|error| load(error.to_string()))?,
            eps: spec.rms_norm_eps,
            weights: RankWeights::new(checkpoint, mode)?,
            layout,
            cells: Cells::new(cell),
            vocab_units: Vec::new(),
            rope: RopeTable::new(frequencies),
            step: StepBuffers::default(),
        })
    }

    /// Uses these kernels instead of the fastest ones. The results are the same.
    pub fn with_kernels(mut self, kernels: Kernels) -> Self {
        self.kernels = kernels;
        self
    }

    /// Slabs of cells get an address space of so many bytes; see [`Cells::with_reserve`].
    pub fn with_cell_reserve(mut self, bytes: u64) -> Self {
        self.cells = Cells::new(*self.cells.layout()).with_reserve(bytes);
        self
    }

    /// The share's units are here, and there is room for its cells.
    fn take_up(&mut self, share: &RankShare, taken: Taken, begun: Instant) -> LoadReport {
        self.vocab_units = UnitRows::of(&self.layout, share);
        LoadReport {
            units_loaded: taken.loaded,
            units_kept: taken.kept,
            weight_bytes: taken.bytes,
            load_ms: begun.elapsed().as_millis() as u32,
        }
    }

    fn hidden(&self) -> usize {
        self.layout.shape().hidden_size as usize
    }

    fn begin_step(&mut self, work: &[WorkInput]) {
        let positions = work.iter().flat_map(|work| work.start..work.end());
        let step = &mut self.step;
        step.positions.clear();
        step.positions.extend(positions);
        step.tokens = step.positions.len();
        step.poison.clear();
        step.poison.resize(step.tokens, false);
        step.x.clear();
        step.x
            .resize(self.layout.shape().hidden_size as usize * step.tokens, 0.0);
        step.reduce_us = 0;
        step.attend_ns = 0;
        self.rope.set_positions(self.step.positions.iter().copied());
    }

    /// Each token's embedding row, from the rank that owns it, into `sums`.
    fn embed(&mut self, work: &[WorkInput]) -> Result<(), BackendError> {
        let (tokens, hidden) = (self.step.tokens, self.hidden());
        let mut row = vec![0.0; hidden];
        let mut sums = vec![0; hidden];
        self.step.whole.clear(hidden, tokens);
        let checkpoint = self.weights.checkpoint();
        let name = &checkpoint.tensors().token_embedding;
        let table = checkpoint.tensor(name).map_err(|error| BackendError::Load {
            what: name.clone(),
            reason: error.to_string(),
        })?;
        for (at, token) in work.iter().flat_map(|work| &work.tokens).enumerate() {
            if !self
                .vocab_units
                .iter()
                .any(|unit| (unit.first..unit.first + unit.rows).contains(&token.0))
            {
                continue;
            }
            table.dequantize_row(token.0 as usize, &mut row);
            sums.fill(0);
            self.step.poison[at] |= !self.kernels.accumulate_fixed(&row, &mut sums);
            for (panel, sums) in sums.chunks_exact(LANES).enumerate() {
                self.step.whole.sums[(panel * tokens + at) * LANES..][..LANES].copy_from_slice(sums);
            }
        }
        Ok(())
    }

    /// Sums over ranks, adds the result and the phase's bias to the residual, and spreads poison to every rank.
    fn reduce(&mut self, phase: Phase, collective: &mut dyn Collective) -> Result<(), BackendError> {
        let step = &mut self.step;
        products::spread([&step.whole.poison].into_iter(), &mut step.poison);
        let bias = match phase {
            Phase::Embedding => &[][..],
            Phase::Attention(layer) => &self.weights.replicated[layer].attention_bias,
            Phase::Ffn(layer) => &self.weights.replicated[layer].ffn_bias,
        };
        let sums = &mut step.whole.sums;
        let poison_at = sums.len() - step.tokens;
        for (sum, poison) in sums[poison_at..].iter_mut().zip(&step.poison) {
            *sum = if *poison { FIXED_ONE } else { 0 };
        }
        let (values, poison) = sums.split_at(poison_at);
        let (team, kernels, tokens) = (&mut self.team, &self.kernels, step.tokens);
        let begun = Instant::now();
        let poison = if collective.world_size() == 1 {
            let reduced = products::room(&mut step.reduced, poison.len());
            collective.all_reduce(poison, reduced)?;
            step.reduce_us = step.reduce_us.saturating_add(begun.elapsed().as_micros() as u32);
            // Its own sums are all there are.
            products::add_sums(team, kernels, &mut step.x, values, tokens);
            &*reduced
        } else {
            let reduced = products::room(&mut step.reduced, sums.len());
            collective.all_reduce(sums, reduced)?;
            step.reduce_us = step.reduce_us.saturating_add(begun.elapsed().as_micros() as u32);
            let (reduced, poison) = reduced.split_at(poison_at);
            products::add(team, kernels, &mut step.x, reduced, tokens);
            poison
        };
        kernels.add_bias(&mut step.x, bias, tokens);
        for (poisoned, count) in step.poison.iter_mut().zip(poison) {
            *poisoned = *count != 0.0;
        }
        Ok(())
    }

    fn attention(
        &mut self,
        layer: usize,
        work: &[WorkInput],
        collective: &mut dyn Collective,
    ) -> Result<(), BackendError> {
        let heads: Vec<&AttentionLayer> = self.weights.attention.values().map(|layers| &layers[layer]).collect();
        let inputs = heads.iter().flat_map(|head| [&head.wq, &head.wk, &head.wv]);
        let norm = &self.weights.replicated[layer].attention_norm;
        self.step
            .normalize(&mut self.team, &self.kernels, norm, self.eps, inputs);
        let rows = attention::Rows {
            layer: layer as u32,
            heads: self.layout.shape().heads,
            cell: *self.cells.layout(),
            weights: &heads,
            qk_norms: &self.weights.replicated[layer].qk_norms,
            eps: self.eps,
            work,
        };
        let (kernels, rope, slabs) = (&self.kernels, &self.rope, self.cells.slabs_mut());
        let (members, positions) = (
            self.team.len(),
            self.step.positions.iter().map(|at| u64::from(at + 1)).sum(),
        );
        let (normed, whole, buffers) = self.step.phase();
        if by_units::serves_attention(normed.tokens, heads.len(), positions, members) {
            let own = by_units::deal(slabs, members).into_iter().enumerate();
            let own = own.map(|(member, slabs)| (&heads[products::share(heads.len(), member, members)], slabs));
            let phase = |(weights, slabs): (&[&AttentionLayer], &mut [_]), team: &mut _, buffers: &mut _| {
                let rows = attention::Rows { weights, ..rows };
                phases::attention(team, kernels, slabs, rope, rows, normed, buffers);
            };
            by_units::run(&mut self.team, buffers, own.collect(), whole, phase);
        } else {
            phases::attention(&mut self.team, kernels, slabs, rope, rows, normed, whole);
        }
        self.step.attend_ns += self.step.whole.attend_ns;
        self.reduce(Phase::Attention(layer), collective)
    }

    fn ffn(&mut self, layer: usize, collective: &mut dyn Collective) -> Result<(), BackendError> {
        let units: Vec<&FfnLayer> = self.weights.ffn.values().map(|layers| &layers[layer]).collect();
        let inputs = units.iter().flat_map(|unit| [&unit.gate, &unit.up]);
        let norm = &self.weights.replicated[layer].ffn_norm;
        self.step
            .normalize(&mut self.team, &self.kernels, norm, self.eps, inputs);
        let (kernels, members) = (&self.kernels, self.team.len());
        let (normed, whole, buffers) = self.step.phase();
        if by_units::serves_ffn(normed.tokens, units.len(), members) {
            let own = (0..members).map(|member| &units[products::share(units.len(), member, members)]);
            let phase = |units: &[&FfnLayer], team: &mut _, buffers: &mut _| {
                phases::ffn(team, kernels, units, normed, buffers);
            };
            by_units::run(&mut self.team, buffers, own.collect(), whole, phase);
        } else {
            phases::ffn(&mut self.team, kernels, &units, normed, whole);
        }
        self.reduce(Phase::Ffn(layer), collective)
    }

    /// Logits of the rows that are sampled or scored, for the local vocab units: so many rows at a time that memory is
    /// bounded. A row that only now turns out to have no finite norm poisons its sequence, on every rank alike.
    fn head(&mut self, work: &[WorkInput], output: &mut ForwardOutput) {
        let residual = Residual {
            x: std::mem::take(&mut self.step.x),
            poison: std::mem::take(&mut self.step.poison),
            tokens: self.step.tokens,
        };
        output.clear_head(work);
        for rows in head_rows(work).chunks(HEAD_ROWS_MAX) {
            self.step.take_rows(rows, &residual);
            let matrices: Vec<&PackedMatrix> = self.weights.vocab.values().collect();
            let (kernels, team, norm) = (&self.kernels, &mut self.team, &self.weights.output_norm);
            self.step
                .normalize(team, kernels, norm, self.eps, matrices.iter().copied());
            let (normed, whole, _) = self.step.phase();
            products::columns(team, kernels, &matrices, normed, &mut whole.columns);
            let summaries = self.summarize(rows.len());
            for (at, row) in rows.iter().enumerate() {
                output.poisoned[row.work] |= self.step.poison[at];
                let logits = |logits: &mut Vec<f32>| self.gather_logits(at, logits);
                let of_row: Vec<UnitSummary> = summaries.iter().skip(at).step_by(rows.len()).copied().collect();
                output.take_head_row(row, &work[row.work], &self.vocab_units, &of_row, logits);
            }
        }
        self.step.x = residual.x;
    }

    /// Of each local vocab unit, for each of the head's rows; shared by the team.
    fn summarize(&mut self, rows: usize) -> Vec<UnitSummary> {
        let (kernels, tokens) = (self.kernels, self.step.tokens);
        let units: Vec<(&[f32], usize)> = vocab_panels(&self.vocab_units, &self.step.whole.columns, tokens).collect();
        let mut summaries = vec![UnitSummary::default(); rows * units.len()];
        products::summaries(&mut self.team, rows, &mut summaries, |unit, summaries| {
            let (panels, rows) = units[unit];
            kernels.vocab_unit_summaries(panels, rows, summaries);
        });
        summaries
    }

    fn gather_logits(&self, at: usize, logits: &mut Vec<f32>) {
        for (panels, rows) in vocab_panels(&self.vocab_units, &self.step.whole.columns, self.step.tokens) {
            let values = panels
                .chunks_exact(self.step.tokens * LANES)
                .flat_map(|panel| &panel[at * LANES..][..LANES]);
            logits.extend(values.take(rows));
        }
    }
}

/// The head's output by vocab unit, each with its number of rows.
fn vocab_panels<'a>(
    units: &'a [UnitRows],
    columns: &'a [f32],
    tokens: usize,
) -> impl Iterator<Item = (&'a [f32], usize)> {
    let mut rest = columns;
    units.iter().map(move |unit| {
        let rows = unit.rows as usize;
        let (panels, after) = rest.split_at(rows.next_multiple_of(LANES) * tokens);
        rest = after;
        (panels, rows)
    })
}

/// What the layers have left of a step's rows.
struct Residual {
    /// `[hidden / 16][tokens]`[16]
    x: Vec<f32>,
    poison: Vec<bool>,
    tokens: usize,
}

impl Backend for Canonical {
    fn layout(&self) -> &UnitLayout {
        &self.layout
    }

    fn begin_epoch(&mut self, spec: &EpochSpec) -> Result<LoadReport, BackendError> {
        let begun = Instant::now();
        let share = &spec.shares[spec.rank.0 as usize];
        let taken = self.weights.take(&self.layout, share)?;
        self.cells.resize(share.attention.clone(), spec.num_blocks)?;
        Ok(self.take_up(share, taken, begun))
    }

    fn prepare_epoch(&mut self, spec: &EpochSpec) -> Result<(), BackendError> {
        let share = &spec.shares[spec.rank.0 as usize];
        self.cells.prepare(share.attention.clone(), spec.num_blocks)
    }

    fn preload(&self, spec: &EpochSpec) -> Option<Preload> {
        let missing = self.weights.missing(&spec.shares[spec.rank.0 as usize]);
        let (checkpoint, mode) = (Arc::clone(self.weights.checkpoint()), self.weights.mode());
        let layout = self.layout.clone();
        Some(Box::new(move || {
            missing.load(&checkpoint, mode, &layout).map(Preloaded)
        }))
    }

    fn switch_epoch(
        &mut self,
        spec: &EpochSpec,
        preloaded: Option<Preloaded>,
        held: &[BlockId],
    ) -> Result<LoadReport, BackendError> {
        let begun = Instant::now();
        if let Some(Preloaded(units)) = preloaded {
            self.weights.stage(units);
        }
        let share = &spec.shares[spec.rank.0 as usize];
        let taken = self.weights.take(&self.layout, share)?;
        self.cells.switch(share.attention.clone(), spec.num_blocks, held)?;
        Ok(self.take_up(share, taken, begun))
    }

    fn vocab_units(&self) -> &[UnitRows] {
        &self.vocab_units
    }

    fn held_bytes(&self, blocks: &[BlockId]) -> Option<u64> {
        Some(self.cells.held_bytes(blocks))
    }

    fn checksums(&self, block: BlockId) -> Vec<u32> {
        self.cells.checksums(block)
    }

    fn export_cell(&mut self, head: KvHead, block: BlockId, bytes: &mut [u8]) -> Result<(), BackendError> {
        let no_cell = BackendError::NoSuchCell { head, block };
        let cell = self.cells.cell(head, block).filter(|cell| cell.len() == bytes.len());
        bytes.copy_from_slice(cell.ok_or(no_cell)?);
        Ok(())
    }

    fn import_cell(&mut self, head: KvHead, block: BlockId, bytes: &[u8]) -> Result<(), BackendError> {
        self.fill_cell(head, block, bytes.len(), &mut |cell| {
            cell.copy_from_slice(bytes);
            true
        })
    }

    /// Straight into the cell: nobody looks at it before the books say that it has come.
    fn fill_cell(
        &mut self,
        head: KvHead,
        block: BlockId,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> bool,
    ) -> Result<(), BackendError> {
        let no_cell = BackendError::NoSuchCell { head, block };
        let cell = self.cells.cell_mut(head, block).filter(|cell| cell.len() == len);
        fill(cell.ok_or(no_cell)?);
        Ok(())
    }

    fn forward(
        &mut self,
        work: &[WorkInput],
        collective: &mut dyn Collective,
        output: &mut ForwardOutput,
    ) -> Result<(), BackendError> {
        self.begin_step(work);
        self.embed(work)?;
        self.reduce(Phase::Embedding, collective)?;
        for layer in 0..self.layout.shape().num_layers as usize {
            self.attention(layer, work, collective)?;
            self.ffn(layer, collective)?;
        }
        output.poisoned.clear();
        let mut rows = self.step.poison.iter();
        output.poisoned.extend(
            work.iter()
                .map(|work| rows.by_ref().take(work.tokens.len()).any(|poison| *poison)),
        );
        self.head(work, output);
        output.reduce_us = self.step.reduce_us;
        output.attend_ns = self.step.attend_ns;
        Ok(())
    }
}

impl StepBuffers {
    /// `normed = norm(x)`, in the forms that its readers want.
    fn normalize<'a>(
        &mut self,
        team: &mut ThreadTeam,
        kernels: &Kernels,
        weight: &[f32],
        eps: f32,
        readers: impl Iterator<Item = &'a PackedMatrix>,
    ) {
        let scales = products::room(&mut self.scales, self.tokens);
        products::rms_scales(team, kernels, &self.x, weight.len(), eps, scales);
        let source = Normed::new(&self.x, scales, weight);
        self.normed.make(team, kernels, source, readers, &mut self.poison);
    }

    /// What a phase begins with, and what it is computed in.
    fn phase(&mut self) -> (Inputs<'_>, &mut PhaseBuffers, &mut Vec<by_units::Member>) {
        let normed = self.normed.get();
        (normed, &mut self.whole, &mut self.members)
    }

    /// The step goes on with these rows.
    fn take_rows(&mut self, rows: &[HeadRow], residual: &Residual) {
        let hidden = residual.x.len().checked_div(residual.tokens).unwrap_or(0);
        let mut row = vec![0.0; hidden];
        self.x.clear();
        self.x.resize(hidden * rows.len(), 0.0);
        for (at, head) in rows.iter().enumerate() {
            panels::gather_token(&residual.x, residual.tokens, head.row, &mut row);
            panels::scatter_token(&row, &mut self.x, rows.len(), at);
        }
        self.poison.clear();
        self.poison.extend(rows.iter().map(|head| residual.poison[head.row]));
        self.tokens = rows.len();
    }
}
