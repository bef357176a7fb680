//! Random data on the device, written once and copied there.

use bytemuck::Pod;
use kvasir_worker::gpu::{
    device::{GpuDevice as _, GpuError},
    test_device::{TestBuffer, TestDevice},
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};

/// Made on the host; more is copied from it.
const SEED_BYTES: usize = 1 << 22;

pub fn put<T: Pod>(device: &mut TestDevice, values: &[T]) -> Result<TestBuffer, GpuError> {
    let bytes = bytemuck::cast_slice(values);
    let buffer = device.allocate("what is measured", bytes.len())?;
    device.upload(bytes, &buffer, 0)?;
    Ok(buffer)
}

/// 16-bit floats between 1/2 and 1, of either sign: as f16. No bits are left to chance that make infinities.
pub fn halves(device: &mut TestDevice, bytes: usize) -> Result<TestBuffer, GpuError> {
    let mut random = ChaCha8Rng::seed_from_u64(bytes as u64);
    let half = |bits: u32| (bits as u16 & 0x83ff) | 0x3800;
    let seed: Vec<u16> = (0..SEED_BYTES.min(bytes) / 2)
        .map(|_| half(random.next_u32()))
        .collect();
    let buffer = device.allocate("random halves", bytes)?;
    device.upload(bytemuck::cast_slice(&seed), &buffer, 0)?;
    let mut filled = 2 * seed.len();
    while filled < bytes {
        let more = filled.min(bytes - filled);
        device.copy(&buffer, 0, &buffer, filled, more)?;
        filled += more;
    }
    Ok(buffer)
}

/// Between -1 and 1.
pub fn floats(device: &mut TestDevice, len: usize) -> Result<TestBuffer, GpuError> {
    let mut random = ChaCha8Rng::seed_from_u64(len as u64);
    let float = |bits: u32| bits as i32 as f32 / (1u32 << 31) as f32;
    let values: Vec<f32> = (0..len).map(|_| float(random.next_u32())).collect();
    put(device, &values)
}
