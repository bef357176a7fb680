//! Attention of a token, or of some that follow each other, over one KV head, for all query heads that share it.
//!
//! Scores run in lanes of positions over the transposed K, outputs in lanes of head_dim over V; each vector of K and V is
//! loaded once for up to six queries: heads, of one token or several. Positions are taken in absolute chunks of 256, whatever
//! the block size: a chunk is finished alone and then merged, so the same token gives the same bits in a prefill, a decode and
//! a replay, and also if several threads share the chunks.

use std::{marker::PhantomData, ops::Range};

use kvasir_kv::KvDtype;

use super::{
    Kernels, KvView, LANES,
    attend_tiles::{CHUNK_VECTORS, Scores, TILE_QUERIES, TILE_VECTORS, Values, run_tile, tiles},
    cell_element::{CellElement, PlaneShape, Q8_0},
    element::{F16, F32},
    exp::exp,
    panels::vectors_mut,
    reference::ATTENTION_CHUNK,
    simd::{Kernel, Simd},
};

/// What one call needs besides its arguments. Reused from call to call without allocation.
#[derive(Debug, Default)]
pub struct AttendScratch {
    /// `[queries][256]`: scores of a chunk, then their exponentials
    scores: Vec<[[f32; LANES]; CHUNK_VECTORS]>,
    /// `[queries][head_dim / 16]`: the output of a chunk
    chunk_out: Vec<[f32; LANES]>,
    /// `[queries]`: of the chunk that each attends to
    positions: Vec<usize>,
    /// `[queries]`: of the chunk
    chunk: Vec<Softmax>,
    /// `[queries]`: of the chunks so far
    merged: Vec<Softmax>,
}

/// What some of the chunks of a token's positions give, before they are merged.
#[derive(Debug, Default)]
pub struct AttendedChunks {
    /// `[chunks][queries][head_dim / 16]`
    values: Vec<[f32; LANES]>,
    /// `[chunks][queries]`
    softmaxes: Vec<Softmax>,
}

/// A running softmax: its maximum, and the sum of exponentials relative to it.
#[derive(Clone, Copy, Debug, Default)]
struct Softmax {
    max: f32,
    sum: f32,
}

impl AttendScratch {
    pub fn new() -> Self {
        Self::default()
    }

    fn resize(&mut self, queries: usize, head_dim: usize) {
        self.scores.resize(queries, [[0.0; LANES]; CHUNK_VECTORS]);
        self.chunk_out.resize(queries * head_dim / LANES, [0.0; LANES]);
        self.positions.resize(queries, 0);
        self.chunk.resize(queries, Softmax::default());
        self.merged.resize(queries, Softmax::default());
    }
}

impl Kernels {
    /// Tokens that [`Kernels::attend`] is quickest with at once, where so many query heads share a KV head.
    pub fn tokens_to_attend(group_size: usize) -> usize {
        TILE_QUERIES.div_ceil(group_size)
    }

    /// Attends from the tokens at some positions of a sequence, each to all positions up to its own.
    ///
    /// q, out: `[tokens][queries][head_dim]`, the query heads that share this KV head; tokens: positions in one chunk of
    /// [`ATTENTION_CHUNK`]; blocks: the sequence's block of each `block_size` positions, as places in the slab. A score that
    /// is NaN or +infinity gives NaN in its whole query head.
    pub fn attend(
        &self,
        q: &[f32],
        kv: &KvView<'_>,
        blocks: &[u32],
        tokens: Range<usize>,
        out: &mut [f32],
        scratch: &mut AttendScratch,
    ) {
        assert_eq!(q.len(), out.len());
        self.run_attend(Attend {
            q,
            kv,
            blocks,
            chunks: 0..tokens.end.div_ceil(ATTENTION_CHUNK),
            tokens,
            sink: Sink::Merge(out),
            scratch,
            element: PhantomData,
        });
    }

