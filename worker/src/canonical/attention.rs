//! The attention phase of one layer: biases, norms and rotation, K and V to the cells, attend.
//!
//! K and V are written before anyone reads them, also for tokens of the same step, so a token attends to what a later
//! step would read: rounded to the cell's dtype.

use std::ops::Range;

use kvasir_kv::HeadLayout;

use super::StepBuffers;
use crate::{
    arith::{AttendScratch, HugeBuffer, Kernels, KvView, LANES, RopeTable, panels},
    cells::Cells,
    rank_books::WorkInput,
    threads::ThreadTeam,
    weights::AttentionLayer,
};

/// Whose rows these are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows<'a> {
    pub layer: u32,
    pub heads: HeadLayout,
    /// Of each local KV head.
    pub weights: &'a [&'a AttentionLayer],
    /// Of each head of q and of k; empty without.
    pub qk_norms: &'a [Vec<f32>; 2],
    pub eps: f32,
    pub work: &'a [WorkInput],
}

/// From `step.columns` (q, k and v of each local KV head) to `step.inner`, the input of the output projection.
///
/// columns: [local KV heads][(group_size + 2) * head_dim / 16]`[tokens]`[16]
/// inner: [local KV heads * group_size * head_dim / 16]`[tokens]`[16]
pub(super) fn attend(
    team: &mut ThreadTeam,
    kernels: &Kernels,
    cells: &mut Cells,
    rope: &RopeTable,
    rows: Rows<'_>,
    step: &mut StepBuffers,
) {
    let tokens = step.tokens;
    let group_columns = rows.heads.group_columns() as usize;
    let head_len = (group_columns + 2 * rows.heads.head_dim() as usize) * tokens;
    let num_heads = step.columns.len().checked_div(head_len).unwrap_or(0);
    write_cells(team, kernels, cells, rope, rows, head_len, step);
    step.attended.resize(num_heads * tokens * group_columns, 0.0);
    attend_rows(team, kernels, cells, rows, head_len, step);
    step.inner.resize(step.attended.len(), 0.0);
    for (attended, inner) in step
        .attended
        .chunks_exact(tokens * group_columns)
        .zip(step.inner.chunks_exact_mut(tokens * group_columns))
    {
        for (token, row) in attended.chunks_exact(group_columns).enumerate() {
            panels::scatter_token(row, inner, tokens, token);
        }
    }
}

/// Finishes q, k and v in place, and writes k and v of every token; heads are dealt over the team.
fn write_cells(
    team: &mut ThreadTeam,
    kernels: &Kernels,
    cells: &mut Cells,
    rope: &RopeTable,
    rows: Rows<'_>,
    head_len: usize,
    step: &mut StepBuffers,
) {
    let layout = *cells.layout();
    let (tokens, dim) = (step.tokens, rows.heads.head_dim() as usize);
    let mut parts: Vec<CellPart<'_>> = (0..team.len()).map(|_| CellPart::new(tokens)).collect();
    for (head, (columns, slab)) in step
        .columns
        .chunks_exact_mut(head_len)
        .zip(cells.slabs_mut())
        .enumerate()
    {
        let member = head % parts.len();
        parts[member].heads.push((rows.weights[head], columns, slab));
    }
    team.run(&mut parts, |_, part| {
        let (mut k, mut v) = (vec![0.0; dim], vec![0.0; dim]);
        let mut scratch = Vec::new();
        for (weights, columns, slab) in &mut part.heads {
            let (rotated, values) = columns.split_at_mut(head_len - dim * tokens);
            let (queries, keys) = rotated.split_at_mut(rotated.len() - dim * tokens);
            for (columns, bias) in [&mut *queries, &mut *keys, &mut *values]
                .into_iter()
                .zip(&weights.biases)
            {
                kernels.add_bias(columns, bias, tokens);
            }
            for (columns, norm) in [queries, keys].into_iter().zip(rows.qk_norms) {
                for head in columns.chunks_exact_mut(dim * tokens) {
                    normalize_head(kernels, head, norm, rows.eps, tokens, &mut scratch);
                    kernels.rope(head, rope, tokens);
                }
            }
            let keys = &rotated[rotated.len() - dim * tokens..];
            for (row, place) in each_row(rows.work).enumerate() {
                panels::gather_token(keys, tokens, row, &mut k);
                panels::gather_token(values, tokens, row, &mut v);
                let block = place.work.blocks[(place.position / layout.block_size()) as usize].0;
                let cell = &mut slab[Cells::layer_cell(&layout, block, rows.layer)];
                let offset = (place.position % layout.block_size()) as usize;
                part.poison[row] |= !kernels.write_kv(&k, &v, cell, &layout, offset);
            }
        }
    });
    for part in parts {
        for (poison, found) in step.poison.iter_mut().zip(part.poison) {
            *poison |= found;
        }
    }
}

