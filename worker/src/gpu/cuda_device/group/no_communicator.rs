//! What stands for NCCL in a build without it: no communicator can be formed, so none exists.

use std::time::Instant;

use candle_core::cuda_backend::cudarc::driver::CudaStream;

use crate::gpu::{device::GpuError, group_card::UniqueId};

#[derive(Debug)]
pub(super) enum Communicator {}

/// A rank that has none keeps its whole group on the host's collectives.
pub(super) fn new_unique_id() -> Option<UniqueId> {
    None
}

impl Communicator {
    pub(super) fn form(_: UniqueId, _: usize, _: usize, _: Instant) -> Result<Self, GpuError> {
        Err(GpuError::Device {
            doing: "forming the group of GPUs",
            reason: "this program was built without the feature nccl".to_owned(),
        })
    }

    pub(super) fn all_reduce(&self, _: &CudaStream, _: u64, _: usize, _: Instant) -> Result<(), GpuError> {
        match *self {}
    }

    pub(super) fn check(&self, _: Instant) -> Result<(), GpuError> {
        match *self {}
    }

    pub(super) fn abort(&mut self) {
        match *self {}
    }
}
