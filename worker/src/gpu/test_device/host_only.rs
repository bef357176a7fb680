//! A build without CUDA: the host's device is the only one.

use std::time::Instant;

use crate::gpu::{
    device::GpuError,
    host_device::{HostBuffer, HostDevice},
};

pub type TestDevice = HostDevice;
pub type TestBuffer = HostBuffer;

pub(super) fn on_host() -> Result<TestDevice, GpuError> {
    HostDevice::new()
}

pub(super) fn on_gpu(ordinal: u32) -> Result<TestDevice, GpuError> {
    Err(GpuError::Device {
        doing: "choosing a device",
        reason: format!("GPU {ordinal} is wanted in a build without the feature cuda"),
    })
}

/// Microseconds that `work` takes: the host's device does all at once.
pub fn time_us(
    device: &mut TestDevice,
    work: impl FnOnce(&mut TestDevice) -> Result<(), GpuError>,
) -> Result<f64, GpuError> {
    let begun = Instant::now();
    work(device)?;
    Ok(begun.elapsed().as_secs_f64() * 1e6)
}
