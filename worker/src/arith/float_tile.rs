//! Tiles of F16 and F32 weights with f32 activations: a chain per sub-block, and the chains' sum in order.

use super::{
    LANES, SUB_BLOCK,
    element::Element,
    matmul::{TileFormat, TileOfUnit, slices},
    simd::{Simd, in_order},
};

/// Tiles of weights of type E.
pub(super) struct FloatTile<E>(std::marker::PhantomData<E>);

impl<E: Element> TileFormat for FloatTile<E> {
    type Activations<'a> = &'a [[f32; LANES]];

    #[inline(always)]
    fn tile<S: Simd, const G: usize, const N: usize>(
        s: S,
        groups: [&[u8]; G],
        unit: TileOfUnit,
        x: &[[f32; LANES]],
        tokens: usize,
        first_token: usize,
    ) -> [[S::F; N]; G] {
        let TileOfUnit {
            sub_blocks,
            first_sub_block,
            ..
        } = unit;
        let bytes = E::BYTES * SUB_BLOCK * LANES;
        let mut sums = [[s.splat(0.0); N]; G];
        for pair in 0..sub_blocks / 2 {
            let records = slices(groups, 2 * pair * bytes, 2 * bytes);
            let at = 2 * (first_sub_block + 2 * pair) * tokens + first_token;
            if N == 1 {
                add_float_pair::<S, E, G, N>(s, records, x, tokens, at, &mut sums);
            } else {
                add_float_sub_block::<S, E, G, N, 2>(s, records, 0, x, tokens, at, &mut sums);
                add_float_sub_block::<S, E, G, N, 2>(s, records, 1, x, tokens, at + 2 * tokens, &mut sums);
            }
        }
        if !sub_blocks.is_multiple_of(2) {
            let records = slices(groups, (sub_blocks - 1) * bytes, bytes);
            let at = 2 * (first_sub_block + sub_blocks - 1) * tokens + first_token;
            add_float_sub_block::<S, E, G, N, 1>(s, records, 0, x, tokens, at, &mut sums);
        }
        sums
    }
}

/// Adds the chain of sub-block `index`; `at` is the place of its first panel in x.
#[inline(always)]
fn add_float_sub_block<S: Simd, E: Element, const G: usize, const N: usize, const IN_RECORD: usize>(
    s: S,
    records: [&[u8]; G],
    index: usize,
    x: &[[f32; LANES]],
    tokens: usize,
    at: usize,
    sums: &mut [[S::F; N]; G],
) {
    let mut inner = [[s.splat(0.0); N]; G];
    for half in 0..2 {
        let x = x[at + half * tokens..]
            .first_chunk::<N>()
            .expect("columns of each token");
        for k in 0..LANES {
            let at = ((half * LANES + k) * IN_RECORD + index) * LANES * E::BYTES;
            let mut weights = [E::load(s, records[0], at); G];
            for g in 1..G {
                weights[g] = E::load(s, records[g], at);
            }
            for n in 0..N {
                let x = s.splat(x[n][k]);
                for g in 0..G {
                    inner[g][n] = s.fma(weights[g], x, inner[g][n]);
                }
            }
        }
    }
    for n in 0..N {
        for g in 0..G {
            sums[g][n] = s.add(sums[g][n], inner[g][n]);
        }
    }
}

/// One token: the chains of a pair of sub-blocks side by side, as they lie in the record.
#[inline(always)]
fn add_float_pair<S: Simd, E: Element, const G: usize, const N: usize>(
    s: S,
    records: [&[u8]; G],
    x: &[[f32; LANES]],
    tokens: usize,
    at: usize,
    sums: &mut [[S::F; N]; G],
) {
    let mut inner = [[s.splat(0.0); 2]; G];
    for half in 0..2 {
        let (x0, x1) = (&x[at + half * tokens], &x[at + (2 + half) * tokens]);
        for k in 0..LANES {
            let at = 2 * (half * LANES + k) * LANES * E::BYTES;
            in_order();
            for g in 0..G {
                let weights = E::load_pair(s, records[g], at);
                inner[g][0] = s.fma(weights[0], s.splat(x0[k]), inner[g][0]);
                inner[g][1] = s.fma(weights[1], s.splat(x1[k]), inner[g][1]);
            }
        }
    }
    for g in 0..G {
        sums[g][0] = s.add(s.add(sums[g][0], inner[g][0]), inner[g][1]);
    }
}