    /// The share of these chunks of 256 positions in [`Kernels::attend`] of the token at `num_positions - 1`, which
    /// [`Kernels::merge_chunks`] puts together.
    pub fn attend_chunks(
        &self,
        q: &[f32],
        kv: &KvView<'_>,
        blocks: &[u32],
        num_positions: usize,
        chunks: Range<usize>,
        scratch: &mut AttendScratch,
    ) -> AttendedChunks {
        let mut attended = AttendedChunks::default();
        self.run_attend(Attend {
            q,
            kv,
            blocks,
            tokens: num_positions - 1..num_positions,
            chunks,
            sink: Sink::Keep(&mut attended),
            scratch,
            element: PhantomData,
        });
        attended
    }

    /// What `attend` gives, from the shares of all chunks, in their order.
    ///
    /// out: `[queries][head_dim]`
    pub fn merge_chunks<'a>(
        &self,
        shares: impl Iterator<Item = &'a AttendedChunks> + Clone,
        head_dim: usize,
        out: &mut [f32],
    ) {
        self.run(MergeChunks { shares, head_dim, out });
    }

    fn run_attend(&self, attend: Attend<'_, F32>) {
        let (head_dim, block_size) = (attend.head_dim(), attend.block_size());
        let Attend {
            q,
            blocks,
            ref tokens,
            ref chunks,
            ..
        } = attend;
        assert!(head_dim.is_multiple_of(LANES) && q.len().is_multiple_of(head_dim * tokens.len()));
        assert!(!tokens.is_empty() && tokens.end <= blocks.len() * block_size);
        assert_eq!(tokens.start / ATTENTION_CHUNK, (tokens.end - 1) / ATTENTION_CHUNK);
        assert!(chunks.end <= tokens.end.div_ceil(ATTENTION_CHUNK));
        attend.scratch.resize(q.len() / head_dim, head_dim);
        match attend.kv.layout().dtype() {
            KvDtype::F32 => self.run::<Attend<'_, F32>>(attend),
            KvDtype::F16 => self.run::<Attend<'_, F16>>(attend.of()),
            KvDtype::Q8_0 => self.run::<Attend<'_, Q8_0>>(attend.of()),
        }
    }
}

/// Where the chunks go.
enum Sink<'a> {
    /// `[queries][head_dim]`, of all chunks together
    Merge(&'a mut [f32]),
    Keep(&'a mut AttendedChunks),
}

struct Attend<'a, E> {
    q: &'a [f32],
    kv: &'a KvView<'a>,
    blocks: &'a [u32],
    tokens: Range<usize>,
    chunks: Range<usize>,
    sink: Sink<'a>,
    scratch: &'a mut AttendScratch,
    element: PhantomData<E>,
}

impl<'a> Attend<'a, F32> {
    /// The same over cells of another element.
    fn of<E>(self) -> Attend<'a, E> {
        Attend {
            q: self.q,
            kv: self.kv,
            blocks: self.blocks,
            tokens: self.tokens,
            chunks: self.chunks,
            sink: self.sink,
            scratch: self.scratch,
            element: PhantomData,
        }
    }
}

impl<E: CellElement> Kernel for Attend<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for chunk in self.chunks.clone() {
            let start = chunk * ATTENTION_CHUNK;
            self.scores(s, start);
            for query in 0..self.scratch.merged.len() {
                let positions = self.positions(start, query);
                self.scratch.positions[query] = positions;
                self.scratch.chunk[query] = self.softmax(s, query, positions);
            }
            self.weighted_values(s, start);
            self.finish_chunk(s, chunk == 0);
        }
        if let Sink::Merge(out) = self.sink {
            let vectors = self.kv.layout().head_dim() as usize / LANES;
            let queries = vectors_mut(out).chunks_exact_mut(vectors);
            for (out, merged) in queries.zip(&self.scratch.merged) {
                divide(s, out, merged.sum);
            }
        }
    }
}

