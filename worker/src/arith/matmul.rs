//! Products of packed weights with a step's activations.
//!
//! One kernel serves every shape: a tile of a row group x some tokens, whose sums stay in registers over all columns. Whatever
//! the tile, each sum is the chain that `reference::dot` defines, so the number of tokens and the share of rows change no bit.

use std::ops::Range;

use kvasir_model::WeightType;

use super::{
    Int8Rows, Kernels, LANES, PackedMatrix, SUB_BLOCK,
    element::{BF16, F16, F32},
    float_tile::FloatTile,
    int8_tile::{Int8Tile, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0},
    k_tile::{KTile, Q4K, Q5K, Q6K},
    panels::{vectors, vectors_mut},
    simd::{Kernel, Simd},
};

/// Activations of a step, as `PackedMatrix::wants_int8` asks for them.
#[derive(Clone, Copy, Debug)]
pub enum ActivationsRef<'a> {
    /// panels: `[cols / 16][tokens][16]`
    F32 {
        panels: &'a [f32],
        cols: usize,
        tokens: usize,
    },
    Int8(&'a Int8Rows),
}

impl ActivationsRef<'_> {
    pub fn cols(&self) -> usize {
        match self {
            Self::F32 { cols, .. } => *cols,
            Self::Int8(rows) => rows.cols(),
        }
    }

    pub fn tokens(&self) -> usize {
        match self {
            Self::F32 { tokens, .. } => *tokens,
            Self::Int8(rows) => rows.tokens(),
        }
    }

    fn check(&self, units: &[UnitColumns<'_>], groups: &Range<usize>) {
        if let Self::F32 { panels, cols, tokens } = self {
            assert_eq!(panels.len(), cols * tokens);
        }
        let weight_type = units[0].weights.weight_type();
        for UnitColumns { weights, first_col } in units {
            assert_eq!(weights.weight_type(), weight_type, "units of one matrix have one type");
            assert_eq!(
                weights.wants_int8(),
                matches!(self, Self::Int8(_)),
                "activations for {weights:?}"
            );
            assert!(first_col.is_multiple_of(SUB_BLOCK) && first_col + weights.cols() <= self.cols());
            assert!(groups.end <= weights.num_groups());
        }
    }
}

/// The weights of one unit of a row-parallel matrix, and where its columns start in the activations (a multiple of 32).
#[derive(Clone, Copy, Debug)]
pub struct UnitColumns<'a> {
    pub weights: &'a PackedMatrix,
    pub first_col: usize,
}

impl Kernels {
    /// Column-parallel outputs: `out = weights * x` for the given row groups.
    ///
    /// x: all of the weights' columns; out: `[groups.len()][tokens][16]`.
    pub fn matmul(&self, weights: &PackedMatrix, groups: Range<usize>, x: ActivationsRef<'_>, out: &mut [f32]) {
        assert_eq!(weights.cols(), x.cols());
        assert_eq!(out.len(), groups.len() * x.tokens() * LANES);
        self.multiply(
            &[UnitColumns { weights, first_col: 0 }],
            groups,
            x,
            Sink::Store(vectors_mut(out)),
        );
    }

