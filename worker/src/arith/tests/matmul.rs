//! Products: column-parallel dots, unit partials, and what must not matter to them.

use kvasir_model::WeightType;

use super::inputs::{Random, Style, all_kernels, assert_same_bits};
use crate::arith::{
    ActivationsRef, HeadRows, Int8Rows, Kernels, LANES, PackedMatrix, SUB_BLOCK, UnitColumns, WeightArena, panels,
    reference,
};

const TYPES: [WeightType; 11] = WeightType::ALL;

/// Weights as stored, perhaps with columns beyond the last, and activations `[tokens][cols]`.
struct Case {
    weight_type: WeightType,
    rows: Vec<Vec<u8>>,
    x: Vec<f32>,
    cols: usize,
    tokens: usize,
}

impl Case {
    fn new(seed: u64, style: Style, weight_type: WeightType, rows: usize, cols: usize, tokens: usize) -> Self {
        let mut random = Random(seed);
        let stored_cols = cols.next_multiple_of(weight_type.block_len());
        let rows = (0..rows).map(|_| random.row(weight_type, style, stored_cols)).collect();
        Self {
            weight_type,
            rows,
            x: random.floats(style, cols * tokens),
            cols,
            tokens,
        }
    }

    /// Columns `cols` of all rows, packed.
    fn pack(&self, cols: std::ops::Range<usize>) -> PackedMatrix {
        let (rows, mut arena) = (self.rows.len(), WeightArena::new());
        PackedMatrix::pack(self.weight_type, rows, cols, &mut arena, |row| &self.rows[row]).unwrap()
    }

    /// The dot of a row with a token over some columns, by definition.
    fn dot(&self, row: usize, token: usize, cols: std::ops::Range<usize>) -> f32 {
        let x = &self.x[token * self.cols..][cols.clone()];
        reference::dot(self.weight_type, &self.rows[row], cols.start, x)
    }

    /// All dots over all columns, in panels, padding rows zero.
    fn expected(&self) -> Vec<f32> {
        self.padded(|row, token| self.dot(row, token, 0..self.cols))
    }

    /// `[groups][tokens][16]` of f(row, token).
    fn padded<T: Default + Copy>(&self, mut f: impl FnMut(usize, usize) -> T) -> Vec<T> {
        let mut out = vec![T::default(); self.rows.len().next_multiple_of(LANES) * self.tokens];
        for row in 0..self.rows.len() {
            for token in 0..self.tokens {
                out[(row / LANES * self.tokens + token) * LANES + row % LANES] = f(row, token);
            }
        }
        out
    }

