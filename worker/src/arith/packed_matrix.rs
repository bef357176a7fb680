//! A slice of a weight matrix, repacked for the kernels.

use std::{fmt, io};

use kvasir_model::WeightType;

use super::{HugeBuffer, LANES, SUB_BLOCK, WeightArena, packed_format};

/// Weights `[rows, cols]` in row groups of 16; the last group is padded with zero rows.
pub struct PackedMatrix {
    weight_type: WeightType,
    rows: usize,
    cols: usize,
    group_bytes: usize,
    bytes: HugeBuffer,
}

impl PackedMatrix {
    /// Repacks rows into memory of the arena.
    ///
    /// cols: a multiple of 32. `row(i)` gives row i's columns as a GGUF file stores them, `weight_type.row_bytes(cols)` bytes.
    /// Errors if the arena gets no memory. Panics if a row has another length.
    pub fn pack<B: AsRef<[u8]>>(
        weight_type: WeightType,
        rows: usize,
        cols: usize,
        arena: &mut WeightArena,
        mut row: impl FnMut(usize) -> B,
    ) -> io::Result<Self> {
        assert!(
            cols.is_multiple_of(SUB_BLOCK),
            "{cols} columns are not whole sub-blocks"
        );
        let group_bytes = (cols / SUB_BLOCK * packed_format::sub_block_bytes(weight_type)).next_multiple_of(64);
        let bytes = arena.alloc(rows.div_ceil(LANES) * group_bytes)?;
        let mut matrix = Self {
            weight_type,
            rows,
            cols,
            group_bytes,
            bytes,
        };
        for index in 0..rows {
            matrix.pack_row(index, row(index).as_ref());
        }
        Ok(matrix)
    }

    fn pack_row(&mut self, row: usize, stored: &[u8]) {
        assert_eq!(
            stored.len(),
            self.weight_type.row_bytes(self.cols),
            "bytes of row {row}"
        );
        let sub_block_bytes = packed_format::sub_block_bytes(self.weight_type);
        let group = &mut self.bytes[row / LANES * self.group_bytes..][..self.cols / SUB_BLOCK * sub_block_bytes];
        let mut stored = stored.chunks_exact(self.weight_type.row_bytes(SUB_BLOCK));
        for record in group.chunks_mut(2 * sub_block_bytes) {
            let sub_blocks = record.len() / sub_block_bytes;
            for (index, stored) in stored.by_ref().take(sub_blocks).enumerate() {
                packed_format::pack(self.weight_type, stored, record, sub_blocks, index, row % LANES);
            }
        }
    }

    pub fn weight_type(&self) -> WeightType {
        self.weight_type
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Groups of 16 rows, the last one perhaps padded.
    pub fn num_groups(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Bytes that one step reads of it.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it takes int8 activations, or f32.
    pub fn wants_int8(&self) -> bool {
        packed_format::wants_int8(self.weight_type)
    }

    /// The records of a row group.
    #[inline(always)]
    pub(super) fn group(&self, group: usize) -> &[u8] {
        &self.bytes[group * self.group_bytes..][..self.group_bytes]
    }
}

impl fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackedMatrix({} [{}, {}])", self.weight_type, self.rows, self.cols)
    }
}