    /// Row-parallel outputs: the sums of the units' partials, each rounded at 2^-30, for the given row groups.
    ///
    /// sums: `[groups.len()][tokens][16]`, whatever was in there. Sets `poison[token]` where a partial is not finite or at
    /// least 2^20 in size (it then adds 0); never clears one. The sums of several calls add up to that of one with all units.
    pub fn matmul_partials(
        &self,
        units: &[UnitColumns<'_>],
        groups: Range<usize>,
        x: ActivationsRef<'_>,
        sums: &mut [i64],
        poison: &mut [bool],
    ) {
        assert_eq!(sums.len(), groups.len() * x.tokens() * LANES);
        assert_eq!(poison.len(), x.tokens());
        if units.is_empty() {
            return sums.fill(0);
        }
        self.multiply(units, groups, x, Sink::SumFixed(sums.as_chunks_mut().0, poison));
    }

    fn multiply(&self, units: &[UnitColumns<'_>], groups: Range<usize>, x: ActivationsRef<'_>, sink: Sink<'_>) {
        x.check(units, &groups);
        let tokens = x.tokens();
        let weight_type = units[0].weights.weight_type();
        let work = Work {
            units,
            groups,
            tokens,
            sink,
        };
        match x {
            ActivationsRef::F32 { panels, .. } => self.multiply_floats(weight_type, work, vectors(panels)),
            ActivationsRef::Int8(x) => self.multiply_quantized(weight_type, work, x),
        }
    }

    fn multiply_floats(&self, weight_type: WeightType, work: Work<'_>, x: &[[f32; LANES]]) {
        match weight_type {
            WeightType::F32 => self.run(Multiply::<FloatTile<F32>> { work, x }),
            WeightType::F16 => self.run(Multiply::<FloatTile<F16>> { work, x }),
            WeightType::BF16 => self.run(Multiply::<FloatTile<BF16>> { work, x }),
            other => unreachable!("activations for weights of type {other} were checked"),
        }
    }

    fn multiply_quantized(&self, weight_type: WeightType, work: Work<'_>, x: &Int8Rows) {
        match weight_type {
            WeightType::Q8_0 => self.run(Multiply::<Int8Tile<Q8_0>> { work, x }),
            WeightType::Q4_0 => self.run(Multiply::<Int8Tile<Q4_0>> { work, x }),
            WeightType::Q4_1 => self.run(Multiply::<Int8Tile<Q4_1>> { work, x }),
            WeightType::Q5_0 => self.run(Multiply::<Int8Tile<Q5_0>> { work, x }),
            WeightType::Q5_1 => self.run(Multiply::<Int8Tile<Q5_1>> { work, x }),
            WeightType::Q4K => self.run(Multiply::<KTile<Q4K>> { work, x }),
            WeightType::Q5K => self.run(Multiply::<KTile<Q5K>> { work, x }),
            WeightType::Q6K => self.run(Multiply::<KTile<Q6K>> { work, x }),
            other => unreachable!("activations for weights of type {other} were checked"),
        }
    }
}

/// What to multiply, and where to put it.
struct Work<'a> {
    units: &'a [UnitColumns<'a>],
    groups: Range<usize>,
    tokens: usize,
    sink: Sink<'a>,
}

/// Where results go; both are `[groups][tokens][16]`.
enum Sink<'a> {
    Store(&'a mut [[f32; LANES]]),
    /// Over units: the first one replaces what was there.
    SumFixed(&'a mut [[i64; LANES]], &'a mut [bool]),
}

/// The columns of a tile.
#[derive(Clone, Copy)]
pub(super) struct TileOfUnit {
    pub sub_blocks: usize,
    /// Where they start in x.
    pub first_sub_block: usize,
    /// Where they start in a stored block, in sub-blocks.
    pub phase: usize,
    /// What is read from memory meanwhile.
    pub ahead: Ahead,
}

/// Where in a group memory further on is asked for, while a tile is computed. The hardware sees no stream coming where much is
/// computed between the loads, or forgets it at the end of a page.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    /// In bytes.
    start: usize,
    end: usize,
}

impl Ahead {
    const NOWHERE: Self = Self { start: 0, end: 0 };

    /// At the record that begins `start` bytes into its group.
    #[inline(always)]
    pub fn fetch<S: Simd>(self, s: S, record: &[u8], start: usize) {
        if (self.start..self.end).contains(&start) {
            for line in (0..record.len()).step_by(LINE) {
                s.prefetch(record.as_ptr().wrapping_add(DISTANCE + line));
            }
        }
    }
}

/// Of memory, in bytes.
const LINE: usize = 64;
/// From a byte to the one that is asked for when it is read: the best of 1 to 32 KiB, for most types.
const DISTANCE: usize = 8 << 10;

/// A way to compute tiles from one packed format.
pub(super) trait TileFormat {
    type Activations<'a>: Copy;

