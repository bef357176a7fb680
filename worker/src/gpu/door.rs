//! The backend on a GPU of NVIDIA's, for a worker.

use std::sync::Arc;

use kvasir_kv::CellLayout;
use kvasir_model::{BackendKind, Checkpoint, WeightMode};

use super::{Gpu, cuda_device::CudaDevice};
use crate::backend::{Backend, BackendError};

/// On GPU number `ordinal`. Errors if it is not there, or if the backend is none for GPUs.
pub fn open(
    kind: BackendKind,
    ordinal: u32,
    checkpoint: Arc<Checkpoint>,
    mode: WeightMode,
    cell: CellLayout,
) -> Result<Box<dyn Backend>, BackendError> {
    match kind {
        BackendKind::CudaExact => Ok(Box::new(Gpu::new(CudaDevice::open(ordinal)?, checkpoint, mode, cell)?)),
        other => Err(BackendError::Device {
            backend: other.name(),
            reason: "it does not compute on a GPU; cuda-exact (--gpu-mode exact) does".to_owned(),
        }),
    }
}
