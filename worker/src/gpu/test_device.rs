//! The device that tests and measurements run on: the host's, or the GPU that `KVASIR_GPU` numbers, in a build that has one.

#[cfg(feature = "cuda")]
mod either;
#[cfg(not(feature = "cuda"))]
#[path = "test_device/host_only.rs"]
mod either;

pub use either::{TestBuffer, TestDevice, time_us};

use super::device::GpuError;

/// Unset or `host`: the kernels on the host.
const VARIABLE: &str = "KVASIR_GPU";

/// Errors if there is no such device here, or in this build.
pub fn open() -> Result<TestDevice, GpuError> {
    let wanted = std::env::var(VARIABLE).unwrap_or_default();
    if wanted.is_empty() || wanted == "host" {
        return either::on_host();
    }
    let ordinal = wanted.parse().map_err(|_| GpuError::Device {
        doing: "choosing a device",
        reason: format!("{VARIABLE} is `{wanted}`; supported: host, or the number of a GPU"),
    })?;
    either::on_gpu(ordinal)
}

/// Whether tests run on a real GPU: sizes can be real there.
pub fn is_gpu() -> bool {
    std::env::var(VARIABLE).is_ok_and(|wanted| !wanted.is_empty() && wanted != "host")
}