    fn with_activations<R>(&self, kernels: Kernels, f: impl FnOnce(ActivationsRef<'_>) -> R) -> R {
        let panels = panels::from_rows(&self.x, self.tokens);
        if !self.weight_type.is_quantized() {
            return f(ActivationsRef::F32 {
                panels: &panels,
                cols: self.cols,
                tokens: self.tokens,
            });
        }
        let mut rows = Int8Rows::new();
        let source = HeadRows::new(&panels, LANES, self.tokens);
        kernels.quantize(source, &mut rows, &mut vec![false; self.tokens]);
        f(ActivationsRef::Int8(&rows))
    }

    fn matmul(&self, kernels: Kernels, groups: std::ops::Range<usize>) -> Vec<f32> {
        let weights = self.pack(0..self.cols);
        let mut out = vec![f32::NAN; groups.len() * self.tokens * LANES];
        self.with_activations(kernels, |x| kernels.matmul(&weights, groups.clone(), x, &mut out));
        // Padding rows come out as zeros, or NaN where an activation is not finite: nobody looks at them.
        for (i, out) in out.iter_mut().enumerate() {
            let row = (groups.start + i / LANES / self.tokens) * LANES + i % LANES;
            *out = if row < self.rows.len() { *out } else { 0.0 };
        }
        out
    }

    fn groups(&self) -> usize {
        self.rows.len().div_ceil(LANES)
    }

    /// Sums and poison of the given calls, each with some units (column ranges).
    fn partials(&self, kernels: Kernels, calls: &[&[std::ops::Range<usize>]]) -> (Vec<i64>, Vec<bool>) {
        let mut sums = vec![0; self.groups() * LANES * self.tokens];
        let mut poison = vec![false; self.tokens];
        for units in calls {
            let packed: Vec<PackedMatrix> = units.iter().map(|cols| self.pack(cols.clone())).collect();
            let units: Vec<UnitColumns> = packed
                .iter()
                .zip(*units)
                .map(|(weights, cols)| UnitColumns {
                    weights,
                    first_col: cols.start,
                })
                .collect();
            // Whatever is there is replaced.
            let mut of_call = vec![-1; sums.len()];
            self.with_activations(kernels, |x| {
                kernels.matmul_partials(&units, 0..self.groups(), x, &mut of_call, &mut poison);
            });
            for (sum, of_call) in sums.iter_mut().zip(of_call) {
                *sum += of_call;
            }
        }
        (sums, poison)
    }

    fn expected_partials(&self, units: &[std::ops::Range<usize>]) -> (Vec<i64>, Vec<bool>) {
        let mut poison = vec![false; self.tokens];
        let sums = self.padded(|row, token| {
            units.iter().fold(0i64, |sum, cols| {
                let fixed = reference::to_fixed(self.dot(row, token, cols.clone()));
                poison[token] |= fixed.is_none();
                sum.wrapping_add(fixed.unwrap_or(0))
            })
        });
        (sums, poison)
    }
}

#[test]
fn matmul_gives_the_definitions_bits_for_any_shape() {
    for kernels in all_kernels() {
        for weight_type in TYPES {
            for style in Style::ALL {
                for (seed, (rows, cols, tokens)) in [
                    (16, 32, 1),
                    (48, 64, 1),
                    (33, 96, 1),
                    (16, 160, 2),
                    (31, 64, 5),
                    (48, 32, 6),
                    (33, 96, 7),
                    (64, 192, 13),
                    (17, 288, 3),
                ]
                .into_iter()
                .enumerate()
                {
                    let case = Case::new(seed as u64, style, weight_type, rows, cols, tokens);
                    let context = format!("{} {weight_type} {style:?} {rows}x{cols} {tokens}", kernels.isa());
                    assert_same_bits(&case.matmul(kernels, 0..case.groups()), &case.expected(), &context);
                }
            }
        }
    }
}

#[test]
fn batch_neighbours_change_no_bit_of_a_token() {
    for kernels in all_kernels() {
        for weight_type in TYPES {
            let all = Case::new(1, Style::Ordinary, weight_type, 48, 576, 64);
            let alone = panels::to_rows(&all.matmul(kernels, 0..3), 64);
            for tokens in [1, 2, 5, 6, 7, 13, 64] {
                let first = 64 - tokens;
                let x = all.x[first * all.cols..].to_vec();
                let some = Case {
                    rows: all.rows.clone(),
                    x,
                    tokens,
                    ..all
                };
                let rows = panels::to_rows(&some.matmul(kernels, 0..3), tokens);
                assert_same_bits(
                    &rows,
                    &alone[first * 48..],
                    &format!("{} {weight_type} {tokens}", kernels.isa()),
                );
            }
        }
    }
}

#[test]
fn splitting_the_row_groups_changes_no_bit() {
    for kernels in all_kernels() {
        for weight_type in TYPES {
            for tokens in [1, 7] {
                let case = Case::new(2, Style::Ordinary, weight_type, 80, 96, tokens);
                let whole = case.matmul(kernels, 0..5);
                for split in 0..=5 {
                    let parts = [case.matmul(kernels, 0..split), case.matmul(kernels, split..5)].concat();
                    assert_same_bits(
                        &parts,
                        &whole,
                        &format!("{} {weight_type} split at {split}", kernels.isa()),
                    );
                }
            }
        }
    }
}

#[test]
fn unit_partials_give_the_definitions_sums_and_poison() {
    // Through stored blocks of 256 columns at every second sub-block, over the border of one, and 384 columns wide.
    let units = [0..32, 32..128, 128..192, 192..224, 224..480, 480..864];
    let mut poisoned = 0;
    for kernels in all_kernels() {
        for weight_type in TYPES {
            for style in Style::ALL {
                for tokens in [1, 2, 6, 13] {
                    let case = Case::new(3, style, weight_type, 48, 864, tokens);
                    let actual = case.partials(kernels, &[&units]);
                    let expected = case.expected_partials(&units);
                    assert_eq!(actual, expected, "{} {weight_type} {style:?} {tokens}", kernels.isa());
                    poisoned += actual.1.iter().filter(|poison| **poison).count();
                }
            }
        }
    }
    assert!(poisoned > 0, "extreme inputs reach the bound");
}

#[test]
fn splitting_the_units_over_calls_changes_no_sum() {
    let units = [0..32, 32..128, 128..192, 192..224, 224..480];
    for kernels in all_kernels() {
        for weight_type in TYPES {
            for tokens in [1, 13] {
                let case = Case::new(4, Style::Ordinary, weight_type, 48, 480, tokens);
                let whole = case.partials(kernels, &[&units]);
                let (first, second) = units.split_at(2);
                assert_eq!(case.partials(kernels, &[first, second]), whole);
                assert_eq!(case.partials(kernels, &[second, first]), whole);
                let alone: Vec<_> = units.iter().map(std::slice::from_ref).collect();
                assert_eq!(case.partials(kernels, &alone), whole);
            }
        }
    }
}

/// One column's weight is 1, so the partials of 16 rows are the 16 products chosen.
fn partials_of(kernels: Kernels, weights: [f32; LANES]) -> (Vec<i64>, bool) {
    let mut x = vec![0.0; SUB_BLOCK];
    x[5] = 1.0;
    let row = |weight: f32| {
        let mut row = [0.0f32; SUB_BLOCK];
        row[5] = weight;
        row.iter().flat_map(|weight| weight.to_le_bytes()).collect()
    };
    let rows = weights.map(row).to_vec();
    let case = Case {
        weight_type: WeightType::F32,
        rows,
        x,
        cols: SUB_BLOCK,
        tokens: 1,
    };
    let unit = std::slice::from_ref(&(0..SUB_BLOCK)).to_vec();
    let (sums, poison) = case.partials(kernels, &[&unit]);
    (sums, poison[0])
}

#[test]
fn partials_round_at_2_to_the_minus_30_with_ties_to_even() {
    let unit = 2.0f32.powi(-30);
    let below_bound = f32::from_bits(((1 << 20) as f32).to_bits() - 1);
    let ties = [0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, 0.50001, 0.49999, 1e-9].map(|x| x * unit);
    let [a, b, c, d, e, f, g, h, i, j] = ties;
    let weights = [
        a,
        b,
        c,
        d,
        e,
        f,
        g,
        h,
        i,
        j,
        below_bound,
        -below_bound,
        1.0,
        -1.0,
        f32::from_bits(1),
        -0.0,
    ];
    let bound = (f64::from(below_bound) * f64::from(1 << 30)) as i64;
    let expected = [0, 2, 2, 4, 0, -2, -2, 1, 0, 0, bound, -bound, 1 << 30, -1 << 30, 0, 0];
    for kernels in all_kernels() {
        assert_eq!(
            partials_of(kernels, weights),
            (expected.to_vec(), false),
            "{}",
            kernels.isa()
        );
    }
}

#[test]
fn a_partial_that_is_not_finite_or_too_large_poisons_and_adds_nothing() {
    let bound = (1 << 20) as f32;
    for kernels in all_kernels() {
        for bad in [bound, -bound, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            for lane in [0, 3, 7, 8, 11, 15] {
                let mut weights = [1.0; LANES];
                weights[lane] = bad;
                let mut expected = vec![1 << 30; LANES];
                expected[lane] = 0;
                assert_eq!(
                    partials_of(kernels, weights),
                    (expected, true),
                    "{} {bad} in {lane}",
                    kernels.isa()
                );
            }
        }
    }
}

#[test]
fn sums_wrap_and_are_rounded_once_to_f32() {
    let mut random = Random(5);
    let edges = [
        0,
        1,
        -1,
        i64::MAX,
        i64::MIN,
        (1 << 53) + 1,
        (1 << 54) + 3,
        -(1 << 53) - 1,
    ];
    let sums: Vec<i64> = (0..1 << 12)
        .map(|i| {
            edges
                .get(i)
                .copied()
                .unwrap_or_else(|| random.next() as i64 >> random.below(64))
        })
        .collect();
    let expected: Vec<f32> = sums.iter().map(|sum| reference::from_fixed(*sum)).collect();
    for kernels in all_kernels() {
        let mut out = vec![0.0; sums.len()];
        kernels.finish_reduce(&sums, &mut out);
        assert_same_bits(&out, &expected, "finish_reduce");
    }
}

#[test]
fn embedding_rows_are_added_as_fixed_point() {
    let mut random = Random(6);
    for kernels in all_kernels() {
        for style in Style::ALL {
            for _ in 0..20 {
                let values = random.floats(style, 64);
                let mut sums = vec![7; 64];
                let in_bounds = kernels.accumulate_fixed(&values, &mut sums);
                let expected: Vec<_> = values.iter().map(|value| reference::to_fixed(*value)).collect();
                assert_eq!(in_bounds, expected.iter().all(Option::is_some));
                assert_eq!(
                    sums,
                    expected.iter().map(|fixed| 7 + fixed.unwrap_or(0)).collect::<Vec<_>>()
                );
            }
        }
    }
}
