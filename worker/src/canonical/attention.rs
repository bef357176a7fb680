//! The attention phase of one layer: biases, norms and rotation, K and V to the cells, attend.
//!
//! K and V are written before anyone reads them, also for tokens of the same step, so a token attends to what a later
//! step would read: rounded to the cell's dtype.

use std::ops::Range;

use kvasir_kv::{CellLayout, HeadLayout};

use super::{phases::PhaseBuffers, products};
use crate::{
    arith::{ATTENTION_CHUNK, AttendScratch, AttendedChunks, HugeBuffer, Kernels, KvView, LANES, RopeTable, panels},
    cells::Cells,
    rank_books::WorkInput,
    threads::ThreadTeam,
    weights::AttentionLayer,
};

/// Fewer rows of heads are written to cells sooner than another thread has begun.
const ROWS_TO_SHARE_MIN: usize = 8;
/// So is attended to fewer positions, of all rows and heads together.
const POSITIONS_TO_SHARE_MIN: u64 = 512;

/// Whose rows these are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows<'a> {
    pub layer: u32,
    pub heads: HeadLayout,
    pub cell: CellLayout,
    /// Of each of these KV heads.
    pub weights: &'a [&'a AttentionLayer],
    /// Of each head of q and of k; empty without.
    pub qk_norms: &'a [Vec<f32>; 2],
    pub eps: f32,
    pub work: &'a [WorkInput],
}

/// From `columns` (q, k and v of each of these KV heads) to `attended`.
///
/// columns: [KV heads][(group_size + 2) * head_dim / 16]`[tokens]`[16]
/// attended: [KV heads]`[tokens][group_size * head_dim]`
pub(super) fn attend(
    team: &mut ThreadTeam,
    kernels: &Kernels,
    slabs: &mut [HugeBuffer],
    rope: &RopeTable,
    rows: Rows<'_>,
    tokens: usize,
    buffers: &mut PhaseBuffers,
) {
    let group_columns = rows.heads.group_columns() as usize;
    let head_len = (group_columns + 2 * rows.heads.head_dim() as usize) * tokens;
    write_cells(team, kernels, slabs, rope, rows, head_len, buffers);
    products::room(&mut buffers.attended, rows.weights.len() * tokens * group_columns);
    attend_rows(team, kernels, slabs, rows, head_len, buffers);
}