/// In place, where a model has such a norm. head: `[head_dim / 16][tokens]`[16]
fn normalize_head(kernels: &Kernels, head: &mut [f32], norm: &[f32], eps: f32, tokens: usize, scratch: &mut Vec<f32>) {
    if norm.is_empty() {
        return;
    }
    scratch.clear();
    scratch.extend_from_slice(head);
    kernels.rms_norm(scratch, norm, eps, tokens, head);
}

struct CellPart<'a> {
    heads: Vec<(&'a AttentionLayer, &'a mut [f32], &'a mut HugeBuffer)>,
    poison: Vec<bool>,
}

impl CellPart<'_> {
    fn new(tokens: usize) -> Self {
        Self {
            heads: Vec::new(),
            poison: vec![false; tokens],
        }
    }
}

/// Each token of each local head attends to its sequence; (head, token) pairs are dealt over the team by their length.
fn attend_rows(
    team: &mut ThreadTeam,
    kernels: &Kernels,
    cells: &Cells,
    rows: Rows<'_>,
    head_len: usize,
    step: &mut StepBuffers,
) {
    let (tokens, group_columns) = (step.tokens, rows.heads.group_columns() as usize);
    let dim = rows.heads.head_dim() as usize;
    let num_heads = step.attended.len() / (tokens * group_columns).max(1);
    let places: Vec<Place<'_>> = each_row(rows.work).collect();
    let blocks: Vec<Vec<u32>> = rows
        .work
        .iter()
        .map(|work| work.blocks.iter().map(|block| block.0).collect())
        .collect();
    let lengths = (0..num_heads * tokens).map(|item| u64::from(places[item % tokens].position) + 1);
    let mut rest = step.attended.as_mut_slice();
    let mut parts = Vec::with_capacity(team.len());
    for items in deal(lengths, team.len()) {
        let (out, after) = rest.split_at_mut(items.len() * group_columns);
        parts.push((items, out));
        rest = after;
    }
    let columns = &step.columns;
    team.run(&mut parts, |_, (items, out)| {
        let mut scratch = AttendScratch::new();
        let mut q = vec![0.0; group_columns];
        for (item, out) in items.clone().zip(out.chunks_exact_mut(group_columns)) {
            let (head, row) = (item / tokens, item % tokens);
            let queries = &columns[head * head_len..][..group_columns * tokens];
            debug_assert!(group_columns.is_multiple_of(LANES.min(dim)));
            panels::gather_token(queries, tokens, row, &mut q);
            let view: KvView<'_> = cells.view(head, rows.layer);
            let place = places[row];
            kernels.attend(
                &q,
                &view,
                &blocks[place.index],
                place.position as usize + 1,
                out,
                &mut scratch,
            );
        }
    });
}

/// One row of the step: its sequence's place in the step, and its position.
#[derive(Clone, Copy)]
struct Place<'a> {
    index: usize,
    work: &'a WorkInput,
    position: u32,
}

fn each_row(work: &[WorkInput]) -> impl Iterator<Item = Place<'_>> {
    let rows = work.iter().enumerate();
    rows.flat_map(|(index, work)| (work.start..work.end()).map(move |position| Place { index, work, position }))
}

/// Contiguous ranges of items, one per member, of about the same total length.
fn deal(lengths: impl Iterator<Item = u64> + Clone, members: usize) -> Vec<Range<usize>> {
    let total: u64 = lengths.clone().sum();
    let mut ranges = Vec::with_capacity(members);
    let (mut start, mut sum, mut count) = (0, 0, 0);
    for length in lengths {
        sum += length;
        count += 1;
        while ranges.len() + 1 < members && sum * members as u64 >= total * (ranges.len() as u64 + 1) {
            ranges.push(start..count);
            start = count;
        }
    }
    ranges.push(start..count);
    ranges.resize(members, count..count);
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dealing_covers_all_items_in_order() {
        for members in 1..5 {
            for lengths in [
                vec![],
                vec![7],
                vec![1, 1, 1, 1],
                vec![100, 1, 1],
                vec![1, 2, 3, 4, 5, 6],
            ] {
                let ranges = deal(lengths.iter().copied(), members);
                assert_eq!(ranges.len(), members);
                let items: Vec<usize> = ranges.into_iter().flatten().collect();
                assert_eq!(items, (0..lengths.len()).collect::<Vec<_>>());
            }
        }
    }
}
