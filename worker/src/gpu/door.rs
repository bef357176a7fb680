//! The backend on a GPU of NVIDIA's, for a worker.

use std::sync::Arc;

use kvasir_kv::CellLayout;
use kvasir_model::{BackendKind, Checkpoint, WeightMode};

use super::{Arithmetic, Gpu, cuda_device::CudaDevice};
use crate::backend::{Backend, BackendError};

/// On GPU number `ordinal`. Errors if it is not there, or if the backend is none for GPUs.
pub fn open(
    kind: BackendKind,
    ordinal: u32,
    checkpoint: Arc<Checkpoint>,
    mode: WeightMode,
    cell: CellLayout,
) -> Result<Box<dyn Backend>, BackendError> {
    let arithmetic = match kind {
        BackendKind::CudaExact => Arithmetic::Exact,
        BackendKind::CudaFast => Arithmetic::Fast,
        BackendKind::Canonical | BackendKind::Candle => {
            return Err(BackendError::Device {
                backend: kind.name(),
                reason: "it does not compute on a GPU; cuda-exact and cuda-fast do".to_owned(),
            });
        }
    };
    let device = CudaDevice::open(ordinal)?;
    Ok(Box::new(Gpu::new(device, arithmetic, checkpoint, mode, cell)?))
}
