//! Matrix products of every weight type and number of tokens.

use kvasir_model::WeightType;

use super::{DeviceInt8, Host, random};
use crate::{
    arith::{
        reference,
        tests::inputs::{Random, Style, assert_same_bits},
    },
    gpu::{
        device::{DeviceBuffer as _, LaunchShape},
        kernel::{Kernel, MatmulArgs, QuantizeArgs, RowGroup},
        packed_rows::{GROUP_ROWS, PackedKind, pack_rows},
        product::Product,
        test_device::TestBuffer,
    },
};

/// As many as each kernel takes, fewer and more.
const TOKENS: [usize; 9] = [1, 2, 3, 4, 7, 8, 11, 16, 70];

/// A matrix as stored, and tokens.
struct Case {
    weight_type: WeightType,
    rows: Vec<Vec<u8>>,
    cols: usize,
    x: Vec<f32>,
    tokens: usize,
}

impl Case {
    fn new(
        random: &mut Random,
        style: Style,
        weight_type: WeightType,
        rows: usize,
        cols: usize,
        tokens: usize,
    ) -> Self {
        let whole = cols.next_multiple_of(weight_type.block_len());
        Self {
            weight_type,
            rows: (0..rows).map(|_| random.row(weight_type, style, whole)).collect(),
            cols,
            x: random.floats(style, cols * tokens),
            tokens,
        }
    }

    fn pack(&self, columns: std::ops::Range<usize>) -> Vec<u8> {
        let mut packed = Vec::new();
        let row = |row: usize| self.rows[row].as_slice().into();
        pack_rows(self.weight_type, self.rows.len(), columns, row, &mut packed);
        packed
    }

    /// The tokens on the device, quantized too.
    fn put_x(&self, host: &mut Host) -> (TestBuffer, DeviceInt8, TestBuffer) {
        let x = host.put(&self.x);
        let int8 = DeviceInt8::room(host, self.cols, self.tokens);
        let poison = host.put(&vec![0u32; self.tokens]);
        let args = QuantizeArgs {
            x: x.address(),
            int8: int8.rows(),
            poison: poison.address(),
            cols: self.cols as u32,
            padding: 0,
        };
        let grid = [self.cols.div_ceil(256) as u32, self.tokens as u32, 1];
        host.run(Kernel::Quantize, LaunchShape::new(grid, 256), &args);
        (x, int8, host.put(&vec![0u32; self.tokens]))
    }

    fn dot(&self, row: usize, token: usize, columns: std::ops::Range<usize>) -> f32 {
        let x = &self.x[token * self.cols..][columns.clone()];
        reference::dot(self.weight_type, &self.rows[row], columns.start, x)
    }

    fn kind(&self) -> PackedKind {
        PackedKind::of(self.weight_type)
    }
}

#[test]
fn columns_are_the_definitions_for_every_type_and_number_of_tokens() {
    let (mut host, mut random) = (Host::new(), random());
    for weight_type in WeightType::ALL {
        for style in Style::ALL {
            for tokens in TOKENS {
                for (rows, cols) in [(16, 32), (33, 96), (70, 544)] {
                    if tokens > 16 && cols > 500 && style != Style::Extreme {
                        continue;
                    }
                    let case = Case::new(&mut random, style, weight_type, rows, cols, tokens);
                    check_columns(
                        &mut host,
                        &case,
                        &format!("{weight_type} {style:?} {rows}x{cols} {tokens}"),
                    );
                }
            }
        }
    }
}

