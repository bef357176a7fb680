//! What the device's memory gives: to a copy, and to a kernel that only reads.

use kvasir_worker::gpu::{
    device::{DeviceBuffer as _, GpuDevice as _, GpuError, LaunchShape},
    kernel::{Arguments as _, Kernel, ReadWordsArgs},
    test_device::{self, TestDevice, time_us},
};

use super::{Numbers, Scale, device_data, median_us};

/// Blocks of the reading kernel; the best counts.
const BLOCKS: [u32; 4] = [264, 528, 1056, 2112];

pub fn measure(scale: Scale) -> Result<Numbers, GpuError> {
    let mut device = test_device::open()?;
    let bytes = scale.pick(1 << 20, 4 << 30);
    let copy_gb_s = copy(&mut device, scale, bytes)?;
    let mut read_gb_s: f64 = 0.0;
    for blocks in BLOCKS {
        read_gb_s = read_gb_s.max(read(&mut device, scale, bytes, blocks)?);
    }
    Ok(Numbers::from([
        ("copy_gb_s".to_owned(), copy_gb_s),
        ("read_gb_s".to_owned(), read_gb_s),
    ]))
}

/// The larger of both: what shares are of.
pub fn roofline_gb_s(scale: Scale) -> Result<f64, GpuError> {
    Ok(measure(scale)?.into_values().fold(0.0, f64::max))
}

/// Bytes read plus bytes written.
fn copy(device: &mut TestDevice, scale: Scale, bytes: usize) -> Result<f64, GpuError> {
    let source = device_data::halves(device, bytes)?;
    let target = device.allocate("a copy", bytes)?;
    let us = median_us(scale.repeats(), |_| {
        time_us(device, |device| device.copy(&source, 0, &target, 0, bytes))
    })?;
    Ok(2.0 * bytes as f64 / us / 1e3)
}

fn read(device: &mut TestDevice, scale: Scale, bytes: usize, blocks: u32) -> Result<f64, GpuError> {
    let words = device_data::halves(device, bytes)?;
    let sums = device_data::put(device, &vec![0u32; blocks as usize])?;
    let args = ReadWordsArgs {
        words: words.address(),
        sums: sums.address(),
        count: bytes as u64 / 16,
    };
    let shape = LaunchShape::new([blocks, 1, 1], 256);
    let us = median_us(scale.repeats(), |_| {
        time_us(device, |device| args.launch(device, Kernel::ReadWords, shape))
    })?;
    Ok(bytes as f64 / us / 1e3)
}