/// Finishes q, k and v in place, and writes k and v of every token; heads are dealt over the team.
fn write_cells(
    team: &mut ThreadTeam,
    kernels: &Kernels,
    slabs: &mut [HugeBuffer],
    rope: &RopeTable,
    rows: Rows<'_>,
    head_len: usize,
    buffers: &mut PhaseBuffers,
) {
    let layout = rows.cell;
    let (tokens, dim) = (buffers.poison.len(), rows.heads.head_dim() as usize);
    let is_small = rows.weights.len() * tokens < ROWS_TO_SHARE_MIN;
    let members = if is_small { 1 } else { team.len() };
    let mut parts: Vec<CellPart<'_>> = (0..members).map(|_| CellPart::new(tokens)).collect();
    let heads = rows.weights.iter().zip(buffers.columns.chunks_exact_mut(head_len));
    for (head, ((weights, columns), slab)) in heads.zip(slabs).enumerate() {
        let member = head % members;
        parts[member].heads.push((weights, columns, slab));
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
    products::spread(parts.iter().map(|part| &part.poison), &mut buffers.poison);
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

/// Each token of each local head attends to its sequence; (head, token) pairs are dealt over the team by their length, and
/// so are the chunks of long ones.
fn attend_rows(
    team: &mut ThreadTeam,
    kernels: &Kernels,
    slabs: &[HugeBuffer],
    rows: Rows<'_>,
    head_len: usize,
    buffers: &mut PhaseBuffers,
) {
    let (tokens, group_columns) = (buffers.poison.len(), rows.heads.group_columns() as usize);
    let dim = rows.heads.head_dim() as usize;
    debug_assert!(group_columns.is_multiple_of(LANES.min(dim)));
    let num_heads = rows.weights.len();
    let places: Vec<Place<'_>> = each_row(rows.work).collect();
    let blocks: Vec<Vec<u32>> = rows
        .work
        .iter()
        .map(|work| work.blocks.iter().map(|block| block.0).collect())
        .collect();
    let lengths = (0..num_heads * tokens).map(|item| u64::from(places[item % tokens].position) + 1);
    let is_small = lengths.clone().sum::<u64>() < POSITIONS_TO_SHARE_MIN;
    let members = if is_small { 1 } else { team.len() };
    let mut parts = Vec::with_capacity(members);
    let mut rest = buffers.attended.as_mut_slice();
    let mut first = 0;
    for share in deal(lengths, members) {
        let whole = share.whole();
        let (out, after) = rest[(whole.start - first) * group_columns..].split_at_mut(whole.len() * group_columns);
        (rest, first) = (after, whole.end);
        parts.push((share, out, Vec::new()));
    }
    let columns = &buffers.columns;
    let tokens_at_once = Kernels::tokens_to_attend(group_columns / dim);
    team.run(&mut parts, |_, (share, out, split)| {
        let mut scratch = AttendScratch::new();
        let mut q = Vec::new();
        // The queries of so many items, and the positions of their tokens.
        let gather = |item: usize, count: usize, q: &mut Vec<f32>| {
            let (head, row) = (item / tokens, item % tokens);
            let queries = &columns[head * head_len..][..group_columns * tokens];
            q.resize(count * group_columns, 0.0);
            for (row, q) in (row..).zip(q.chunks_exact_mut(group_columns)) {
                panels::gather_token(queries, tokens, row, q);
            }
            let view: KvView<'_> = KvView::new(&slabs[head], rows.cell, rows.layer);
            let position = places[row].position as usize;
            (view, &blocks[places[row].index], position..position + count)
        };
        let (whole, mut rest) = (share.whole(), &mut **out);
        let mut item = whole.start;
        while item < whole.end {
            let row = item % tokens;
            let max = tokens_at_once.min(tokens - row).min(whole.end - item);
            let count = attended_together(&places[row..][..max]);
            let (out, after) = rest.split_at_mut(count * group_columns);
            let (view, blocks, positions) = gather(item, count, &mut q);
            kernels.attend(&q, &view, blocks, positions, out, &mut scratch);
            (item, rest) = (item + count, after);
        }
        for (item, chunks) in share.split() {
            let (view, blocks, positions) = gather(item, 1, &mut q);
            let chunks = chunks.start..chunks.end.min(positions.end.div_ceil(ATTENTION_CHUNK));
            let attended = kernels.attend_chunks(&q, &view, blocks, positions.end, chunks, &mut scratch);
            split.push((item, attended));
        }
    });
    // Members come in the order of their chunks.
    let split: Vec<(usize, AttendedChunks)> = parts.into_iter().flat_map(|(.., split)| split).collect();
    for of_item in split.chunk_by(|(one, _), (other, _)| one == other) {
        let (item, _) = of_item[0];
        let out = &mut buffers.attended[item * group_columns..][..group_columns];
        kernels.merge_chunks(of_item.iter().map(|(_, chunks)| chunks), dim, out);
    }
}

/// One row of the step: its sequence's place in the step, and its position.
#[derive(Clone, Copy)]
struct Place<'a> {
    index: usize,
    work: &'a WorkInput,
    position: u32,
}

/// How many rows from the first one are of one sequence and of one chunk of positions.
fn attended_together(places: &[Place<'_>]) -> usize {
    let chunk = |place: &Place<'_>| (place.index, place.position as usize / ATTENTION_CHUNK);
    places
        .iter()
        .take_while(|place| chunk(place) == chunk(&places[0]))
        .count()
}

fn each_row(work: &[WorkInput]) -> impl Iterator<Item = Place<'_>> {
    let rows = work.iter().enumerate();
    rows.flat_map(|(index, work)| (work.start..work.end()).map(move |position| Place { index, work, position }))
}

/// A place between the chunks of all items.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cut {
    item: usize,
    /// Chunks of this item before it.
    chunk: usize,
}

/// What one member attends to: all between two cuts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Share {
    start: Cut,
    end: Cut,
}

