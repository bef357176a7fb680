//! How each weight type lies in a packed matrix.
//!
//! A row group (16 rows) is a run of *records*, and the kernels read it as one strictly sequential stream. Within a part
//! of a record, lanes are rows. Row groups start at cache lines.
//!
//! A record of a float or a 32-column type holds a pair of 32-column sub-blocks, the last one a single sub-block if their
//! number is odd, as `[scales][mins][quants]`, each part in order of the sub-blocks.
//!
//! A record of a 256-column type holds the sub-blocks of one stored block, as many as the matrix has of it: units cut
//! stored blocks at any sub-block. It is `[d][dmin][factors][min factors][quants]`, the last three in order of the
//! sub-blocks; d and dmin, f16 `[16]`, fill a cache line together.
//!
//! | type | scales, mins | quants of a sub-block |
//! |---|---|---|
//! | Q8_0 | f16 `[16]` | `[8 quads][16 rows][4 columns]` u8, 128 added to each |
//! | Q4_0, Q4_1 | f16 `[16]` each | nibbles: `[4 quads][16 rows][4 columns]` u8, low: column quad j, high: column quad j + 4 |
//! | Q5_0, Q5_1 | f16 `[16]` each | nibbles, then `[16 rows][4 columns]` u8, whose bit j is the fifth of column quad j |
//! | Q4_K, Q5_K | i8 `[16]` each | as Q4_1, Q5_1 |
//! | Q6_K | i8 `[2 halves][16]` | nibbles, then two of `[16 rows][4 columns]` u8: column quads 0 to 3 and 4 to 7, two bits each |
//! | BF16, F16, F32 | none | of both sub-blocks together: `[32 columns][sub-block][16 rows]` |

use kvasir_model::{SubBlock, WeightType};

use super::{LANES, SUB_BLOCK};

/// Bytes of the 16 scales, or mins, of a sub-block.
pub(super) const SCALES_BYTES: usize = 2 * LANES;
/// d and dmin of a record of a 256-column type.
pub(super) const HEADER_BYTES: usize = 2 * SCALES_BYTES;
/// Nibbles of a sub-block of a row group.
pub(super) const NIBBLES_BYTES: usize = SUB_BLOCK * LANES / 2;
/// One bit for each column of a sub-block of a row group.
pub(super) const PLANE_BYTES: usize = SUB_BLOCK * LANES / 8;
/// Sub-blocks of a stored block of 256 columns.
const SUPER_BLOCK: usize = 8;

/// Whether kernels take int8 activations for this weight type.
pub(super) fn wants_int8(weight_type: WeightType) -> bool {
    weight_type.is_quantized()
}

/// Where a matrix begins in its first stored block, in sub-blocks; what is of one stored block shares a record.
///
/// Always 0 for types of at most 32 columns a block.
pub(super) fn phase(weight_type: WeightType, first_sub_block: usize) -> usize {
    if is_super(weight_type) {
        first_sub_block % SUPER_BLOCK
    } else {
        0
    }
}

/// Sub-blocks of each record, in order.
pub(super) fn records(weight_type: WeightType, phase: usize, sub_blocks: usize) -> impl Iterator<Item = usize> {
    let whole = if is_super(weight_type) { SUPER_BLOCK } else { 2 };
    let mut done = 0;
    std::iter::from_fn(move || {
        let len = (whole - (phase + done) % whole).min(sub_blocks - done);
        done += len;
        (len > 0).then_some(len)
    })
}

pub(super) fn record_bytes(weight_type: WeightType, sub_blocks: usize) -> usize {
    let header = if is_super(weight_type) { HEADER_BYTES } else { 0 };
    header + sub_blocks * sub_block_bytes(weight_type)
}

/// Bytes of a row group.
pub(super) fn group_bytes(weight_type: WeightType, phase: usize, sub_blocks: usize) -> usize {
    let bytes = records(weight_type, phase, sub_blocks).map(|len| record_bytes(weight_type, len));
    bytes.sum::<usize>().next_multiple_of(64)
}

fn is_super(weight_type: WeightType) -> bool {
    weight_type.block_len() > SUB_BLOCK
}

/// Bytes of a sub-block of a row group, without a record's header.
pub(super) const fn sub_block_bytes(weight_type: WeightType) -> usize {
    match weight_type {
        WeightType::F32 => 4 * SUB_BLOCK * LANES,
        WeightType::F16 | WeightType::BF16 => 2 * SUB_BLOCK * LANES,
        _ => scales_bytes(weight_type) + quants_bytes(weight_type),
    }
}

/// Bytes of the scales and mins, or factors, of a sub-block of a row group.
const fn scales_bytes(weight_type: WeightType) -> usize {
    match weight_type {
        WeightType::Q8_0 | WeightType::Q4_0 | WeightType::Q5_0 => SCALES_BYTES,
        WeightType::Q4_1 | WeightType::Q5_1 => 2 * SCALES_BYTES,
        // Scale and minimum, or the scales of both halves.
        WeightType::Q4K | WeightType::Q5K | WeightType::Q6K => 2 * LANES,
        WeightType::F32 | WeightType::F16 | WeightType::BF16 => 0,
    }
}

