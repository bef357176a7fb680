//! A phase's matrix products, split over the team by row groups.
//!
//! Each row group is computed whole by one member, so the split changes no bit.

use std::ops::Range;

use super::Inputs;
use crate::{
    arith::{Int8Rows, Kernels, LANES, PackedMatrix, UnitColumns},
    threads::ThreadTeam,
    weights::FfnLayer,
};

/// Fewer tokens are quantized sooner than another thread has begun.
const TOKENS_TO_SHARE_MIN: usize = 8;
/// So are fewer values gated: some microseconds of work.
const VALUES_TO_SHARE_MIN: usize = 8 << 10;

/// Column-parallel: every matrix times the same input, outputs one after the other in `out`, which takes their size.
///
/// matrices: [rows, inputs.cols] each; out: `[row groups of all matrices][tokens]`[16]
pub(super) fn columns(
    team: &mut ThreadTeam,
    kernels: &Kernels,
    matrices: &[&PackedMatrix],
    inputs: Inputs<'_>,
    out: &mut Vec<f32>,
) {
    let group_len = inputs.tokens * LANES;
    let num_groups: usize = matrices.iter().map(|matrix| matrix.num_groups()).sum();
    out.resize(num_groups * group_len, 0.0);
    if inputs.tokens == 0 {
        return;
    }
    let mut parts = split(num_groups, team.len(), group_len, out);
    team.run(&mut parts, |_, (groups, out)| {
        let mut first = 0;
        for matrix in matrices {
            let of_matrix = overlap(groups, first..first + matrix.num_groups());
            if !of_matrix.is_empty() {
                let at = (of_matrix.start - groups.start) * group_len..(of_matrix.end - groups.start) * group_len;
                let local = of_matrix.start - first..of_matrix.end - first;
                kernels.matmul(matrix, local, inputs.for_matrix(matrix), &mut out[at]);
            }
            first += matrix.num_groups();
        }
    });
}

/// [`Kernels::quantize`], split over the team by columns.
pub(super) fn quantize(
    team: &mut ThreadTeam,
    kernels: &Kernels,
    panels: &[f32],
    cols: usize,
    out: &mut Int8Rows,
    poison: &mut [bool],
) {
    if poison.len() < TOKENS_TO_SHARE_MIN || team.len() == 1 {
        return kernels.quantize(panels, cols, poison.len(), out, poison);
    }
    assert_eq!(panels.len(), cols * poison.len());
    out.resize(cols, poison.len());
    let parts = out.parts(team.len()).into_iter();
    let mut parts: Vec<_> = parts.map(|part| (part, vec![false; poison.len()])).collect();
    team.run(&mut parts, |_, (part, poison)| {
        kernels.quantize_part(panels, part, poison)
    });
    spread(parts.iter().map(|(_, found)| found), poison);
}

/// Marks what any member of the team found.
pub(super) fn spread<'a>(found: impl Iterator<Item = &'a Vec<bool>>, poison: &mut [bool]) {
    for found in found {
        for (poison, found) in poison.iter_mut().zip(found) {
            *poison |= found;
        }
    }
}

/// Row-parallel: the units' partials, rounded and added up in `sums`, whatever was in there.
///
/// units: `[hidden, columns of the unit]`, whose inputs lie one after the other; sums: `[hidden / 16][tokens]`[16]
pub(super) fn partials(
    team: &mut ThreadTeam,
    kernels: &Kernels,
    units: &[&PackedMatrix],
    inputs: Inputs<'_>,
    sums: &mut [i64],
    poison: &mut [bool],
) {
    let Some(first) = units.first() else {
        return sums.fill(0);
    };
    let mut first_col = 0;
    let columns = units.iter().map(|weights| {
        let unit = UnitColumns { weights, first_col };
        first_col += weights.cols();
        unit
    });
    let columns: Vec<UnitColumns<'_>> = columns.collect();
    let x = inputs.for_matrix(first);
    let parts = split(first.num_groups(), team.len(), inputs.tokens * LANES, sums);
    let mut parts: Vec<_> = parts
        .into_iter()
        .map(|(groups, sums)| (groups, sums, vec![false; poison.len()]))
        .collect();
    team.run(&mut parts, |_, (groups, sums, poison)| {
        kernels.matmul_partials(&columns, groups.clone(), x, sums, poison);
    });
    spread(parts.iter().map(|(.., found)| found), poison);
}

/// Adds the biases of gate and up to `columns`, where a model has them.
///
/// columns: gate then up of each unit, `[rows / 16][tokens]`[16]
pub(super) fn add_biases(kernels: &Kernels, units: &[&FfnLayer], tokens: usize, columns: &mut [f32]) {
    let mut rest = columns;
    for unit in units {
        for bias in &unit.biases {
            let (of_matrix, after) = rest.split_at_mut(unit.gate.num_groups() * LANES * tokens);
            kernels.add_bias(of_matrix, bias, tokens);
            rest = after;
        }
    }
}

/// `inner = silu(gate) * up` for each unit.
///
/// columns: gate then up of each unit, `[rows / 16][tokens]`[16]; inner: `[columns / 16][tokens]`[16], takes its size.
pub(super) fn gate(
    team: &mut ThreadTeam,
    kernels: &Kernels,
    units: &[&FfnLayer],
    tokens: usize,
    columns: &[f32],
    inner: &mut Vec<f32>,
) {
    let inner_len = columns.len() / 2;
    inner.resize(inner_len, 0.0);
    let mut pieces = Vec::with_capacity(units.len());
    let (mut columns, mut rest) = (columns, inner.as_mut_slice());
    for unit in units {
        let len = unit.gate.num_groups() * LANES * tokens;
        let (out, after) = rest.split_at_mut(len);
        pieces.push((&columns[..len], &columns[len..2 * len], out));
        (columns, rest) = (&columns[2 * len..], after);
    }
    let members = if inner_len < VALUES_TO_SHARE_MIN { 1 } else { team.len() };
    let share = pieces.len().div_ceil(members).max(1);
    let mut parts: Vec<_> = pieces.chunks_mut(share).map(Some).collect();
    parts.resize_with(members, || None);
    team.run(&mut parts, |_, pieces| {
        for (gate, up, out) in pieces.iter_mut().flat_map(|pieces| pieces.iter_mut()) {
            kernels.silu_mul(gate, up, out);
        }
    });
}

/// Row groups dealt evenly, each member with its own part of the output.
fn split<T>(num_groups: usize, members: usize, group_len: usize, mut out: &mut [T]) -> Vec<(Range<usize>, &mut [T])> {
    let mut parts = Vec::with_capacity(members);
    for member in 0..members {
        let groups = share(num_groups, member, members);
        let (part, rest) = out.split_at_mut(groups.len() * group_len);
        parts.push((groups, part));
        out = rest;
    }
    parts
}

/// What a member gets of `count` things that are dealt evenly.
pub(super) fn share(count: usize, member: usize, members: usize) -> Range<usize> {
    count * member / members..count * (member + 1) / members
}

fn overlap(a: &Range<usize>, b: Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}