impl Share {
    /// Items that no other member has a part of.
    fn whole(self) -> Range<usize> {
        let start = self.start.item + usize::from(self.start.chunk > 0);
        start..self.end.item.max(start)
    }

    /// Items that it has some chunks of; an end beyond the item means its end.
    fn split(self) -> impl Iterator<Item = (usize, Range<usize>)> {
        let Self { start, end } = self;
        let at_start = (start.chunk > 0).then(|| {
            let last = if end.item == start.item { end.chunk } else { usize::MAX };
            (start.item, start.chunk..last)
        });
        let at_end = (end.chunk > 0 && (end.item > start.item || start.chunk == 0)).then_some((end.item, 0..end.chunk));
        at_start
            .into_iter()
            .chain(at_end)
            .filter(|(_, chunks)| !chunks.is_empty())
    }
}

/// Shares of about the same number of positions, one per member, in order. They are cut between chunks.
///
/// lengths: positions of each item
fn deal(lengths: impl Iterator<Item = u64> + Clone, members: usize) -> Vec<Share> {
    const CHUNK: u64 = ATTENTION_CHUNK as u64;
    let members = members as u64;
    let total: u64 = lengths.clone().sum();
    let mut cuts = vec![Cut { item: 0, chunk: 0 }];
    let (mut sum, mut count) = (0, 0);
    for length in lengths {
        while (cuts.len() as u64) < members && (sum + length) * members >= total * cuts.len() as u64 {
            let before = (total * cuts.len() as u64).div_ceil(members) - sum;
            let start = before / CHUNK * CHUNK;
            let end = length.min(start + CHUNK);
            let nearest = if before - start < end - before { start } else { end };
            let (item, chunk) = if nearest < length {
                (count, (nearest / CHUNK) as usize)
            } else {
                (count + 1, 0)
            };
            cuts.push(Cut { item, chunk });
        }
        sum += length;
        count += 1;
    }
    cuts.resize(members as usize + 1, Cut { item: count, chunk: 0 });
    cuts.windows(2)
        .map(|cuts| Share {
            start: cuts[0],
            end: cuts[1],
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chunks of each item, as the shares have them: whole items have all of theirs.
    fn dealt(shares: &[Share], chunks: &[usize]) -> Vec<(usize, Range<usize>)> {
        let of_share = |share: &Share| {
            let whole = share.whole().map(|item| (item, 0..chunks[item]));
            let split = share
                .split()
                .map(|(item, range)| (item, range.start..range.end.min(chunks[item])));
            let mut dealt: Vec<_> = whole.chain(split).collect();
            dealt.sort_by_key(|(item, range)| (*item, range.start));
            dealt
        };
        shares.iter().flat_map(of_share).collect()
    }

    #[test]
    fn dealing_covers_all_chunks_in_order() {
        for members in 1..5 {
            for lengths in [
                vec![],
                vec![7],
                vec![1, 1, 1, 1],
                vec![100, 1, 1],
                vec![1, 2, 3, 4, 5, 6],
                vec![8000],
                vec![256, 257],
                vec![2000, 2000, 2000],
                vec![10, 3000, 255, 700],
            ] {
                let shares = deal(lengths.iter().copied(), members);
                assert_eq!(shares.len(), members);
                let chunks: Vec<usize> = lengths.iter().map(|length| (*length as usize).div_ceil(256)).collect();
                let mut wanted = (0, 0);
                for (item, range) in dealt(&shares, &chunks) {
                    assert_eq!((item, range.start), wanted, "{lengths:?} over {members}: {shares:?}");
                    wanted = if range.end == chunks[item] {
                        (item + 1, 0)
                    } else {
                        (item, range.end)
                    };
                }
                assert_eq!(wanted, (lengths.len(), 0), "{lengths:?} over {members}: {shares:?}");
            }
        }
    }

    #[test]
    fn three_long_heads_are_shared_by_two() {
        let positions = |share: &Share| {
            let split: usize = share.split().map(|(_, chunks)| chunks.end.min(16) - chunks.start).sum();
            split + 16 * share.whole().len()
        };
        let shares = deal([4096; 3].into_iter(), 2);
        assert_eq!(shares.iter().map(positions).collect::<Vec<_>>(), [24, 24]);
    }
}