    /// The dots of a row group with N tokens from `first_token`.
    ///
    /// group: its records
    fn tile<S: Simd, const N: usize>(
        s: S,
        group: &[u8],
        unit: TileOfUnit,
        x: Self::Activations<'_>,
        tokens: usize,
        first_token: usize,
    ) -> [S::F; N];
}

struct Multiply<'a, T: TileFormat> {
    work: Work<'a>,
    x: T::Activations<'a>,
}

impl<T: TileFormat> Kernel for Multiply<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        if self.work.tokens == 1 {
            return self.stream(s);
        }
        for group in self.work.groups.clone() {
            self.all_tokens(s, group);
        }
    }
}

impl<T: TileFormat> Multiply<'_, T> {
    /// One token: each unit's weights are read from end to end, as they lie in memory. The hardware sees that coming, and asking
    /// for more besides would take a third of the speed.
    #[inline(always)]
    fn stream<S: Simd>(&mut self, s: S) {
        for unit in 0..self.work.units.len() {
            for group in self.work.groups.clone() {
                self.tile::<S, 1>(s, unit, group, 0, Ahead::NOWHERE);
            }
        }
    }

    /// Many tokens: the weights of a row group stay in the cache while all tokens pass.
    #[inline(always)]
    fn all_tokens<S: Simd>(&mut self, s: S, group: usize) {
        let mut token = 0;
        if S::TILE_TOKENS >= 8 {
            token = self.tokens_by::<S, 8>(s, group, token);
        }
        if S::TILE_TOKENS >= 6 {
            token = self.tokens_by::<S, 6>(s, group, token);
        }
        if S::TILE_TOKENS >= 4 {
            token = self.tokens_by::<S, 4>(s, group, token);
        }
        if S::TILE_TOKENS >= 2 {
            token = self.tokens_by::<S, 2>(s, group, token);
        }
        self.tokens_by::<S, 1>(s, group, token);
    }

    /// Tiles of N tokens while they fit; returns the first token left.
    #[inline(always)]
    fn tokens_by<S: Simd, const N: usize>(&mut self, s: S, group: usize, mut token: usize) -> usize {
        while token + N <= self.work.tokens {
            for unit in 0..self.work.units.len() {
                // The tiles of a group share what is asked for.
                let bytes = self.work.units[unit].weights.group(group).len();
                let ahead = Ahead {
                    start: bytes * token / self.work.tokens,
                    end: bytes * (token + N) / self.work.tokens,
                };
                self.tile::<S, N>(s, unit, group, token, ahead);
            }
            token += N;
        }
        token
    }

    #[inline(always)]
    fn tile<S: Simd, const N: usize>(&mut self, s: S, unit: usize, group: usize, token: usize, ahead: Ahead) {
        let UnitColumns { weights, first_col } = self.work.units[unit];
        let columns = TileOfUnit {
            sub_blocks: weights.cols() / SUB_BLOCK,
            first_sub_block: first_col / SUB_BLOCK,
            phase: weights.phase(),
            ahead,
        };
        let sums = T::tile::<S, N>(s, weights.group(group), columns, self.x, self.work.tokens, token);
        let at = (group - self.work.groups.start) * self.work.tokens + token;
        match &mut self.work.sink {
            Sink::Store(out) => {
                let out = out[at..].first_chunk_mut::<N>().expect("a place per token");
                for n in 0..N {
                    s.store(sums[n], &mut out[n]);
                }
            }
            Sink::SumFixed(out, poison) => {
                let out = out[at..].first_chunk_mut::<N>().expect("a place per token");
                if unit == 0 {
                    *out = [[0; LANES]; N];
                }
                if !s.add_fixed_in_bounds(&sums, out) {
                    let poison = poison[token..].first_chunk_mut::<N>().expect("a mark per token");
                    for n in 0..N {
                        poison[n] |= !s.add_fixed(sums[n], &mut out[n]);
                    }
                }
            }
        }
    }
}
