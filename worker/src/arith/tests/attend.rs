//! Attention over cells, and writing them.

use half::f16;
use kvasir_kv::{CellLayout, KvDtype};

use super::inputs::{Random, Style, all_kernels, assert_same_bits};
use crate::arith::{ATTENTION_CHUNK, AttendScratch, Kernels, KvView, reference};

const NUM_LAYERS: u32 = 2;
const LAYER: u32 = 1;

/// One KV head with K and V of each position, and queries.
struct Case {
    head_dim: usize,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    queries: Vec<f32>,
}

impl Case {
    fn new(seed: u64, style: Style, head_dim: usize, queries: usize, positions: usize) -> Self {
        let mut random = Random(seed);
        // Sums of extreme products would be infinite at once; as they are, each query still meets every kind.
        let mut rows = |len| (0..len).map(|_| random.floats(style, head_dim)).collect::<Vec<_>>();
        Self {
            head_dim,
            keys: rows(positions),
            values: rows(positions),
            queries: rows(queries).concat(),
        }
    }

    /// Attention of the last token, which all queries are of.
    fn attend(&self, kernels: Kernels, block_size: u32, dtype: KvDtype) -> Vec<f32> {
        self.attend_from(kernels, block_size, dtype, 1)
    }

    /// Attention of so many last tokens through cells of the given shape. What was never written is NaN.
    fn attend_from(&self, kernels: Kernels, block_size: u32, dtype: KvDtype, tokens: usize) -> Vec<f32> {
        let layout = CellLayout::new(NUM_LAYERS, self.head_dim as u32, block_size, dtype).unwrap();
        let num_blocks = layout.blocks_for(self.keys.len() as u32);
        // Blocks lie in the slab in an order of their own.
        let blocks: Vec<u32> = (0..num_blocks).map(|i| (i * 7 + 3) % (num_blocks + 8)).collect();
        let blocks = if blocks.iter().collect::<std::collections::BTreeSet<_>>().len() == blocks.len() {
            blocks
        } else {
            (0..num_blocks).rev().collect()
        };
        let mut slab = vec![0xff; layout.slab_bytes(num_blocks + 8)];
        for (position, (k, v)) in self.keys.iter().zip(&self.values).enumerate() {
            let cell = blocks[position / block_size as usize] as usize * layout.cell_bytes();
            let layer_cell = &mut slab[cell..][layout.layer_range(LAYER)];
            let finite = kernels.write_kv(k, v, layer_cell, &layout, position % block_size as usize);
            let rounded = [k, v].map(|row| reference::round_row_to_cell(row, dtype));
            let expected = rounded.iter().flatten().all(|x| x.is_finite());
            assert_eq!(finite, expected);
        }
        let mut out = vec![0.0; self.queries.len()];
        let mut scratch = AttendScratch::new();
        let view = KvView::new(&slab, layout, LAYER);
        let end = self.keys.len();
        kernels.attend(&self.queries, &view, &blocks, end - tokens..end, &mut out, &mut scratch);
        if tokens == 1 {
            self.assert_any_share_of_chunks_gives(kernels, &view, &blocks, &out);
        }
        out
    }

    fn assert_any_share_of_chunks_gives(&self, kernels: Kernels, view: &KvView<'_>, blocks: &[u32], whole: &[f32]) {
        let mut scratch = AttendScratch::new();
        let num_chunks = self.keys.len().div_ceil(ATTENTION_CHUNK);
        for cut in 0..=num_chunks {
            let shares = [0..cut, cut..num_chunks].map(|chunks| {
                kernels.attend_chunks(&self.queries, view, blocks, self.keys.len(), chunks, &mut scratch)
            });
            let mut out = vec![0.0; whole.len()];
            kernels.merge_chunks(shares.iter(), self.head_dim, &mut out);
            assert_same_bits(&out, whole, &format!("{} chunks cut at {cut}", num_chunks));
        }
    }

    fn expected(&self, dtype: KvDtype) -> Vec<f32> {
        self.expected_from(dtype, 1)
    }