struct MergeChunks<'o, I> {
    shares: I,
    head_dim: usize,
    out: &'o mut [f32],
}

impl<'a, I: Iterator<Item = &'a AttendedChunks> + Clone> Kernel for MergeChunks<'_, I> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let vectors = self.head_dim / LANES;
        let queries = self.out.len() / self.head_dim;
        for (query, out) in vectors_mut(self.out).chunks_exact_mut(vectors).enumerate() {
            let mut merged = None;
            for share in self.shares.clone() {
                let values = share.values.chunks_exact(vectors).skip(query).step_by(queries);
                let softmaxes = share.softmaxes.iter().skip(query).step_by(queries);
                for (values, softmax) in values.zip(softmaxes) {
                    merged = Some(merge(s, out, merged, values, *softmax));
                }
            }
            divide(s, out, merged.unwrap_or_default().sum);
        }
    }
}

/// Merges a chunk's values and softmax into what the earlier chunks gave, if there were any.
#[inline(always)]
fn merge<S: Simd>(
    s: S,
    out: &mut [[f32; LANES]],
    merged: Option<Softmax>,
    values: &[[f32; LANES]],
    chunk: Softmax,
) -> Softmax {
    let Some(merged) = merged else {
        out.copy_from_slice(values);
        return chunk;
    };
    let max = if chunk.max > merged.max { chunk.max } else { merged.max };
    let a = exp(s, s.splat(merged.max - max));
    let b = exp(s, s.splat(chunk.max - max));
    for (out, values) in out.iter_mut().zip(values) {
        s.store(s.fma(s.load(out), a, s.mul(s.load(values), b)), out);
    }
    let sum = s.fma(s.splat(merged.sum), a, s.mul(s.splat(chunk.sum), b));
    Softmax {
        max,
        sum: first_lane(s, sum),
    }
}

#[inline(always)]
fn divide<S: Simd>(s: S, out: &mut [[f32; LANES]], by: f32) {
    for out in out {
        s.store(s.div(s.load(out), s.splat(by)), out);
    }
}

