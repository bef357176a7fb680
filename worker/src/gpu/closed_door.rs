//! The backend on a GPU, in a build that has none.

use std::sync::Arc;

use kvasir_kv::CellLayout;
use kvasir_model::{BackendKind, Checkpoint, WeightMode};

use crate::backend::{Backend, BackendError};

/// Errors always, with what would work.
pub fn open(
    kind: BackendKind,
    _: u32,
    _: Arc<Checkpoint>,
    _: WeightMode,
    _: CellLayout,
) -> Result<Box<dyn Backend>, BackendError> {
    Err(BackendError::Device {
        backend: kind.name(),
        reason: "this program was built without CUDA; `cargo xtask gpu --build-only` makes one that has it".to_owned(),
    })
}
