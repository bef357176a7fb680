//! From the name of a backend to the backend.

use std::sync::Arc;

use kvasir_kv::CellLayout;
use kvasir_model::{BackendKind, Checkpoint, WeightMode};

use crate::{
    backend::{Backend, BackendError},
    canonical::Canonical,
    gpu,
    oracle::Oracle,
};

/// Which arithmetic, and with what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackendConfig {
    pub kind: BackendKind,
    /// Which of the machine's GPUs, where the backend computes on one.
    pub gpu_ordinal: u32,
    pub weight_mode: WeightMode,
    /// Of a rank on the CPU, at least 1.
    pub threads: usize,
    /// Address space for the cells of each head, so that a pool may grow in place.
    pub kv_memory_bytes: u64,
}

/// Nothing is loaded yet. Errors if a tensor cannot be read, or there is no such device.
pub fn open_backend(
    config: &BackendConfig,
    checkpoint: Arc<Checkpoint>,
    cell: CellLayout,
) -> Result<Box<dyn Backend>, BackendError> {
    let mode = config.weight_mode;
    Ok(match config.kind {
        BackendKind::Canonical => {
            let canonical = Canonical::new(checkpoint, mode, cell, config.threads)?;
            Box::new(canonical.with_cell_reserve(config.kv_memory_bytes))
        }
        BackendKind::Candle => Box::new(Oracle::new(checkpoint, mode, cell)?),
        BackendKind::CudaExact | BackendKind::CudaFast => {
            gpu::open(config.kind, config.gpu_ordinal, checkpoint, mode, cell)?
        }
    })
}
