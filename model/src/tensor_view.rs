//! One tensor of a checkpoint, as the bytes of its rows.

use std::ops::Range;

use crate::{WeightType, dequantize};

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

    /// The stored form of a range of columns: what a unit of a row-parallel weight is cut out by.
    /// Panics if the range leaves the row or is not made of whole 32-column sub-blocks.
    pub fn row_columns(&self, i: usize, columns: Range<usize>) -> &'a [u8] {
        assert!(
            columns.start.is_multiple_of(32) && columns.end.is_multiple_of(32),
            "columns {columns:?} of {} are not multiples of 32",
            self.name
        );
        let row = self.row(i);
        &row[self.weight_type.row_bytes(columns.start)..self.weight_type.row_bytes(columns.end)]
    }

    /// Panics if there is no row `i` or `out` is not `cols` long.
    pub fn dequantize_row(&self, i: usize, out: &mut [f32]) {
        dequantize(self.weight_type, self.row(i), out);
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
        let bytes: Vec<u8> = (0..2 * 3 * 20).map(|i| i as u8).collect();
        let w = view(&bytes, WeightType::Q4_1, 2, 96);
        for i in 0..2 {
            let joined = [w.row_columns(i, 0..32), w.row_columns(i, 32..96)].concat();
            assert_eq!(joined, w.row(i));
        }
        assert_eq!(w.row(1)[0], 60);
    }

    #[test]
    #[should_panic(expected = "columns 0..16 of w are not multiples of 32")]
    fn a_cut_through_a_sub_block_is_refused() {
        let bytes = [0; 128];
        view(&bytes, WeightType::F32, 1, 32).row_columns(0, 0..16);
    }

    #[test]
    #[should_panic(expected = "row 1 of 1 rows of w")]
    fn a_row_that_does_not_exist_is_refused() {
        let bytes = [0; 128];
        view(&bytes, WeightType::F32, 1, 32).row(1);
    }
}
