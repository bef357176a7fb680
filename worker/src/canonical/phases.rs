//! What a phase does with units: all of a rank's together, or those of one thread. It begins with the normed rows, which
//! all units share, and ends with the sums of the units' partials.

use std::time::Instant;

use super::{
    attention,
    inputs::{InputBuffers, Inputs},
    products,
};
use crate::{
    arith::{Gated, GatedPanel, HeadRows, HugeBuffer, Kernels, PackedMatrix, RopeTable},
    threads::ThreadTeam,
    weights::FfnLayer,
};

/// What units are computed in; kept from step to step.
#[derive(Debug, Default)]
pub(super) struct PhaseBuffers {
    /// Outputs of the column-parallel products: `[rows / 16][tokens]`[16], unit after unit; grows, never shrinks.
    pub columns: Vec<f32>,
    /// Input of the row-parallel ones, unit after unit.
    inner: InputBuffers,
    /// [KV heads]`[tokens][group_size * head_dim]`; grows, never shrinks.
    pub attended: Vec<f32>,
    /// `[hidden / 16][tokens]`[16], then one element per token for its poison.
    pub sums: Vec<i64>,
    /// Per token: what the phase found out of range.
    pub poison: Vec<bool>,
    /// In cells; of the thread that took longest.
    pub attend_ns: u64,
}

impl PhaseBuffers {
    /// For a phase of so many rows: nothing is poisoned, and the sums are whatever they were.
    fn begin(&mut self, hidden: usize, tokens: usize) {
        self.sums.resize((hidden + 1) * tokens, 0);
        self.poison.clear();
        self.poison.resize(tokens, false);
    }

    /// Of no units: the sums are zeros.
    pub fn clear(&mut self, hidden: usize, tokens: usize) {
        self.begin(hidden, tokens);
        self.sums.fill(0);
    }

    /// What some threads have computed, together.
    pub fn add_up<'a>(&mut self, members: impl Iterator<Item = &'a Self>) {
        for (number, member) in members.enumerate() {
            if number == 0 {
                self.sums.clone_from(&member.sums);
                self.poison.clone_from(&member.poison);
                self.attend_ns = member.attend_ns;
                continue;
            }
            for (sum, more) in self.sums.iter_mut().zip(&member.sums) {
                *sum = sum.wrapping_add(*more);
            }
            products::spread([&member.poison].into_iter(), &mut self.poison);
            self.attend_ns = self.attend_ns.max(member.attend_ns);
        }
    }
}

/// The attention of some KV heads.
///
/// slabs: of each head
pub(super) fn attention(
    team: &mut ThreadTeam,
    kernels: &Kernels,
    slabs: &mut [HugeBuffer],
    rope: &RopeTable,
    rows: attention::Rows<'_>,
    normed: Inputs<'_>,
    buffers: &mut PhaseBuffers,
) {
    buffers.begin(normed.cols, normed.tokens);
    let inputs = rows.weights.iter().flat_map(|head| [&head.wq, &head.wk, &head.wv]);
    let inputs: Vec<&PackedMatrix> = inputs.collect();
    products::columns(team, kernels, &inputs, normed, &mut buffers.columns);
    let begun = Instant::now();
    attention::attend(team, kernels, slabs, rope, rows, normed.tokens, buffers);
    buffers.attend_ns = begun.elapsed().as_nanos() as u64;
    let outputs: Vec<&PackedMatrix> = rows.weights.iter().map(|head| &head.wo).collect();
    let (cols, tokens) = (rows.heads.group_columns() as usize, normed.tokens);
    let attended = HeadRows::new(&buffers.attended[..outputs.len() * cols * tokens], cols, tokens);
    let readers = outputs.iter().copied();
    buffers
        .inner
        .make(team, kernels, attended, readers, &mut buffers.poison);
    project(team, kernels, &outputs, buffers);
}

/// The gated products of some FFN units.
pub(super) fn ffn(
    team: &mut ThreadTeam,
    kernels: &Kernels,
    units: &[&FfnLayer],
    normed: Inputs<'_>,
    buffers: &mut PhaseBuffers,
) {
    buffers.begin(normed.cols, normed.tokens);
    let tokens = normed.tokens;
    let inputs: Vec<&PackedMatrix> = units.iter().flat_map(|unit| [&unit.gate, &unit.up]).collect();
    products::columns(team, kernels, &inputs, normed, &mut buffers.columns);
    products::add_biases(kernels, units, tokens, &mut buffers.columns);
    let outputs: Vec<&PackedMatrix> = units.iter().map(|unit| &unit.down).collect();
    let places = GatedPanel::of_units(units.iter().map(|unit| unit.gate.num_groups()));
    let gated = Gated::new(&buffers.columns, &places, tokens);
    let readers = outputs.iter().copied();
    buffers.inner.make(team, kernels, gated, readers, &mut buffers.poison);
    project(team, kernels, &outputs, buffers);
}

/// The row-parallel end of a phase: `inner` times each unit's columns, rounded and added in `sums`.
fn project(team: &mut ThreadTeam, kernels: &Kernels, units: &[&PackedMatrix], buffers: &mut PhaseBuffers) {
    let PhaseBuffers {
        inner, sums, poison, ..
    } = buffers;
    let poison_at = sums.len() - poison.len();
    products::partials(team, kernels, units, inner.get(), &mut sums[..poison_at], poison);
}
