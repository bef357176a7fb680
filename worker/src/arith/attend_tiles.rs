//! The two loops of attention: scores of some queries with some positions, and values weighted by them.
//!
//! Whatever the tile, each score is a chain over head_dim, and each output one over the positions of a chunk, in their order.

use std::marker::PhantomData;

use super::{
    KvView, LANES,
    cell_element::{CellElement, PlaneShape},
    reference::ATTENTION_CHUNK,
    simd::{Kernel, Simd},
};

pub(super) const CHUNK_VECTORS: usize = ATTENTION_CHUNK / LANES;
/// Vectors of positions, or of head_dim, in a tile.
pub(super) const TILE_VECTORS: usize = 4;
/// Queries in a tile.
pub(super) const TILE_QUERIES: usize = 6;

/// The first query of each tile and how many it has: as few tiles as there can be, of about the same size.
#[inline(always)]
pub(super) fn tiles(queries: usize) -> impl Iterator<Item = (usize, usize)> {
    let tiles = queries.div_ceil(TILE_QUERIES);
    (0..tiles).map(move |tile| {
        let first = queries * tile / tiles;
        (first, queries * (tile + 1) / tiles - first)
    })
}

/// What is done with V vectors and Q queries over cells of E.
pub(super) trait Tile {
    fn run<S: Simd, E: CellElement, const V: usize, const Q: usize>(self, s: S);
}

/// Runs a tile of so many queries, 1 to [`TILE_QUERIES`].
#[inline(always)]
pub(super) fn run_tile<S: Simd, E: CellElement, const V: usize>(s: S, queries: usize, tile: impl Tile) {
    match queries {
        1 => s.call(Shaped::<_, E, V, 1>(tile, PhantomData)),
        2 => s.call(Shaped::<_, E, V, 2>(tile, PhantomData)),
        3 => s.call(Shaped::<_, E, V, 3>(tile, PhantomData)),
        4 => s.call(Shaped::<_, E, V, 4>(tile, PhantomData)),
        5 => s.call(Shaped::<_, E, V, 5>(tile, PhantomData)),
        _ => s.call(Shaped::<_, E, V, TILE_QUERIES>(tile, PhantomData)),
    }
}

struct Shaped<T, E, const V: usize, const Q: usize>(T, PhantomData<E>);

impl<T: Tile, E: CellElement, const V: usize, const Q: usize> Kernel for Shaped<T, E, V, Q> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.0.run::<S, E, V, Q>(s);
    }
}

/// Scores of 16 V positions of a block.
pub(super) struct Scores<'a> {
    /// `[queries][head_dim]`, from the first one of the tile
    pub q: &'a [f32],
    pub keys: &'a [u8],
    pub shape: PlaneShape,
    /// Of the first position in its block.
    pub offset: usize,
    /// Of the queries: `[queries][256]`
    pub out: &'a mut [[[f32; LANES]; CHUNK_VECTORS]],
    /// Of the first position in the chunk, in vectors.
    pub vector: usize,
    /// Whether to ask for the values of these positions meanwhile.
    pub fetches_values: bool,
}

impl Tile for Scores<'_> {
    #[inline(always)]
    fn run<S: Simd, E: CellElement, const V: usize, const Q: usize>(self, s: S) {
        let PlaneShape { head_dim, block_size } = self.shape;
        let scale = s.splat(1.0 / (head_dim as f32).sqrt());
        let mut q = [&[][..]; Q];
        for i in 0..Q {
            q[i] = &self.q[i * head_dim..][..head_dim];
        }
        let mut dots = [[s.splat(0.0); V]; Q];
        for d in 0..head_dim {
            if self.fetches_values {
                // V lies behind K, in a plane of the same size.
                let at = self.keys.len() + (d * block_size + self.offset) * E::BYTES;
                prefetch_lines(s, self.keys.as_ptr().wrapping_add(at), V * LANES * E::BYTES);
            }
            let k = E::keys::<S, V>(s, self.keys, self.shape, d, self.offset);
            for i in 0..Q {
                let q = s.splat(q[i][d]);
                for v in 0..V {
                    dots[i][v] = s.fma(q, k[v], dots[i][v]);
                }
            }
        }
        for i in 0..Q {
            let out = &mut self.out[i][self.vector..][..V];
            for v in 0..V {
                s.store(s.mul(dots[i][v], scale), &mut out[v]);
            }
        }
    }
}

/// V vectors of head_dim, weighted and added up over the positions of a chunk.
pub(super) struct Values<'a> {
    /// `[queries][256]`, from the first one of the tile
    pub weights: &'a [[[f32; LANES]; CHUNK_VECTORS]],
    /// Of the chunk that each query attends to; as many as there are queries, none more than the next one's.
    pub positions: &'a [usize],
    pub kv: &'a KvView<'a>,
    /// Of the chunk and, where they are to be asked for meanwhile, of the next one.
    pub blocks: &'a [u32],
    pub fetches_keys: bool,
    pub shape: PlaneShape,
    /// `[queries][head_dim / 16]`
    pub out: &'a mut [[f32; LANES]],
    /// The first one of head_dim.
    pub vector: usize,
}

impl Tile for Values<'_> {
    #[inline(always)]
    fn run<S: Simd, E: CellElement, const V: usize, const Q: usize>(self, s: S) {
        let PlaneShape { head_dim, block_size } = self.shape;
        let weights = self.weights.first_chunk::<Q>().expect("weights of each query");
        let positions = self.positions.first_chunk::<Q>().expect("positions of each query");
        let mut out = [[s.splat(0.0); V]; Q];
        let of_all = positions[0];
        for first in (0..of_all).step_by(block_size) {
            let block = first / block_size;
            let values = self.kv.values(self.blocks[block]);
            let next = self.blocks.get(block + ATTENTION_CHUNK / block_size);
            let next_keys = next
                .filter(|_| self.fetches_keys)
                .map(|next| self.kv.keys(*next).as_ptr());
            let row_bytes = head_dim * E::BYTES;
            for p in first..of_all.min(first + block_size) {
                if let Some(next_keys) = next_keys {
                    prefetch_lines(s, next_keys.wrapping_add((p - first) * row_bytes), row_bytes);
                }
                let values = E::values::<S, V>(s, values, self.shape, p - first, self.vector);
                for i in 0..Q {
                    add_weighted(s, weights[i].as_flattened()[p], &values, &mut out[i]);
                }
            }
        }
        // What only the queries of later tokens attend to. Zeros for the others would not do: a zero times what is not finite
        // is not a zero.
        for p in of_all..positions[Q - 1] {
            let values = self.kv.values(self.blocks[p / block_size]);
            let values = E::values::<S, V>(s, values, self.shape, p % block_size, self.vector);
            for i in 0..Q {
                if p < positions[i] {
                    add_weighted(s, weights[i].as_flattened()[p], &values, &mut out[i]);
                }
            }
        }
        for i in 0..Q {
            let of_query = &mut self.out[i * head_dim / LANES + self.vector..][..V];
            for v in 0..V {
                s.store(out[i][v], &mut of_query[v]);
            }
        }
    }
}

#[inline(always)]
fn add_weighted<S: Simd, const V: usize>(s: S, weight: f32, values: &[S::F; V], sums: &mut [S::F; V]) {
    let weight = s.splat(weight);
    for v in 0..V {
        sums[v] = s.fma(weight, values[v], sums[v]);
    }
}

#[inline(always)]
fn prefetch_lines<S: Simd>(s: S, start: *const u8, bytes: usize) {
    for line in (0..bytes).step_by(64) {
        s.prefetch(start.wrapping_add(line));
    }
}
