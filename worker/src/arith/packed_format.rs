//! How each weight type lies in a packed matrix.
//!
//! A row group (16 rows) is a run of *records*. A record holds a pair of 32-column sub-blocks, the last one a single sub-block
//! if their number is odd, as `[scales][mins][quants]`, each part in order of the sub-blocks: the kernels read one strictly
//! sequential stream. Within a part, lanes are rows. Row groups start at cache lines.
//!
//! | type | scales, mins | quants of a sub-block |
//! |---|---|---|
//! | Q8_0 | f16 `[16]` | `[8 quads][16 rows][4 columns]` u8, 128 added to each |
//! | Q4_1 | f16 `[16]` each | `[4 quads][16 rows][4 columns]` u8, low nibble column quad j, high nibble column quad j + 4 |
//! | F16, F32 | none | of both sub-blocks together: `[32 columns][sub-block][16 rows]` |

use kvasir_model::WeightType;

use super::{LANES, SUB_BLOCK};

/// The zero point of Q8_0's unsigned quants.
pub(super) const Q8_0_ZERO_POINT: i32 = 128;
/// Bytes of the 16 scales, or mins, of a sub-block.
pub(super) const SCALES_BYTES: usize = 2 * LANES;

/// Whether kernels take int8 activations for this weight type.
pub(super) fn wants_int8(weight_type: WeightType) -> bool {
    match weight_type {
        WeightType::F32 | WeightType::F16 => false,
        WeightType::Q8_0 | WeightType::Q4_1 => true,
    }
}

/// Bytes of a sub-block of a row group.
pub(super) fn sub_block_bytes(weight_type: WeightType) -> usize {
    match weight_type {
        WeightType::F32 => 4 * SUB_BLOCK * LANES,
        WeightType::F16 => 2 * SUB_BLOCK * LANES,
        WeightType::Q8_0 => SCALES_BYTES + SUB_BLOCK * LANES,
        WeightType::Q4_1 => 2 * SCALES_BYTES + SUB_BLOCK * LANES / 2,
    }
}

/// Writes one row's sub-block, as stored, into its record.
///
/// record: of `sub_blocks` (1 or 2) sub-blocks, of which this is number `index`; lane: the row in its group.
pub(super) fn pack(
    weight_type: WeightType,
    stored: &[u8],
    record: &mut [u8],
    sub_blocks: usize,
    index: usize,
    lane: usize,
) {
    let scale_at = index * SCALES_BYTES + 2 * lane;
    let mins = sub_blocks * SCALES_BYTES;
    match weight_type {
        WeightType::F32 => pack_float::<4>(stored, record, sub_blocks, index, lane),
        WeightType::F16 => pack_float::<2>(stored, record, sub_blocks, index, lane),
        WeightType::Q8_0 => {
            record[scale_at..][..2].copy_from_slice(&stored[..2]);
            let quants = &mut record[mins + index * SUB_BLOCK * LANES..];
            for (column, q) in stored[2..].iter().enumerate() {
                quants[column / 4 * 64 + 4 * lane + column % 4] = q.wrapping_add(Q8_0_ZERO_POINT as u8);
            }
        }
        WeightType::Q4_1 => {
            record[scale_at..][..2].copy_from_slice(&stored[..2]);
            record[mins + scale_at..][..2].copy_from_slice(&stored[2..4]);
            // Stored and packed bytes pair the same columns: j and j + 16.
            let quants = &mut record[2 * mins + index * SUB_BLOCK * LANES / 2..];
            for (j, pair) in stored[4..].iter().enumerate() {
                quants[j / 4 * 64 + 4 * lane + j % 4] = *pair;
            }
        }
    }
}

fn pack_float<const BYTES: usize>(stored: &[u8], record: &mut [u8], sub_blocks: usize, index: usize, lane: usize) {
    for (column, weight) in stored.as_chunks::<BYTES>().0.iter().enumerate() {
        let at = (column * sub_blocks + index) * LANES + lane;
        record[at * BYTES..][..BYTES].copy_from_slice(weight);
    }
}
