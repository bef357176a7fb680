//! Pinned host memory that bytes pass through on their way to and from the GPU.
//!
//! Copies from ordinary memory would stop the stream for each piece; two pinned halves let one be filled while the other
//! is on its way.

use std::{slice, sync::Arc};

use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaEvent, CudaStream, result, sys};

use super::error::doing;
use crate::gpu::device::GpuError;

const HALF_BYTES: usize = 4 << 20;

pub(super) struct Staging {
    halves: [Half; 2],
    /// The half that was used longest ago.
    next: usize,
}

struct Half {
    memory: *mut u8,
    /// When the GPU is done with what it was last used for.
    done: CudaEvent,
    context: Arc<CudaContext>,
}

impl Staging {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self, GpuError> {
        let halves = [Half::new(context)?, Half::new(context)?];
        Ok(Self { halves, next: 0 })
    }

    /// Returns when `bytes` are copied from, not when they have arrived.
    pub(super) fn upload(&mut self, stream: &CudaStream, bytes: &[u8], mut target: u64) -> Result<(), GpuError> {
        for piece in bytes.chunks(HALF_BYTES) {
            let half = self.take()?;
            half.bytes(piece.len()).copy_from_slice(piece);
            // SAFETY: the half is filled, and stays as it is until `done`.
            let sent = unsafe { result::memcpy_htod_async(target, &*half.bytes(piece.len()), stream.cu_stream()) };
            sent.map_err(doing("uploading"))?;
            half.done.record(stream).map_err(doing("uploading"))?;
            target += piece.len() as u64;
        }
        Ok(())
    }

    /// While one piece is on its way, the one before it is copied out.
    pub(super) fn download(&mut self, stream: &CudaStream, mut source: u64, bytes: &mut [u8]) -> Result<(), GpuError> {
        let mut before: Option<(usize, &mut [u8])> = None;
        for piece in bytes.chunks_mut(HALF_BYTES) {
            let index = self.next;
            let half = self.take()?;
            // SAFETY: nobody reads the half before `done`.
            let fetched = unsafe { result::memcpy_dtoh_async(half.bytes(piece.len()), source, stream.cu_stream()) };
            fetched.map_err(doing("downloading"))?;
            half.done.record(stream).map_err(doing("downloading"))?;
            source += piece.len() as u64;
            if let Some((index, piece)) = before.replace((index, piece)) {
                self.copy_out(index, piece)?;
            }
        }
        match before {
            Some((index, piece)) => self.copy_out(index, piece),
            None => Ok(()),
        }
    }

    fn copy_out(&mut self, index: usize, piece: &mut [u8]) -> Result<(), GpuError> {
        let half = &mut self.halves[index];
        half.done.synchronize().map_err(doing("downloading"))?;
        piece.copy_from_slice(half.bytes(piece.len()));
        Ok(())
    }

    /// The half that is free first, once it is.
    fn take(&mut self) -> Result<&mut Half, GpuError> {
        let half = &mut self.halves[self.next];
        self.next = 1 - self.next;
        half.done.synchronize().map_err(doing("waiting for a copy"))?;
        Ok(half)
    }
}

impl Half {
    fn new(context: &Arc<CudaContext>) -> Result<Self, GpuError> {
        context.bind_to_thread().map_err(doing("allocating pinned memory"))?;
        let flags = Some(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        let done = context.new_event(flags).map_err(doing("making an event"))?;
        // SAFETY: the pointer goes into the one half that frees it.
        let memory = unsafe { result::malloc_host(HALF_BYTES, 0) }.map_err(doing("allocating pinned memory"))?;
        let context = Arc::clone(context);
        Ok(Self {
            memory: memory.cast(),
            done,
            context,
        })
    }

    fn bytes(&mut self, len: usize) -> &mut [u8] {
        assert!(len <= HALF_BYTES, "a piece is at most a half");
        // SAFETY: `memory` is HALF_BYTES bytes, and `&mut self` is the one way to it. The GPU is done with it: see `take`.
        unsafe { slice::from_raw_parts_mut(self.memory, len) }
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_err() || self.done.synchronize().is_err() {
            return;
        }
        // SAFETY: nobody else has the pointer, and the GPU is done with it. A failure costs memory until the end.
        let _ = unsafe { result::free_host(self.memory.cast()) };
    }
}
