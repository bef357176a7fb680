//! Stored weights as f32: the definition of what each `WeightType` means.
//!
//! Plain loops, for loading, tests and tools; the worker's kernels read the stored form.

use std::ops::Range;

use half::{bf16, f16};

use crate::{
    WeightType,
    sub_block::{SUB_BLOCK_LEN, SubBlock},
};

/// All columns of a row. Panics unless `row` holds exactly `out.len()` weights.
pub fn dequantize(weight_type: WeightType, row: &[u8], out: &mut [f32]) {
    assert_eq!(
        row.len(),
        weight_type.row_bytes(out.len()),
        "{weight_type} bytes of {} weights",
        out.len()
    );
    dequantize_columns(weight_type, row, 0..out.len(), out);
}

/// Some columns of a row. Panics if the range leaves the row, is not as long as `out`, or, of quantized weights, is not
/// made of whole 32-column sub-blocks.
pub fn dequantize_columns(weight_type: WeightType, row: &[u8], columns: Range<usize>, out: &mut [f32]) {
    assert_eq!(columns.len(), out.len());
    match weight_type {
        WeightType::F32 => each::<4>(row, columns, out, f32::from_le_bytes),
        WeightType::F16 => each::<2>(row, columns, out, |word| f16::from_le_bytes(word).to_f32()),
        WeightType::BF16 => each::<2>(row, columns, out, |word| bf16::from_le_bytes(word).to_f32()),
        _ => {
            let whole = columns.start.is_multiple_of(SUB_BLOCK_LEN) && columns.end.is_multiple_of(SUB_BLOCK_LEN);
            assert!(whole, "columns {columns:?} are not multiples of 32");
            let first = columns.start / SUB_BLOCK_LEN;
            for (index, out) in (first..).zip(out.chunks_exact_mut(SUB_BLOCK_LEN)) {
                SubBlock::read(weight_type, row, index).dequantize(weight_type, out);
            }
        }
    }
}

fn each<const BYTES: usize>(row: &[u8], columns: Range<usize>, out: &mut [f32], read: impl Fn([u8; BYTES]) -> f32) {
    for (word, out) in row.as_chunks().0[columns].iter().zip(out) {
        *out = read(*word);
    }
}