fn check_columns(host: &mut Host, case: &Case, context: &str) {
    let rows = case.rows.len();
    let weights = host.put(&case.pack(0..case.cols));
    // The groups' places in the output are turned around: the table says where rows go.
    let num_groups = rows.div_ceil(GROUP_ROWS);
    let groups: Vec<RowGroup> = (0..num_groups)
        .map(|group| RowGroup {
            weights: weights.address() + (group * case.kind().group_bytes(case.cols)) as u64,
            out_row: ((num_groups - 1 - group) * GROUP_ROWS) as u32,
            rows: GROUP_ROWS.min(rows - group * GROUP_ROWS) as u32,
        })
        .collect();
    let pieces = host.put(&groups);
    let (x, int8, poison) = case.put_x(host);
    let stride = num_groups * GROUP_ROWS;
    let out = host.put(&vec![f32::MAX; stride * case.tokens]);
    let args = MatmulArgs {
        pieces: pieces.address(),
        x: x.address(),
        int8: int8.rows(),
        out: out.address(),
        poison: poison.address(),
        num_row_groups: num_groups as u32,
        num_units: 1,
        unit_sub_blocks: (case.cols / 32) as u32,
        last_sub_blocks: (case.cols / 32) as u32,
        cols: case.cols as u32,
        tokens: case.tokens as u32,
        out_stride: stride as u32,
        padding: 0,
    };
    Product::Columns
        .launch(&mut host.0, case.kind(), &args)
        .expect("a launch");
    let mut expected = vec![f32::MAX; stride * case.tokens];
    for token in 0..case.tokens {
        for row in 0..rows {
            let out_row = groups[row / GROUP_ROWS].out_row as usize + row % GROUP_ROWS;
            expected[token * stride + out_row] = case.dot(row, token, 0..case.cols);
        }
    }
    assert_same_bits(&host.get(&out), &expected, context);
    assert_eq!(host.get::<u32>(&poison), vec![0; case.tokens], "{context}");
}

#[test]
fn partials_are_the_definitions_for_every_type_and_number_of_tokens() {
    let (mut host, mut random) = (Host::new(), random());
    let mut poisoned = 0;
    for weight_type in WeightType::ALL {
        for style in Style::ALL {
            for tokens in TOKENS {
                // Units of one, two, three and seventeen sub-blocks; the last one shorter.
                for (unit, units, last) in [(32, 3, 32), (64, 5, 32), (96, 2, 96), (544, 2, 160)] {
                    if tokens > 16 && unit > 500 && style != Style::Extreme {
                        continue;
                    }
                    let cols = unit * (units - 1) + last;
                    let case = Case::new(&mut random, style, weight_type, 32, cols, tokens);
                    let context = format!("{weight_type} {style:?} {units} units of {unit} {tokens}");
                    let deal = 1 + random.below(units) as u32;
                    poisoned += check_partials(&mut host, &case, unit, deal, &format!("{context} dealt to {deal}"));
                }
            }
        }
    }
    assert!(poisoned > 0, "extreme inputs reach the bound");
}

fn check_partials(host: &mut Host, case: &Case, unit: usize, deal: u32, context: &str) -> usize {
    let rows = case.rows.len();
    let columns: Vec<_> = (0..case.cols)
        .step_by(unit)
        .map(|at| at..case.cols.min(at + unit))
        .collect();
    let units: Vec<TestBuffer> = columns
        .iter()
        .map(|columns| host.put(&case.pack(columns.clone())))
        .collect();
    let pieces = host.put(&units.iter().map(|unit| unit.address()).collect::<Vec<_>>());
    let (x, int8, poison) = case.put_x(host);
    let sums = host.put(&vec![7i64; rows * case.tokens]);
    let args = MatmulArgs {
        pieces: pieces.address(),
        x: x.address(),
        int8: int8.rows(),
        out: sums.address(),
        poison: poison.address(),
        num_row_groups: (rows / GROUP_ROWS) as u32,
        num_units: columns.len() as u32,
        unit_sub_blocks: (unit / 32) as u32,
        last_sub_blocks: (columns[columns.len() - 1].len() / 32) as u32,
        cols: case.cols as u32,
        tokens: case.tokens as u32,
        out_stride: rows as u32,
        padding: 0,
    };
    Product::Partials
        .launch_dealt(&mut host.0, case.kind(), &args, deal)
        .expect("a launch");
    let mut expected_poison = vec![0; case.tokens];
    let mut expected = vec![7i64; rows * case.tokens];
    for token in 0..case.tokens {
        for row in 0..rows {
            for columns in &columns {
                let fixed = reference::to_fixed(case.dot(row, token, columns.clone()));
                expected_poison[token] |= u32::from(fixed.is_none());
                expected[token * rows + row] += fixed.unwrap_or(0);
            }
        }
    }
    assert_eq!(host.get::<i64>(&sums), expected, "{context}");
    assert_eq!(host.get::<u32>(&poison), expected_poison, "{context}");
    expected_poison.iter().filter(|poison| **poison != 0).count()
}
