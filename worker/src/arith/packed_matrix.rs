//! A slice of a weight matrix, repacked for the kernels.

use std::{fmt, io, ops::Range};

use kvasir_model::WeightType;

use super::{HugeBuffer, LANES, SUB_BLOCK, WeightArena, packed_format};

/// Weights `[rows, cols]` in row groups of 16; the last group is padded with zero rows.
pub struct PackedMatrix {
    weight_type: WeightType,
    rows: usize,
    cols: usize,
    /// Where its first column lies in a stored block, in sub-blocks.
    phase: usize,
    group_bytes: usize,
    bytes: HugeBuffer,
}

impl PackedMatrix {
    /// Repacks columns of rows into memory of the arena.
    ///
    /// columns: whole sub-blocks of 32. `row(i)` gives the whole of row i as a GGUF file stores it.
    /// Errors if the arena gets no memory. Panics if a row is too short for the columns.
    pub fn pack<B: AsRef<[u8]>>(
        weight_type: WeightType,
        rows: usize,
        columns: Range<usize>,
        arena: &mut WeightArena,
        mut row: impl FnMut(usize) -> B,
    ) -> io::Result<Self> {
        assert!(
            columns.start.is_multiple_of(SUB_BLOCK) && columns.end.is_multiple_of(SUB_BLOCK),
            "columns {columns:?} are not whole sub-blocks"
        );
        let cols = columns.len();
        let first = columns.start / SUB_BLOCK;
        let phase = packed_format::phase(weight_type, first);
        let group_bytes = packed_format::group_bytes(weight_type, phase, cols / SUB_BLOCK);
        let bytes = arena.alloc(rows.div_ceil(LANES) * group_bytes)?;
        let mut matrix = Self {
            weight_type,
            rows,
            cols,
            phase,
            group_bytes,
            bytes,
        };
        for index in 0..rows {
            matrix.pack_row(index, row(index).as_ref(), first);
        }
        Ok(matrix)
    }

    /// stored: a whole row; first: its sub-block that is the matrix's first.
    fn pack_row(&mut self, row: usize, stored: &[u8], first: usize) {
        let mut group = &mut self.bytes[row / LANES * self.group_bytes..][..self.group_bytes];
        let mut number = first;
        for sub_blocks in packed_format::records(self.weight_type, self.phase, self.cols / SUB_BLOCK) {
            let (record, rest) = group.split_at_mut(packed_format::record_bytes(self.weight_type, sub_blocks));
            group = rest;
            for index in 0..sub_blocks {
                let place = packed_format::Place {
                    sub_blocks,
                    index,
                    lane: row % LANES,
                };
                packed_format::pack(self.weight_type, stored, number, record, place);
                number += 1;
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

    /// Where its first column lies in a stored block, in sub-blocks.
    #[inline(always)]
    pub(super) fn phase(&self) -> usize {
        self.phase
    }
}

impl fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackedMatrix({} [{}, {}])", self.weight_type, self.rows, self.cols)
    }
}
