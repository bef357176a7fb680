//! Tiles of F16 and F32 weights with f32 activations: a chain per sub-block, and the chains' sum in order.

use super::{
    LANES, SUB_BLOCK,
    element::Element,
    matmul::{TileFormat, TileOfUnit},
    simd::{Simd, in_order},
};

/// Tiles of weights of type E.
pub(super) struct FloatTile<E>(std::marker::PhantomData<E>);

impl<E: Element> TileFormat for FloatTile<E> {
    type Activations<'a> = &'a [[f32; LANES]];

    #[inline(always)]
    fn tile<S: Simd, const N: usize>(
        s: S,
        group: &[u8],
        unit: TileOfUnit,
        x: &[[f32; LANES]],
        tokens: usize,
        first_token: usize,
    ) -> [S::F; N] {
        let bytes = E::BYTES * SUB_BLOCK * LANES;
        let mut sums = [s.splat(0.0); N];
        for pair in 0..unit.sub_blocks / 2 {
            let start = 2 * pair * bytes;
            let record = &group[start..][..2 * bytes];
            unit.ahead.fetch(s, record, start);
            let at = 2 * (unit.first_sub_block + 2 * pair) * tokens + first_token;
            if N == 1 {
                add_float_pair::<S, E>(s, record, x, tokens, at, &mut sums[0]);
            } else {
                add_float_sub_block::<S, E, N, 2>(s, record, 0, x, tokens, at, &mut sums);
                add_float_sub_block::<S, E, N, 2>(s, record, 1, x, tokens, at + 2 * tokens, &mut sums);
            }
        }
        if !unit.sub_blocks.is_multiple_of(2) {
            let record = &group[(unit.sub_blocks - 1) * bytes..][..bytes];
            let at = 2 * (unit.first_sub_block + unit.sub_blocks - 1) * tokens + first_token;
            add_float_sub_block::<S, E, N, 1>(s, record, 0, x, tokens, at, &mut sums);
        }
        sums
    }
}

/// Adds the chain of sub-block `index`; `at` is the place of its first panel in x.
#[inline(always)]
fn add_float_sub_block<S: Simd, E: Element, const N: usize, const IN_RECORD: usize>(
    s: S,
    record: &[u8],
    index: usize,
    x: &[[f32; LANES]],
    tokens: usize,
    at: usize,
    sums: &mut [S::F; N],
) {
    let mut inner = [s.splat(0.0); N];
    for half in 0..2 {
        let x = x[at + half * tokens..]
            .first_chunk::<N>()
            .expect("columns of each token");
        for k in 0..LANES {
            let at = ((half * LANES + k) * IN_RECORD + index) * LANES * E::BYTES;
            let weights = E::load(s, record, at);
            for n in 0..N {
                inner[n] = s.fma(weights, s.splat(x[n][k]), inner[n]);
            }
        }
    }
    for n in 0..N {
        sums[n] = s.add(sums[n], inner[n]);
    }
}

/// One token: the chains of a pair of sub-blocks side by side, as they lie in the record.
#[inline(always)]
fn add_float_pair<S: Simd, E: Element>(
    s: S,
    record: &[u8],
    x: &[[f32; LANES]],
    tokens: usize,
    at: usize,
    sum: &mut S::F,
) {
    let mut inner = [s.splat(0.0); 2];
    for half in 0..2 {
        let (x0, x1) = (&x[at + half * tokens], &x[at + (2 + half) * tokens]);
        for k in 0..LANES {
            let at = 2 * (half * LANES + k) * LANES * E::BYTES;
            in_order();
            let weights = E::load_pair(s, record, at);
            inner[0] = s.fma(weights[0], s.splat(x0[k]), inner[0]);
            inner[1] = s.fma(weights[1], s.splat(x1[k]), inner[1]);
        }
    }
    *sum = s.add(s.add(*sum, inner[0]), inner[1]);
}
