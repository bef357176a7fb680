//! Device memory that is given back when dropped.

use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError, result, sys};

use super::error::doing;
use crate::gpu::device::{DeviceBuffer, GpuError};

#[derive(Debug)]
pub struct CudaBuffer {
    address: u64,
    bytes: usize,
    context: Arc<CudaContext>,
}

impl CudaBuffer {
    /// The driver aligns to 256 bytes at least. Nothing is allocated for 0 bytes.
    pub fn new(context: &Arc<CudaContext>, what: &'static str, bytes: usize) -> Result<Self, GpuError> {
        context.bind_to_thread().map_err(doing("allocating device memory"))?;
        let address = match bytes {
            0 => 0,
            // SAFETY: the address goes into the one buffer that frees it.
            _ => unsafe { result::malloc_sync(bytes) }.map_err(|error| failure(&error, what, bytes))?,
        };
        Ok(Self {
            address,
            bytes,
            context: Arc::clone(context),
        })
    }
}

fn failure(error: &DriverError, what: &'static str, bytes: usize) -> GpuError {
    match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => GpuError::OutOfMemory { what, bytes },
        _ => doing("allocating device memory")(error),
    }
}

impl DeviceBuffer for CudaBuffer {
    fn address(&self) -> u64 {
        self.address
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for CudaBuffer {
    fn drop(&mut self) {
        if self.address == 0 || self.context.bind_to_thread().is_err() {
            return;
        }
        // SAFETY: nobody else has the address, and the driver waits for work that still uses it.
        let freed = unsafe { result::free_sync(self.address) };
        if let Err(error) = freed {
            tracing::warn!(bytes = self.bytes, %error, "device memory could not be given back");
        }
    }
}