/// Bytes of the quants of a sub-block of a row group.
pub(super) const fn quants_bytes(weight_type: WeightType) -> usize {
    match weight_type {
        WeightType::Q8_0 => SUB_BLOCK * LANES,
        WeightType::Q4_0 | WeightType::Q4_1 | WeightType::Q4K => NIBBLES_BYTES,
        WeightType::Q5_0 | WeightType::Q5_1 | WeightType::Q5K => NIBBLES_BYTES + PLANE_BYTES,
        WeightType::Q6K => NIBBLES_BYTES + 2 * PLANE_BYTES,
        WeightType::F32 | WeightType::F16 | WeightType::BF16 => 0,
    }
}

/// A sub-block's place in its record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Sub-blocks of the record.
    pub sub_blocks: usize,
    pub index: usize,
    /// The row in its group.
    pub lane: usize,
}

/// Writes sub-block `number` of a whole stored row into its record.
pub(super) fn pack(weight_type: WeightType, row: &[u8], number: usize, record: &mut [u8], place: Place) {
    match weight_type {
        WeightType::F32 => pack_float::<4>(row, number, record, place),
        WeightType::F16 | WeightType::BF16 => pack_float::<2>(row, number, record, place),
        _ => {
            let sub_block = SubBlock::read(weight_type, row, number);
            let (scales, quants) = record.split_at_mut(record.len() - place.sub_blocks * quants_bytes(weight_type));
            if is_super(weight_type) {
                pack_factors(weight_type, &sub_block, scales, place);
            } else {
                pack_scales(weight_type, &sub_block, scales, place);
            }
            let bytes = quants_bytes(weight_type);
            pack_quants(
                weight_type,
                &sub_block.quants,
                &mut quants[place.index * bytes..][..bytes],
                place.lane,
            );
        }
    }
}

fn pack_float<const BYTES: usize>(row: &[u8], number: usize, record: &mut [u8], place: Place) {
    let stored = &row.as_chunks::<BYTES>().0[number * SUB_BLOCK..][..SUB_BLOCK];
    for (column, weight) in stored.iter().enumerate() {
        let at = (column * place.sub_blocks + place.index) * LANES + place.lane;
        record[at * BYTES..][..BYTES].copy_from_slice(weight);
    }
}

fn pack_scales(weight_type: WeightType, sub_block: &SubBlock, scales: &mut [u8], place: Place) {
    let at = place.index * SCALES_BYTES + 2 * place.lane;
    scales[at..][..2].copy_from_slice(&sub_block.d.to_le_bytes());
    if scales_bytes(weight_type) > SCALES_BYTES {
        let mins = place.sub_blocks * SCALES_BYTES;
        scales[mins + at..][..2].copy_from_slice(&sub_block.dmin.to_le_bytes());
    }
}

fn pack_factors(weight_type: WeightType, sub_block: &SubBlock, scales: &mut [u8], place: Place) {
    let (header, factors) = scales.split_at_mut(HEADER_BYTES);
    header[2 * place.lane..][..2].copy_from_slice(&sub_block.d.to_le_bytes());
    header[SCALES_BYTES + 2 * place.lane..][..2].copy_from_slice(&sub_block.dmin.to_le_bytes());
    let [first, second] = sub_block.factors;
    if weight_type == WeightType::Q6K {
        for (half, factor) in [first, second].into_iter().enumerate() {
            factors[(2 * place.index + half) * LANES + place.lane] = factor as u8;
        }
        return;
    }
    factors[place.index * LANES + place.lane] = first as u8;
    factors[(place.sub_blocks + place.index) * LANES + place.lane] = sub_block.min_factor;
}

fn pack_quants(weight_type: WeightType, columns: &[u8; SUB_BLOCK], quants: &mut [u8], lane: usize) {
    // A quad is four columns of a row, side by side.
    let at = |column: usize| 4 * lane + column % 4;
    if weight_type == WeightType::Q8_0 {
        for (column, quant) in columns.iter().enumerate() {
            quants[column / 4 * 64 + at(column)] = *quant;
        }
        return;
    }
    let (nibbles, planes) = quants.split_at_mut(NIBBLES_BYTES);
    for column in 0..SUB_BLOCK / 2 {
        nibbles[column / 4 * 64 + at(column)] = columns[column] & 15 | columns[column + 16] << 4;
    }
    for (column, quant) in columns.iter().enumerate() {
        let (high, quad) = (quant >> 4, column / 4);
        match planes.len() / PLANE_BYTES {
            0 => {}
            1 => planes[at(column)] |= high << quad,
            _ => planes[quad / 4 * PLANE_BYTES + at(column)] |= high << (2 * (quad % 4)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_end_where_stored_blocks_end() {
        let lens = |weight_type, phase, sub_blocks| records(weight_type, phase, sub_blocks).collect::<Vec<_>>();
        assert_eq!(lens(WeightType::Q4_1, 0, 5), [2, 2, 1]);
        assert_eq!(lens(WeightType::Q4K, 0, 16), [8, 8]);
        assert_eq!(lens(WeightType::Q6K, 6, 12), [2, 8, 2]);
        assert_eq!(lens(WeightType::Q5K, 3, 2), [2]);
        assert_eq!(phase(WeightType::Q6K, 30), 6);
        assert_eq!(phase(WeightType::Q4_1, 3), 0);
    }
}
