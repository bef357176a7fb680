//! What the driver and the libraries say, in our words.

use std::fmt::Display;

use crate::gpu::device::GpuError;

/// Names the call that failed.
pub(super) fn doing<E: Display>(doing: &'static str) -> impl Fn(E) -> GpuError {
    move |error| GpuError::Device {
        doing,
        reason: error.to_string(),
    }
}
