//! Norm, rotation, gate, residual and the summary of logits.

use super::inputs::{Random, Style, all_kernels, assert_same_bits};
use crate::arith::{
    Gated, GatedPanel, HeadRows, Kernels, LANES, RopeTable, UnitSummary, panels, reference, rope_frequencies,
};

#[test]
fn rms_norm_gives_the_definitions_bits_for_any_number_of_tokens() {
    let mut random = Random(1);
    for kernels in all_kernels() {
        for style in Style::ALL {
            for (cols, tokens) in [(16, 1), (576, 1), (576, 7), (64, 8), (48, 13), (32, 64)] {
                let rows = random.floats(style, cols * tokens);
                let weight = random.floats(style, cols);
                let mut out = vec![0.0; rows.len()];
                kernels.rms_norm(&panels::from_rows(&rows, tokens), &weight, 1e-5, tokens, &mut out);
                let expected: Vec<f32> = rows
                    .chunks_exact(cols)
                    .flat_map(|row| reference::rms_norm(row, &weight, 1e-5))
                    .collect();
                let context = format!("{} {style:?} {cols} {tokens}", kernels.isa());
                assert_same_bits(&panels::to_rows(&out, tokens), &expected, &context);
            }
        }
    }
}

/// Two units, of 2 and of 3 panels, each with its gate before its up; what is behind them is not looked at.
#[test]
fn gated_panels_give_the_definitions_bits_from_any_panel_on() {
    let mut random = Random(4);
    let (tokens, groups) = (5, [2, 3]);
    let places = GatedPanel::of_units(groups.into_iter());
    for kernels in all_kernels() {
        for style in Style::ALL {
            let columns = random.floats(style, 11 * tokens * LANES);
            let mut expected = Vec::new();
            let mut rest = columns.as_slice();
            for groups in groups {
                let (gate, after) = rest.split_at(groups * tokens * LANES);
                let (up, after) = after.split_at(groups * tokens * LANES);
                expected.extend(gate.iter().zip(up).map(|(gate, up)| reference::silu_mul(*gate, *up)));
                rest = after;
            }
            let source = Gated::new(&columns, &places, tokens);
            for first in 0..places.len() {
                let expected = &expected[first * tokens * LANES..];
                let mut out = vec![0.0; expected.len()];
                kernels.store_panels(source, first, &mut out);
                assert_same_bits(&out, expected, &format!("{} {style:?} from {first}", kernels.isa()));
            }
        }
    }
}

#[test]
fn rows_of_heads_become_panels_head_by_head() {
    let (heads, tokens, cols) = (2, 3, 32);
    let rows: Vec<f32> = (0..heads * tokens * cols).map(|i| i as f32).collect();
    let expected: Vec<f32> = rows
        .chunks_exact(tokens * cols)
        .flat_map(|head| panels::from_rows(head, tokens))
        .collect();
    for kernels in all_kernels() {
        let mut out = vec![0.0; rows.len()];
        kernels.store_panels(HeadRows::new(&rows, cols, tokens), 0, &mut out);
        assert_eq!(out, expected);
    }
}

#[test]
fn additions_to_the_residual_give_the_definitions_bits() {
    let mut random = Random(2);
    for kernels in all_kernels() {
        for style in Style::ALL {
            let (a, b) = (random.floats(style, 4096), random.floats(style, 4096));
            let mut out = a.clone();
            kernels.add_assign(&mut out, &b);
            let expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
            assert_same_bits(&out, &expected, &format!("add {} {style:?}", kernels.isa()));
            let sums: Vec<i64> = (0..4096).map(|_| random.next() as i64).collect();
            out.copy_from_slice(&a);
            kernels.add_sums(&mut out, &sums);
            let sums = sums.iter().map(|sum| reference::from_fixed(*sum));
            let expected: Vec<f32> = a.iter().zip(sums).map(|(a, sum)| a + sum).collect();
            assert_same_bits(&out, &expected, &format!("add sums {} {style:?}", kernels.isa()));
        }
    }
}

