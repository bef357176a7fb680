//! Fills cells with K and V that nobody computed, so that a long context costs no prefill. What it takes to read them is
//! the same.

use kvasir_kv::{BlockId, CellLayout, KvDtype, KvHead};
use kvasir_worker::{backend::BackendError, rank_threads::RankThread};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// A scale of q8_0 cells, 2^-7 as f16.
const SCALE: u16 = 0x2000;

/// Fills the cells of these blocks of the rank's KV heads.
pub fn fill(rank: &mut RankThread, layout: &CellLayout, blocks: &[BlockId]) -> Result<(), BackendError> {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    for head in rank.share.attention.clone().map(KvHead) {
        for block in blocks {
            let mut fill = |cell: &mut [u8]| {
                fill_cell(cell, layout, &mut random);
                true
            };
            rank.backend.fill_cell(head, *block, layout.cell_bytes(), &mut fill)?;
        }
    }
    Ok(())
}

/// Values below 1 of either sign.
fn fill_cell(cell: &mut [u8], layout: &CellLayout, random: &mut ChaCha8Rng) {
    let (kept, set): (u64, u64) = match layout.dtype() {
        KvDtype::F32 => (0x807f_ffff_807f_ffff, 0x3d80_0000_3d80_0000),
        KvDtype::F16 => (0x83ff_83ff_83ff_83ff, 0x2c00_2c00_2c00_2c00),
        KvDtype::Q8_0 => (u64::MAX, 0),
    };
    for eight in cell.chunks_mut(8) {
        let bytes = ((random.next_u64() & kept) | set).to_le_bytes();
        eight.copy_from_slice(&bytes[..eight.len()]);
    }
    if layout.dtype() != KvDtype::Q8_0 {
        return;
    }
    let quants = (layout.block_size() * layout.head_dim()) as usize;
    for plane in cell.chunks_exact_mut(layout.plane_bytes()) {
        for scale in plane[quants..].chunks_exact_mut(2) {
            scale.copy_from_slice(&SCALE.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_of_every_dtype_is_below_one() {
        let f16 = |bytes: &[u8]| {
            let bits = u32::from(u16::from_le_bytes([bytes[0], bytes[1]]));
            f32::from_bits(((bits & 0x8000) << 16) | (((bits & 0x7fff) << 13) + (112 << 23)))
        };
        for dtype in KvDtype::ALL {
            let layout = CellLayout::new(2, 32, 16, dtype).unwrap();
            let mut cell = vec![0; layout.cell_bytes()];
            fill_cell(&mut cell, &layout, &mut ChaCha8Rng::seed_from_u64(1));
            let values: Vec<f32> = match dtype {
                KvDtype::F32 => cell
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|bytes| f32::from_le_bytes(*bytes))
                    .collect(),
                KvDtype::F16 => cell.chunks_exact(2).map(f16).collect(),
                KvDtype::Q8_0 => {
                    let planes = cell.chunks_exact(layout.plane_bytes());
                    planes
                        .flat_map(|plane| plane[16 * 32..].chunks_exact(2).map(f16))
                        .collect()
                }
            };
            assert!(
                !values.is_empty() && values.iter().all(|value| value.abs() > 0.0 && value.abs() < 1.0),
                "{dtype}"
            );
        }
    }
}
