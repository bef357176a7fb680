//! Weights as the kernels read them: `worker/cuda/matmul.h` has the order.
//!
//! Floats stay as stored. A quantized type becomes int8 quants with one or two f32 factors for 32 columns, whatever it was: 36
//! or 40 bytes where Q4_0 has 18 and Q8_0 34. That is memory and bandwidth spent so that six kernels serve all types.

use std::ops::Range;

use kvasir_model::{SubBlock, WeightType};

/// Rows of a row group.
pub const GROUP_ROWS: usize = 16;
const SUB_BLOCK: usize = 32;
/// Lanes of a warp: two sub-blocks of 16 rows.
const LANES: usize = 32;
/// Bytes that a lane reads at once, and that a warp does.
const LOAD: usize = 16;
const WARP_LOAD: usize = LANES * LOAD;

/// What a type is on the device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PackedKind {
    F32,
    F16,
    BF16,
    /// A scale.
    Int8,
    /// A scale and a minimum.
    Int8Min,
    /// A scale for each half of a sub-block.
    Int8Halves,
}

impl PackedKind {
    pub const ALL: [Self; 6] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Int8,
        Self::Int8Min,
        Self::Int8Halves,
    ];

    pub fn of(weight_type: WeightType) -> Self {
        use WeightType::*;
        match weight_type {
            F32 => Self::F32,
            F16 => Self::F16,
            BF16 => Self::BF16,
            Q8_0 | Q4_0 | Q5_0 => Self::Int8,
            Q4_1 | Q5_1 | Q4K | Q5K => Self::Int8Min,
            Q6K => Self::Int8Halves,
        }
    }

    pub fn wants_int8(self) -> bool {
        self >= Self::Int8
    }

    /// Factors of a sub-block, f32 each.
    fn num_factors(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 0,
            Self::Int8 => 1,
            Self::Int8Min | Self::Int8Halves => 2,
        }
    }

    fn element_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Int8 | Self::Int8Min | Self::Int8Halves => 1,
        }
    }

    /// Bytes of 16 rows and two sub-blocks.
    fn pair_bytes(self) -> usize {
        LANES * (SUB_BLOCK * self.element_bytes() + 4 * self.num_factors())
    }

    /// Bytes of 16 rows of so many columns, a multiple of 32.
    pub fn group_bytes(self, cols: usize) -> usize {
        (cols / SUB_BLOCK).div_ceil(2) * self.pair_bytes()
    }

    /// Bytes of a matrix.
    pub fn bytes(self, rows: usize, cols: usize) -> usize {
        rows.div_ceil(GROUP_ROWS) * self.group_bytes(cols)
    }
}

/// Appends some columns, a multiple of 32 from a multiple of 32, of `rows` rows. row: a whole row as stored.
pub fn pack_rows<'a>(
    weight_type: WeightType,
    rows: usize,
    columns: Range<usize>,
    row: impl Fn(usize) -> std::borrow::Cow<'a, [u8]>,
    out: &mut Vec<u8>,
) {
    let kind = PackedKind::of(weight_type);
    assert!(columns.start.is_multiple_of(SUB_BLOCK) && columns.end.is_multiple_of(SUB_BLOCK));
    let begin = out.len();
    out.resize(begin + kind.bytes(rows, columns.len()), 0);
    let groups = out[begin..].chunks_exact_mut(kind.group_bytes(columns.len()));
    for (group, out) in groups.enumerate() {
        for in_group in 0..GROUP_ROWS.min(rows - group * GROUP_ROWS) {
            let row = row(group * GROUP_ROWS + in_group);
            for (at, sub_block) in (columns.start / SUB_BLOCK..columns.end / SUB_BLOCK).enumerate() {
                let pair = &mut out[at / 2 * kind.pair_bytes()..][..kind.pair_bytes()];
                let lane = at % 2 * GROUP_ROWS + in_group;
                if kind.wants_int8() {
                    put_quants(&SubBlock::read(weight_type, &row, sub_block), weight_type, lane, pair);
                } else {
                    let bytes = SUB_BLOCK * kind.element_bytes();
                    put_loads(&row[sub_block * bytes..][..bytes], lane, pair);
                }
            }
        }
    }
}

/// A lane's bytes, load by load.
fn put_loads(bytes: &[u8], lane: usize, pair: &mut [u8]) {
    for (bytes, warp) in bytes.chunks_exact(LOAD).zip(pair.chunks_exact_mut(WARP_LOAD)) {
        warp[lane * LOAD..][..LOAD].copy_from_slice(bytes);
    }
}

fn put_quants(sub_block: &SubBlock, weight_type: WeightType, lane: usize, pair: &mut [u8]) {
    let zero_point = SubBlock::zero_point(weight_type);
    let quants = sub_block
        .quants
        .map(|quant| (i32::from(quant) - zero_point) as i8 as u8);
    put_loads(&quants, lane, pair);
    let second = match PackedKind::of(weight_type) {
        PackedKind::Int8Min => sub_block.min(),
        _ => sub_block.scale(1),
    };
    let factors = pair[SUB_BLOCK / LOAD * WARP_LOAD..].chunks_exact_mut(LANES * 4);
    for (factor, lanes) in [sub_block.scale(0), second].into_iter().zip(factors) {
        lanes[lane * 4..][..4].copy_from_slice(&factor.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_takes_the_bytes_that_its_kind_says() {
        for weight_type in WeightType::ALL {
            let row = vec![0u8; weight_type.row_bytes(256)];
            let mut packed = Vec::new();
            pack_rows(weight_type, 17, 0..96, |_| row.as_slice().into(), &mut packed);
            let kind = PackedKind::of(weight_type);
            assert_eq!(packed.len(), kind.bytes(17, 96));
            assert_eq!(packed.len(), 2 * 2 * kind.pair_bytes());
        }
        assert_eq!(PackedKind::BF16.group_bytes(4096), 16 * 4096 * 2);
        assert_eq!(PackedKind::Int8.group_bytes(4096), 16 * 128 * 36);
    }
}
