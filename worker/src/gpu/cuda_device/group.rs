//! The ranks of an epoch whose GPUs add sums among themselves, without the host.
//!
//! All ranks decide alike, from what all of them gathered: if one has no NCCL, or two share a GPU, sums go through the
//! host's collectives instead. Every wait has a deadline; past it the group is aborted and stays dead.

#[cfg(feature = "nccl")]
mod communicator;
#[cfg(not(feature = "nccl"))]
#[path = "group/no_communicator.rs"]
mod communicator;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaStream, sys};

use self::communicator::{Communicator, new_unique_id};
use super::error::doing;
use crate::{
    backend::BackendError,
    collective::Collective,
    gpu::{
        device::GpuError,
        group_card::{Card, common_id},
    },
};

/// As long as a call of the host's collectives may take.
const DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_micros(20);
/// Lets several ranks of one GPU form a communicator, in versions of NCCL that can.
const SHARED_GPU_VARIABLE: &str = "NCCL_MULTI_RANK_GPU_ENABLE";

#[derive(Debug)]
pub(super) struct Group {
    communicator: Communicator,
    is_dead: bool,
}

fn card(context: &CudaContext) -> Result<Card, GpuError> {
    let gpu = context.uuid().map_err(doing("asking the GPU's id"))?;
    Ok(Card {
        id: new_unique_id(),
        gpu: gpu.bytes.map(|byte| byte as u8),
        shares_gpu: std::env::var_os(SHARED_GPU_VARIABLE).is_some_and(|value| value == "1"),
    })
}

impl Group {
    /// `None` if sums have to go through the host. Every rank makes this call; it waits for the others.
    pub(super) fn form(
        context: &Arc<CudaContext>,
        collective: &mut dyn Collective,
    ) -> Result<Option<Self>, BackendError> {
        let mut gathered = Vec::new();
        collective.all_gather(&card(context)?.to_bytes(), &mut gathered)?;
        let cards: Option<Vec<Card>> = gathered.iter().map(|bytes| Card::parse(bytes)).collect();
        let Some(id) = cards.as_deref().and_then(common_id) else {
            return Ok(None);
        };
        context.bind_to_thread().map_err(doing("forming the group of GPUs"))?;
        let until = Instant::now() + DEADLINE;
        let communicator = Communicator::form(id, collective.world_size(), collective.rank(), until)?;
        Ok(Some(Self {
            communicator,
            is_dead: false,
        }))
    }

    /// Adds `len` i64 at `address` over all ranks, in place: integers, so that no order changes the bits.
    pub(super) fn all_reduce(&mut self, stream: &CudaStream, address: u64, len: usize) -> Result<(), GpuError> {
        self.check()?;
        let until = Instant::now() + DEADLINE;
        let started = self.communicator.all_reduce(stream, address, len, until);
        self.note(started)
    }

    /// Until the stream is done. An error of a peer, or the deadline, aborts what it waits for.
    pub(super) fn wait(&mut self, stream: &CudaStream) -> Result<(), GpuError> {
        self.check()?;
        let until = Instant::now() + DEADLINE;
        while !is_done(stream)? {
            let state = self.communicator.check(until);
            self.note(state)?;
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), GpuError> {
        if self.is_dead {
            let reason = "it failed before, and the next epoch forms another".to_owned();
            let doing = "adding among GPUs";
            return Err(GpuError::Device { doing, reason });
        }
        Ok(())
    }

    /// After a failure the stream would wait for ever without the abort.
    fn note<T>(&mut self, outcome: Result<T, GpuError>) -> Result<T, GpuError> {
        if outcome.is_err() {
            self.is_dead = true;
            self.communicator.abort();
        }
        outcome
    }
}

fn is_done(stream: &CudaStream) -> Result<bool, GpuError> {
    stream
        .context()
        .bind_to_thread()
        .map_err(doing("waiting for the GPU"))?;
    // SAFETY: the stream lives as long as the borrow.
    match unsafe { sys::cuStreamQuery(stream.cu_stream()) } {
        sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
        other => other.result().map(|()| true).map_err(doing("waiting for the GPU")),
    }
}