    fn expected_from(&self, dtype: KvDtype, tokens: usize) -> Vec<f32> {
        let rounded = |rows: &[Vec<f32>]| -> Vec<Vec<f32>> {
            rows.iter()
                .map(|row| reference::round_row_to_cell(row, dtype))
                .collect()
        };
        let (keys, values) = (rounded(&self.keys), rounded(&self.values));
        let of_token = self.queries.len() / tokens;
        let of_tokens = (keys.len() - tokens + 1..).zip(self.queries.chunks_exact(of_token));
        of_tokens
            .flat_map(|(positions, queries)| queries.chunks_exact(self.head_dim).map(move |q| (positions, q)))
            .flat_map(|(positions, q)| reference::attend(q, &keys[..positions], &values[..positions]))
            .collect()
    }
}

const POSITIONS: [usize; 9] = [1, 2, 15, 16, 17, 255, 256, 257, 700];

#[test]
fn attention_gives_the_definitions_bits_for_any_block_size_and_length() {
    for kernels in all_kernels() {
        for dtype in KvDtype::ALL {
            for positions in POSITIONS {
                let case = Case::new(positions as u64, Style::Ordinary, 64, 3, positions);
                let expected = case.expected(dtype);
                assert!(expected.iter().all(|out| out.is_finite()));
                for block_size in [16, 32, 64, 128, 256] {
                    let context = format!("{} {dtype} {positions} in blocks of {block_size}", kernels.isa());
                    assert_same_bits(&case.attend(kernels, block_size, dtype), &expected, &context);
                }
            }
        }
    }
}

#[test]
fn attention_gives_the_definitions_bits_for_any_head() {
    for kernels in all_kernels() {
        for dtype in KvDtype::ALL {
            for head_dim in [16, 64, 80, 128].into_iter().filter(|dim| dtype.fits(*dim)) {
                for queries in 1..=9 {
                    let case = Case::new(queries as u64, Style::Ordinary, head_dim, queries, 300);
                    let context = format!("{} {dtype} {queries} x {head_dim}", kernels.isa());
                    assert_same_bits(&case.attend(kernels, 64, dtype), &case.expected(dtype), &context);
                }
            }
        }
    }
}

/// Later positions are no matter of an earlier token, whatever is in them.
#[test]
fn tokens_at_once_give_the_definitions_bits_of_each() {
    for kernels in all_kernels() {
        for dtype in KvDtype::ALL {
            for style in Style::ALL {
                for (seed, group, positions) in [
                    (1, 1, 40),
                    (2, 2, 17),
                    (3, 3, 255),
                    (4, 3, 256),
                    (5, 3, 262),
                    (6, 4, 530),
                ] {
                    for tokens in [2, 3, Kernels::tokens_to_attend(group)] {
                        let case = Case::new(seed, style, 32, tokens * group, positions);
                        let given = case.attend_from(kernels, 16, dtype, tokens);
                        let context = format!("{} {dtype} {style:?} {tokens} x {group}, {positions}", kernels.isa());
                        assert_same_bits(&given, &case.expected_from(dtype, tokens), &context);
                    }
                }
            }
        }
    }
}

#[test]
fn extreme_and_broken_numbers_give_the_definitions_bits() {
    for kernels in all_kernels() {
        for dtype in KvDtype::ALL {
            for style in [Style::Extreme, Style::Broken] {
                for seed in 0..30 {
                    let positions = [1, 5, 40, 300][seed as usize % 4];
                    let case = Case::new(seed, style, 32, 2, positions);
                    let context = format!("{} {dtype} {style:?} {seed}", kernels.isa());
                    assert_same_bits(&case.attend(kernels, 32, dtype), &case.expected(dtype), &context);
                }
            }
        }
    }
}

#[test]
fn infinite_cells_give_the_definitions_bits_and_are_reported() {
    for kernels in all_kernels() {
        for dtype in KvDtype::ALL {
            for (position, at, k, v) in [
                (0, 3, f32::INFINITY, 1.0),
                (200, 0, f32::NEG_INFINITY, 1.0),
                (7, 15, 1.0, f32::INFINITY),
                (299, 1, 1e38, -1e38),
            ] {
                let mut case = Case::new(11, Style::Ordinary, 32, 3, 300);
                (case.keys[position][at], case.values[position][at]) = (k, v);
                let context = format!("{} {dtype} {position}", kernels.isa());
                assert_same_bits(&case.attend(kernels, 16, dtype), &case.expected(dtype), &context);
            }
        }
    }
}