#[test]
fn rope_gives_the_definitions_bits_at_any_position() {
    let mut random = Random(3);
    for kernels in all_kernels() {
        for style in Style::ALL {
            for (head_dim, rope_dim) in [(16, 16), (64, 64), (128, 128), (64, 32)] {
                let positions = [0, 1, 2, 511, 8191, 131_071, 7];
                let tokens = positions.len();
                let rows = random.floats(style, head_dim * tokens);
                let mut table = RopeTable::new(rope_frequencies(1e5, rope_dim, &[]));
                table.set_positions(positions);
                let mut head = panels::from_rows(&rows, tokens);
                kernels.rope(&mut head, &table, tokens);
                let mut expected = rows;
                for (row, position) in expected.chunks_exact_mut(head_dim).zip(positions) {
                    reference::rope(&mut row[..rope_dim], 1e5, position);
                }
                assert_same_bits(
                    &panels::to_rows(&head, tokens),
                    &expected,
                    &format!("{} {style:?}", kernels.isa()),
                );
            }
        }
    }
}

#[test]
fn rope_turns_the_first_pair_by_the_position_in_radians() {
    let mut head = [1.0, 0.0, 0.0, 1.0];
    reference::rope(&mut head, 1e4, 2);
    let [cos, sin] = [2.0f32.cos(), 2.0f32.sin()];
    assert!((head[0] - cos).abs() < 1e-6 && (head[1] - sin).abs() < 1e-6);
    let slow: f32 = 2.0 / 100.0;
    assert!((head[2] + slow.sin()).abs() < 1e-6 && (head[3] - slow.cos()).abs() < 1e-6);
}

#[test]
fn unit_summaries_give_the_definitions_bits() {
    let mut random = Random(4);
    for kernels in all_kernels() {
        for style in Style::ALL {
            for (rows, tokens) in [(1usize, 1), (16, 1), (100, 1), (1536, 3), (33, 7), (48, 8), (100, 19)] {
                let padded = rows.next_multiple_of(LANES);
                let mut logits = random.floats(style, padded * tokens);
                for logit in logits.iter_mut().filter(|logit| !logit.is_nan()) {
                    *logit = logit.clamp(-90.0, 90.0);
                }
                let mut summaries = vec![UnitSummary::default(); tokens];
                kernels.vocab_unit_summaries(&panels::from_rows(&logits, tokens), rows, &mut summaries);
                for (summary, logits_of_token) in summaries.iter().zip(logits.chunks_exact(padded)) {
                    let logits = &logits_of_token[..rows];
                    assert_eq!(summary.finite, logits.iter().all(|logit| logit.is_finite()));
                    assert!(summary.argmax < rows);
                    if summary.finite {
                        let (argmax, max) = reference::arg_max(logits);
                        assert_eq!((summary.argmax, summary.max.to_bits()), (argmax, max.to_bits()));
                        let sum_exp = reference::sum_exp(logits, max);
                        assert_same_bits(&[summary.sum_exp], &[sum_exp], &format!("{} {rows}", kernels.isa()));
                    }
                }
            }
        }
    }
}

/// Of one token.
fn summary_of(kernels: Kernels, logits: &[f32], rows: usize) -> UnitSummary {
    let mut summary = [UnitSummary::default()];
    kernels.vocab_unit_summaries(logits, rows, &mut summary);
    summary[0]
}

#[test]
fn ties_of_logits_go_to_the_lowest_index() {
    for kernels in all_kernels() {
        for (first, second) in [(3, 17), (20, 35), (0, 47), (31, 32)] {
            for (a, b) in [(2.0, 2.0), (0.0, -0.0), (-0.0, 0.0)] {
                let mut logits = [-1.0; 48];
                (logits[first], logits[second]) = (a, b);
                let summary = summary_of(kernels, &logits, 48);
                assert_eq!(
                    (summary.argmax, summary.max.to_bits()),
                    (first, a.to_bits()),
                    "{}",
                    kernels.isa()
                );
            }
        }
    }
}

#[test]
fn padding_rows_never_win_and_never_count() {
    for kernels in all_kernels() {
        let mut logits = [-5.0; 32];
        logits[20..].fill(f32::NAN);
        let summary = summary_of(kernels, &logits, 20);
        assert_eq!(
            (summary.finite, summary.argmax, summary.max, summary.sum_exp),
            (true, 0, -5.0, 20.0)
        );
    }
}
