//! A phase's matrix products, split over the team by row groups, and what is done between them, split by panels or tokens.
//!
//! Each element is computed whole by one member, so the split changes no bit.

use std::ops::Range;

use super::inputs::Inputs;
use crate::{
    arith::{Int8Rows, Kernels, LANES, PackedMatrix, PanelSource, UnitColumns, UnitSummary},
    threads::ThreadTeam,
    weights::FfnLayer,
};

/// What is done to fewer tokens between products is done sooner than another thread has begun.
const TOKENS_TO_SHARE_MIN: usize = 8;
/// So are fewer summaries of a row's logits of a vocab unit, a quarter of a microsecond each.
const SUMMARIES_TO_SHARE_MIN: usize = 16;

/// Column-parallel: every matrix times the same input, outputs one after the other in `out`, which grows to their size.
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
    let out = room(out, num_groups * group_len);
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

/// The first `len` elements, whatever they hold. A buffer never shrinks: phases of different sizes take turns in it.
pub(super) fn room<T: Clone + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    &mut buffer[..len]
}

/// Members that share what is done to so many tokens between products.
fn sharers(team: &ThreadTeam, tokens: usize) -> usize {
    if tokens < TOKENS_TO_SHARE_MIN { 1 } else { team.len() }
}

/// [`Kernels::quantize`], split over the team by columns.
pub(super) fn quantize(
    team: &mut ThreadTeam,
    kernels: &Kernels,
    source: impl PanelSource,
    out: &mut Int8Rows,
    poison: &mut [bool],
) {
    let members = sharers(team, source.tokens());
    if members == 1 {
        return kernels.quantize(source, out, poison);
    }
    out.resize(source.num_panels() * LANES, source.tokens());
    let parts = out.parts(members).into_iter();
    let mut parts: Vec<_> = parts.map(|part| (part, vec![false; poison.len()])).collect();
    team.run(&mut parts, |_, (part, poison)| {
        kernels.quantize_part(source, part, poison);
    });
    spread(parts.iter().map(|(_, found)| found), poison);
}

/// [`Kernels::store_panels`] of all panels, split over the team.
///
/// out: `[panels][tokens]`[16]
pub(super) fn store(team: &mut ThreadTeam, kernels: &Kernels, source: impl PanelSource, out: &mut [f32]) {
    let (members, len) = (sharers(team, source.tokens()), source.tokens() * LANES);
    share_out(team, members, len, out, |panels, out| {
        kernels.store_panels(source, panels.start, out);
    });
}

/// [`Kernels::rms_scales`] of all tokens, split over the team.
pub(super) fn rms_scales(
    team: &mut ThreadTeam,
    kernels: &Kernels,
    x: &[f32],
    cols: usize,
    eps: f32,
    scales: &mut [f32],
) {
    let tokens = scales.len();
    share_out(team, sharers(team, tokens), 1, scales, |which, scales| {
        kernels.rms_scales(x, cols, eps, tokens, which, scales);
    });
}

/// `x += y`, split over the team. Panels, of so many tokens.
pub(super) fn add(team: &mut ThreadTeam, kernels: &Kernels, x: &mut [f32], y: &[f32], tokens: usize) {
    let len = tokens * LANES;
    share_out(team, sharers(team, tokens), len, x, |panels, x| {
        kernels.add_assign(x, &y[panels.start * len..panels.end * len]);
    });
}

/// `x += round(sums)`, split over the team. Panels, of so many tokens.
pub(super) fn add_sums(team: &mut ThreadTeam, kernels: &Kernels, x: &mut [f32], sums: &[i64], tokens: usize) {
    let len = tokens * LANES;
    share_out(team, sharers(team, tokens), len, x, |panels, x| {
        kernels.add_sums(x, &sums[panels.start * len..panels.end * len]);
    });
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

/// The summaries of `rows` rows for each vocab unit, by its number; split over the team by units.
///
/// out: [units]`[rows]`
pub(super) fn summaries(
    team: &mut ThreadTeam,
    rows: usize,
    out: &mut [UnitSummary],
    summarize: impl Fn(usize, &mut [UnitSummary]) + Sync,
) {
    let is_small = out.len() < SUMMARIES_TO_SHARE_MIN;
    let members = if is_small { 1 } else { team.len() };
    share_out(team, members, rows, out, |units, out| {
        for (unit, out) in units.zip(out.chunks_exact_mut(rows)) {
            summarize(unit, out);
        }
    });
}

/// Deals things of `len` elements over so many members, which fill them: their numbers, and where they lie in `out`.
fn share_out<T: Send>(
    team: &mut ThreadTeam,
    members: usize,
    len: usize,
    out: &mut [T],
    fill: impl Fn(Range<usize>, &mut [T]) + Sync,
) {
    let count = out.len().checked_div(len).unwrap_or(0);
    let mut parts = split(count, members, len, out);
    team.run(&mut parts, |_, (which, out)| fill(which.clone(), out));
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
