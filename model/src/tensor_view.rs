//! One tensor of a checkpoint, as the bytes of its rows.

use std::ops::Range;

use crate::{WeightType, dequantize, dequantize_columns};

/// weights: [rows, cols], row-major; a vector has one row. `bytes` is exactly `rows` rows long.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    pub name: &'a str,
    pub weight_type: WeightType,
    pub rows: usize,
    pub cols: usize,
    pub bytes: &'a [u8],
}

impl<'a> TensorView<'a> {
    pub fn row_bytes(&self) -> usize {
        self.weight_type.row_bytes(self.cols)
    }

    /// Panics if there is no row `i`.
    pub fn row(&self, i: usize) -> &'a [u8] {
        assert!(i < self.rows, "row {i} of {} rows of {}", self.rows, self.name);
        let row_bytes = self.row_bytes();
        &self.bytes[i * row_bytes..][..row_bytes]
    }

    /// Panics if there is no row `i` or `out` is not `cols` long.
    pub fn dequantize_row(&self, i: usize, out: &mut [f32]) {
        dequantize(self.weight_type, self.row(i), out);
    }

    /// Some columns of a row, as [`dequantize_columns`] takes them. Panics if there is no row `i`.
    pub fn dequantize_row_columns(&self, i: usize, columns: Range<usize>, out: &mut [f32]) {
        dequantize_columns(self.weight_type, self.row(i), columns, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(bytes: &[u8], weight_type: WeightType, rows: usize, cols: usize) -> TensorView<'_> {
        TensorView {
            name: "w",
            weight_type,
            rows,
            cols,
            bytes,
        }
    }

    #[test]
    fn column_ranges_join_to_the_row() {
        for weight_type in WeightType::ALL {
            let bytes: Vec<u8> = (0..2 * weight_type.row_bytes(512))
                .map(|i| (i * 7 % 61) as u8)
                .collect();
            let w = view(&bytes, weight_type, 2, 512);
            let (mut whole, mut joined) = (vec![0.0; 512], vec![0.0; 512]);
            w.dequantize_row(1, &mut whole);
            for columns in [0..32, 32..352, 352..512] {
                w.dequantize_row_columns(1, columns.clone(), &mut joined[columns]);
            }
            assert_eq!(joined, whole, "{weight_type}");
            assert!(whole.iter().any(|weight| *weight != 0.0), "{weight_type}");
        }
    }

    #[test]
    #[should_panic(expected = "columns 0..16 are not multiples of 32")]
    fn a_cut_through_a_sub_block_is_refused() {
        let bytes = [0; 34];
        view(&bytes, WeightType::Q8_0, 1, 32).dequantize_row_columns(0, 0..16, &mut [0.0; 16]);
    }

    #[test]
    #[should_panic(expected = "row 1 of 1 rows of w")]
    fn a_row_that_does_not_exist_is_refused() {
        let bytes = [0; 128];
        view(&bytes, WeightType::F32, 1, 32).row(1);
    }
}
