//! Activation quantization.

use super::inputs::{Random, Style, all_kernels};
use crate::arith::{Int8Rows, SUB_BLOCK, panels, reference};

#[test]
fn quantization_gives_the_definitions_bits_and_poison() {
    let mut random = Random(1);
    let mut out = Int8Rows::new();
    for kernels in all_kernels() {
        for style in Style::ALL {
            for (cols, tokens) in [(32, 1), (96, 1), (64, 7), (576, 5), (32, 64)] {
                let rows = random.floats(style, cols * tokens);
                let mut poison = vec![false; tokens];
                kernels.quantize(&panels::from_rows(&rows, tokens), cols, tokens, &mut out, &mut poison);
                assert_eq!((out.cols(), out.tokens()), (cols, tokens));
                let mut expected_poison = vec![false; tokens];
                for (token, row) in rows.chunks_exact(cols).enumerate() {
                    for (sub_block, x) in row.as_chunks::<SUB_BLOCK>().0.iter().enumerate() {
                        let expected = reference::quantize(x);
                        expected_poison[token] |= expected.is_none();
                        let expected = expected.unwrap_or(reference::Int8SubBlock::ZERO);
                        let at = sub_block * tokens + token;
                        assert_eq!(
                            out.scales()[at].to_bits(),
                            expected.scale.to_bits(),
                            "{}",
                            kernels.isa()
                        );
                        assert_eq!(out.sums()[at], expected.sum);
                        let first: i32 = expected.quants[..16].iter().map(|q| i32::from(*q)).sum();
                        assert_eq!(out.first_sums[at], first);
                        assert_eq!(out.quants()[at * SUB_BLOCK..][..SUB_BLOCK], expected.quants);
                    }
                }
                assert_eq!(poison, expected_poison);
                for members in [2, 3] {
                    let (mut shared, mut poison) = (Int8Rows::new(), vec![false; tokens]);
                    shared.resize(cols, tokens);
                    for mut part in shared.parts(members) {
                        kernels.quantize_part(&panels::from_rows(&rows, tokens), &mut part, &mut poison);
                    }
                    let bits = |rows: &Int8Rows| rows.scaled_sums.iter().map(|sum| sum.to_bits()).collect::<Vec<_>>();
                    assert_eq!((&shared.quants, bits(&shared)), (&out.quants, bits(&out)));
                    assert_eq!((&shared.scales, &shared.sums), (&out.scales, &out.sums));
                    assert_eq!((&shared.first_sums, poison), (&out.first_sums, expected_poison.clone()));
                }
            }
        }
    }
}

#[test]
fn quants_round_ties_to_even_and_reach_exactly_127() {
    let mut x = [0.0; SUB_BLOCK];
    x[..8].copy_from_slice(&[127.0, -127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 0.49999997]);
    for kernels in all_kernels() {
        let mut out = Int8Rows::new();
        kernels.quantize(&x, SUB_BLOCK, 1, &mut out, &mut [false]);
        assert_eq!(out.quants()[..8], [127, -127, 0, 2, 2, 0, -2, 0]);
        assert_eq!(out.scales(), [1.0]);
    }
}

#[test]
fn sub_blocks_below_the_least_amplitude_are_zeros() {
    let least = reference::QUANTIZE_AMAX_MIN;
    for kernels in all_kernels() {
        for (amax, is_zero) in [
            (least, false),
            (f32::from_bits(least.to_bits() - 1), true),
            (f32::from_bits(1), true),
        ] {
            let mut out = Int8Rows::new();
            kernels.quantize(&[amax; SUB_BLOCK], SUB_BLOCK, 1, &mut out, &mut [false]);
            assert_eq!(out.scales() == [0.0], is_zero);
            assert_eq!(out.quants() == [0; SUB_BLOCK], is_zero);
        }
    }
}

#[test]
fn poison_is_never_cleared() {
    for kernels in all_kernels() {
        let mut poison = [true, false];
        kernels.quantize(&[1.0; 64], SUB_BLOCK, 2, &mut Int8Rows::new(), &mut poison);
        assert_eq!(poison, [true, false]);
    }
}
