//! NCCL's communicator, in its non-blocking form: every call returns at once, and we do the waiting.

use std::{
    ffi::c_void,
    ptr,
    time::{Duration, Instant},
};

use candle_core::cuda_backend::cudarc::{
    driver::CudaStream,
    nccl::{
        result::{NcclError, NcclStatus, comm_abort, comm_init_rank_config, get_uniqueid},
        sys,
    },
};

use crate::gpu::{device::GpuError, group_card::UniqueId};

const POLL: Duration = Duration::from_micros(50);
/// What NCCL's own initializer of a configuration holds.
const CONFIG_MAGIC: u32 = 0xcafe_beef;
/// 2.28: a library of it or newer takes what it knows of the fields; all but the first of them are undefined.
const CONFIG_VERSION: u32 = 22_800;
const UNDEFINED: i32 = i32::MIN;

#[derive(Debug)]
pub(super) struct Communicator {
    /// Null once aborted.
    handle: sys::ncclComm_t,
}

/// `None` where NCCL cannot say one, as without a network interface.
pub(super) fn new_unique_id() -> Option<UniqueId> {
    let id = get_uniqueid().ok()?;
    Some(id.internal.map(|byte| byte as u8))
}

impl Communicator {
    /// Waits for all ranks, until a deadline. The context is bound to this thread.
    pub(super) fn form(id: UniqueId, world_size: usize, rank: usize, until: Instant) -> Result<Self, GpuError> {
        let id = sys::ncclUniqueId {
            internal: id.map(|byte| byte as _),
        };
        let mut communicator = Self {
            handle: ptr::null_mut(),
        };
        let mut config = config();
        // SAFETY: both pointers live until the call returns, which copies the configuration.
        let begun = unsafe {
            comm_init_rank_config(
                &raw mut communicator.handle,
                world_size as i32,
                id,
                rank as i32,
                &raw mut config,
            )
        };
        begun.map_err(|error| failed("forming the group of GPUs", &error))?;
        communicator.until_ready(until)?;
        Ok(communicator)
    }

    /// Starts the sum of `len` i64 in place, in the stream's order.
    pub(super) fn all_reduce(
        &self,
        stream: &CudaStream,
        address: u64,
        len: usize,
        until: Instant,
    ) -> Result<(), GpuError> {
        let (sums, sum) = (address as *mut c_void, sys::ncclRedOp_t::ncclSum);
        let dtype = sys::ncclDataType_t::ncclInt64;
        // NCCL names the runtime's streams, which are the driver's.
        let stream = stream.cu_stream().cast();
        // SAFETY: the caller names `len` i64 of device memory that outlive the stream's work.
        let begun = unsafe { sys::ncclAllReduce(sums, sums, len, dtype, sum, self.handle, stream) };
        match begun.result() {
            Ok(NcclStatus::InProgress) => self.until_ready(until),
            Ok(_) => Ok(()),
            Err(error) => Err(failed("adding among GPUs", &error)),
        }
    }

    /// Errors if a peer failed or the deadline is over.
    pub(super) fn check(&self, until: Instant) -> Result<(), GpuError> {
        self.is_ready()?;
        if Instant::now() < until {
            return Ok(());
        }
        Err(GpuError::Device {
            doing: "adding among GPUs",
            reason: "the deadline is over: a rank did not come".to_owned(),
        })
    }

    fn until_ready(&self, until: Instant) -> Result<(), GpuError> {
        while !self.is_ready()? {
            self.check(until)?;
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn is_ready(&self) -> Result<bool, GpuError> {
        let mut state = sys::ncclResult_t::ncclSuccess;
        // SAFETY: the handle is alive: `abort` takes the communicator by `&mut` and nothing is asked of it afterwards.
        let asked = unsafe { sys::ncclCommGetAsyncError(self.handle, &raw mut state) };
        let state = asked.result().and_then(|_| state.result());
        match state {
            Ok(state) => Ok(state != NcclStatus::InProgress),
            Err(error) => Err(failed("adding among GPUs", &error)),
        }
    }

    /// Ends what is under way, also where a peer is gone.
    pub(super) fn abort(&mut self) {
        let handle = std::mem::replace(&mut self.handle, ptr::null_mut());
        if handle.is_null() {
            return;
        }
        // SAFETY: the handle is no longer known to anybody.
        if let Err(error) = unsafe { comm_abort(handle) } {
            tracing::warn!(error = ?error.0, "the group of GPUs could not be ended");
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        self.abort();
    }
}

fn config() -> sys::ncclConfig_t {
    sys::ncclConfig_t {
        size: size_of::<sys::ncclConfig_t>(),
        magic: CONFIG_MAGIC,
        version: CONFIG_VERSION,
        blocking: 0,
        cgaClusterSize: UNDEFINED,
        minCTAs: UNDEFINED,
        maxCTAs: UNDEFINED,
        netName: ptr::null(),
        splitShare: UNDEFINED,
        trafficClass: UNDEFINED,
        commName: ptr::null(),
        collnetEnable: UNDEFINED,
        CTAPolicy: UNDEFINED,
        shrinkShare: UNDEFINED,
        nvlsCTAs: UNDEFINED,
        nChannelsPerNetPeer: UNDEFINED,
        nvlinkCentricSched: UNDEFINED,
        graphUsageMode: UNDEFINED,
        numRmaCtx: UNDEFINED,
        maxP2pPeers: UNDEFINED,
    }
}

fn failed(doing: &'static str, error: &NcclError) -> GpuError {
    GpuError::Device {
        doing,
        reason: format!("NCCL says {:?} (NCCL_DEBUG=INFO says why)", error.0),
    }
}
