//! Activation quantization.

use super::inputs::{Random, Style, all_kernels};
use crate::arith::{HeadRows, Int8Rows, Kernels, LANES, Normed, SUB_BLOCK, panels, reference};

#[test]
fn quantization_gives_the_definitions_bits_and_poison() {
    let mut random = Random(1);
    let mut out = Int8Rows::new();
    for kernels in all_kernels() {
        for style in Style::ALL {
            for (cols, tokens) in [(32, 1), (96, 1), (64, 7), (576, 5), (32, 64)] {
                let rows = random.floats(style, cols * tokens);
                let mut poison = vec![false; tokens];
                let panels = panels::from_rows(&rows, tokens);
                let source = HeadRows::new(&panels, LANES, tokens);
                kernels.quantize(source, &mut out, &mut poison);
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
                        kernels.quantize_part(source, &mut part, &mut poison);
                    }
                    assert_eq!(contents(&shared), contents(&out));
                    assert_eq!(poison, expected_poison);
                }
            }
        }
    }
}

/// Everything, of sub-blocks that are in use.
fn contents(rows: &Int8Rows) -> (&[i8], Vec<[u32; 2]>, Vec<[i32; 2]>) {
    let len = rows.scales().len();
    let floats = rows.scales.iter().zip(&rows.scaled_sums);
    let sums = rows.sums.iter().zip(&rows.first_sums);
    (
        rows.quants(),
        floats.map(|(a, b)| [a.to_bits(), b.to_bits()]).take(len).collect(),
        sums.map(|(a, b)| [*a, *b]).take(len).collect(),
    )
}

fn quantize(kernels: Kernels, x: &[f32], tokens: usize, poison: &mut [bool]) -> Int8Rows {
    let mut out = Int8Rows::new();
    kernels.quantize(HeadRows::new(x, LANES, tokens), &mut out, poison);
    out
}

/// Whether values are read or made on the way, the quants are the same.
#[test]
fn rows_that_are_normalized_on_the_way_have_the_quants_of_rows_that_were_before() {
    let mut random = Random(3);
    let (cols, tokens) = (96, 11);
    for kernels in all_kernels() {
        for style in Style::ALL {
            let x = random.floats(style, cols * tokens);
            let weight = random.floats(style, cols);
            let mut scales = vec![0.0; tokens];
            for which in [0..4, 4..tokens] {
                kernels.rms_scales(&x, cols, 1e-5, tokens, which.clone(), &mut scales[which]);
            }
            let (mut fused, mut fused_poison) = (Int8Rows::new(), vec![false; tokens]);
            kernels.quantize(Normed::new(&x, &scales, &weight), &mut fused, &mut fused_poison);
            let (mut normed, mut poison) = (vec![0.0; x.len()], vec![false; tokens]);
            kernels.rms_norm(&x, &weight, 1e-5, tokens, &mut normed);
            let apart = quantize(kernels, &normed, tokens, &mut poison);
            assert_eq!(contents(&fused), contents(&apart), "{} {style:?}", kernels.isa());
            assert_eq!(fused_poison, poison);
        }
    }
}

#[test]
fn quants_round_ties_to_even_and_reach_exactly_127() {
    let mut x = [0.0; SUB_BLOCK];
    x[..8].copy_from_slice(&[127.0, -127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 0.49999997]);
    for kernels in all_kernels() {
        let out = quantize(kernels, &x, 1, &mut [false]);
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
            let out = quantize(kernels, &[amax; SUB_BLOCK], 1, &mut [false]);
            assert_eq!(out.scales() == [0.0], is_zero);
            assert_eq!(out.quants() == [0; SUB_BLOCK], is_zero);
        }
    }
}

#[test]
fn poison_is_never_cleared() {
    for kernels in all_kernels() {
        let mut poison = [true, false];
        quantize(kernels, &[1.0; 64], 2, &mut poison);
        assert_eq!(poison, [true, false]);
    }
}
