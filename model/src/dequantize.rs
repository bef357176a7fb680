//! Stored weights as f32: the definition of what each `WeightType` means.
//!
//! Plain loops, for loading, tests and tools; the worker's kernels read the stored form. An f16 scale times a small
//! integer is exact in f32, so `d * q + m` rounds once and means the same fused or not.

use half::f16;

use crate::WeightType;

/// Panics unless `bytes` holds exactly `out.len()` weights.
pub fn dequantize(weight_type: WeightType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(
        bytes.len(),
        weight_type.row_bytes(out.len()),
        "{weight_type} bytes of {} weights",
        out.len()
    );
    match weight_type {
        WeightType::F32 => dequantize_f32(bytes, out),
        WeightType::F16 => dequantize_f16(bytes, out),
        WeightType::Q8_0 => dequantize_q8_0(bytes, out),
        WeightType::Q4_1 => dequantize_q4_1(bytes, out),
    }
}

fn dequantize_f32(bytes: &[u8], out: &mut [f32]) {
    let (words, _) = bytes.as_chunks::<4>();
    for (word, value) in words.iter().zip(out) {
        *value = f32::from_le_bytes(*word);
    }
}

fn dequantize_f16(bytes: &[u8], out: &mut [f32]) {
    let (words, _) = bytes.as_chunks::<2>();
    for (word, value) in words.iter().zip(out) {
        *value = f16::from_le_bytes(*word).to_f32();
    }
}

fn dequantize_q8_0(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<34>();
    for (block, values) in blocks.iter().zip(out.chunks_exact_mut(32)) {
        let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
        for (q, value) in block[2..].iter().zip(values) {
            *value = d * f32::from(*q as i8);
        }
    }
}

fn dequantize_q4_1(bytes: &[u8], out: &mut [f32]) {
    let (blocks, _) = bytes.as_chunks::<20>();
    for (block, values) in blocks.iter().zip(out.chunks_exact_mut(32)) {
        let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
        let m = f16::from_le_bytes([block[2], block[3]]).to_f32();
        let (low, high) = values.split_at_mut(16);
        for (j, byte) in block[4..].iter().enumerate() {
            low[j] = d * f32::from(byte & 15) + m;
            high[j] = d * f32::from(byte >> 4) + m;
        }
    }
}