impl<E: CellElement> Attend<'_, E> {
    #[inline(always)]
    fn head_dim(&self) -> usize {
        self.kv.layout().head_dim() as usize
    }

    #[inline(always)]
    fn block_size(&self) -> usize {
        self.kv.layout().block_size() as usize
    }

    #[inline(always)]
    fn shape(&self) -> PlaneShape {
        PlaneShape {
            head_dim: self.head_dim(),
            block_size: self.block_size(),
        }
    }

    /// Positions of the chunk from `start` that a query attends to. Those of later tokens have as many or more.
    #[inline(always)]
    fn positions(&self, start: usize, query: usize) -> usize {
        let token = self.tokens.start + query * self.tokens.len() / self.scratch.merged.len();
        ATTENTION_CHUNK.min(token + 1 - start)
    }

    /// Scores of a chunk, for all queries; also where only the later tokens attend to.
    #[inline(always)]
    fn scores<S: Simd>(&mut self, s: S, start: usize) {
        let positions = ATTENTION_CHUNK.min(self.tokens.end - start);
        let block_size = self.block_size();
        let per_tile = (block_size / LANES).min(TILE_VECTORS);
        for first in (0..positions).step_by(per_tile * LANES) {
            let position = start + first;
            let keys = self.kv.keys(self.blocks[position / block_size]);
            let (offset, vector) = (position % block_size, first / LANES);
            let vectors = (positions - first).div_ceil(LANES).next_power_of_two();
            match per_tile.min(vectors) {
                1 => self.scores_tile::<S, 1>(s, keys, offset, vector),
                2 => self.scores_tile::<S, 2>(s, keys, offset, vector),
                _ => self.scores_tile::<S, TILE_VECTORS>(s, keys, offset, vector),
            }
        }
    }

    #[inline(always)]
    fn scores_tile<S: Simd, const V: usize>(&mut self, s: S, keys: &[u8], offset: usize, vector: usize) {
        let shape = self.shape();
        for (query, queries) in tiles(self.scratch.merged.len()) {
            let scores = Scores {
                q: &self.q[query * shape.head_dim..],
                keys,
                shape,
                offset,
                out: &mut self.scratch.scores[query..],
                vector,
                fetches_values: query == 0,
            };
            run_tile::<S, E, V>(s, queries, scores);
        }
    }

    /// Turns a chunk's scores into exponentials relative to their maximum.
    #[inline(always)]
    fn softmax<S: Simd>(&mut self, s: S, query: usize, positions: usize) -> Softmax {
        let scores = &mut self.scratch.scores[query];
        // Lanes past the end hold whatever the cells held: -infinity keeps them out of the maximum and makes them exact zeros.
        scores.as_flattened_mut()[positions..positions.next_multiple_of(LANES)].fill(f32::NEG_INFINITY);
        let scores = &mut scores[..positions.div_ceil(LANES)];
        let mut max = s.splat(f32::NEG_INFINITY);
        for scores in scores.iter() {
            max = s.max(s.load(scores), max);
        }
        let max = s.max_lane(max);
        let mut sum = s.splat(0.0);
        for scores in scores {
            let e = exp(s, s.sub(s.load(scores), s.splat(max)));
            sum = s.add(sum, e);
            s.store(e, scores);
        }
        Softmax { max, sum: s.sum(sum) }
    }

    /// The values of a chunk, weighted by the exponentials of all queries.
    #[inline(always)]
    fn weighted_values<S: Simd>(&mut self, s: S, start: usize) {
        let vectors = self.head_dim() / LANES;
        let tiled = vectors / TILE_VECTORS * TILE_VECTORS;
        for vector in (0..tiled).step_by(TILE_VECTORS) {
            self.values_tile::<S, TILE_VECTORS>(s, start, vector);
        }
        for vector in tiled..vectors {
            self.values_tile::<S, 1>(s, start, vector);
        }
    }

    #[inline(always)]
    fn values_tile<S: Simd, const V: usize>(&mut self, s: S, start: usize, vector: usize) {
        let shape = self.shape();
        for (query, queries) in tiles(self.scratch.merged.len()) {
            let values = Values {
                weights: &self.scratch.scores[query..],
                positions: &self.scratch.positions[query..],
                kv: self.kv,
                blocks: &self.blocks[start / shape.block_size..],
                fetches_keys: vector == 0 && query == 0,
                shape,
                out: &mut self.scratch.chunk_out[query * shape.head_dim / LANES..],
                vector,
            };
            run_tile::<S, E, V>(s, queries, values);
        }
    }

    /// Merges the chunk into the earlier ones, or keeps it as it is.
    #[inline(always)]
    fn finish_chunk<S: Simd>(&mut self, s: S, is_first: bool) {
        let vectors = self.head_dim() / LANES;
        let AttendScratch {
            chunk_out,
            chunk,
            merged,
            ..
        } = &mut *self.scratch;
        match &mut self.sink {
            Sink::Keep(attended) => {
                attended.values.extend_from_slice(chunk_out);
                attended.softmaxes.extend_from_slice(chunk);
            }
            Sink::Merge(out) => {
                let queries = vectors_mut(out).chunks_exact_mut(vectors);
                let values = chunk_out.chunks_exact(vectors);
                for (((out, values), chunk), merged) in queries.zip(values).zip(chunk).zip(merged) {
                    let earlier = (!is_first).then_some(*merged);
                    *merged = merge(s, out, earlier, values, *chunk);
                }
            }
        }
    }
}

#[inline(always)]
fn first_lane<S: Simd>(s: S, x: S::F) -> f32 {
    let mut lanes = [0.0; LANES];
    s.store(x, &mut lanes);
    lanes[0]
}