#[test]
fn q8_0_cells_hold_quants_in_the_order_of_floats_and_then_their_scales() {
    let layout = CellLayout::new(1, 64, 16, KvDtype::Q8_0).unwrap();
    let ramp = |d: usize, scale: f32| (d as f32 - 31.5) * scale;
    let k: Vec<f32> = (0..64).map(|d| ramp(d, 0.25)).collect();
    let v: Vec<f32> = (0..64).map(|d| ramp(d, -3.0)).collect();
    for kernels in all_kernels() {
        let mut cell = vec![0; layout.cell_bytes()];
        assert!(kernels.write_kv(&k, &v, &mut cell, &layout, 5));
        let (keys, values) = cell.split_at(16 * 68);
        let scale =
            |plane: &[u8], index: usize| f16::from_le_bytes(plane[64 * 16 + 2 * index..][..2].try_into().unwrap());
        for d in [0, 31, 32, 63] {
            let key = f32::from(keys[d * 16 + 5] as i8) * scale(keys, d / 32 * 16 + 5).to_f32();
            let value = f32::from(values[5 * 64 + d] as i8) * scale(values, 5 * 2 + d / 32).to_f32();
            assert!((key - k[d]).abs() < 0.04 && (value - v[d]).abs() < 0.5, "{key} {value}");
        }
        assert_eq!((keys[5] as i8, keys[63 * 16 + 5] as i8), (-127, 127));
        assert!(
            !kernels.write_kv(&[1e9; 64], &v, &mut cell, &layout, 5),
            "no f16 scale is so large"
        );
    }
}

#[test]
fn a_score_that_is_not_a_number_spoils_the_whole_head_and_no_other() {
    for kernels in all_kernels() {
        let mut case = Case::new(12, Style::Ordinary, 32, 2, 300);
        case.queries[32] = f32::NAN;
        let out = case.attend(kernels, 64, KvDtype::F16);
        assert!(out[..32].iter().all(|out| out.is_finite()));
        assert!(out[32..].iter().all(|out| out.is_nan()));
    }
}

#[test]
fn large_scores_and_far_chunks_give_the_definitions_bits() {
    for kernels in all_kernels() {
        let mut case = Case::new(13, Style::Ordinary, 64, 4, 700);
        for (position, key) in case.keys.iter_mut().enumerate() {
            key.iter_mut().for_each(|k| *k *= (position / 100) as f32);
        }
        assert_same_bits(
            &case.attend(kernels, 64, KvDtype::F32),
            &case.expected(KvDtype::F32),
            "rising scores",
        );
        case.keys.reverse();
        assert_same_bits(
            &case.attend(kernels, 64, KvDtype::F32),
            &case.expected(KvDtype::F32),
            "falling scores",
        );
    }
}

#[test]
fn attention_is_close_to_softmax_in_f64() {
    let case = Case::new(14, Style::Ordinary, 64, 1, 600);
    let dot = |key: &Vec<f32>| {
        case.queries
            .iter()
            .zip(key)
            .map(|(q, k)| f64::from(*q) * f64::from(*k))
            .sum::<f64>()
    };
    let weights: Vec<f64> = case.keys.iter().map(|key| (dot(key) / 8.0).exp()).collect();
    let sum: f64 = weights.iter().sum();
    for (d, out) in case.expected(KvDtype::F32).into_iter().enumerate() {
        let exact = weights
            .iter()
            .zip(&case.values)
            .map(|(w, v)| w * f64::from(v[d]))
            .sum::<f64>()
            / sum;
        assert!((f64::from(out) - exact).abs() < 1e-5, "{out} for {exact}");
    }
}

#[test]
fn cells_hold_keys_transposed_and_values_in_rows_rounded_to_nearest_even() {
    let layout = CellLayout::new(1, 16, 32, KvDtype::F16).unwrap();
    let mut random = Random(15);
    for kernels in all_kernels() {
        for style in Style::ALL {
            let (k, v) = (random.floats(style, 16), random.floats(style, 16));
            let mut cell = vec![0; layout.cell_bytes()];
            let _ = kernels.write_kv(&k, &v, &mut cell, &layout, 21);
            let mut expected = vec![f16::ZERO; cell.len() / 2];
            for d in 0..16 {
                expected[d * 32 + 21] = f16::from_f32(k[d]);
                expected[16 * 32 + 21 * 16 + d] = f16::from_f32(v[d]);
            }
            let cell: Vec<f32> = cell
                .as_chunks()
                .0
                .iter()
                .map(|x| f16::from_le_bytes(*x).to_f32())
                .collect();
            assert_same_bits(&cell, &expected.iter().map(|x| x.to_f32()).collect::<Vec<_>>(), "cell");
        }
    }
}
