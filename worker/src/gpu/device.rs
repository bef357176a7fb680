//! What the GPU backend needs of a device: memory, kernels by name, a matrix product, and a step that can be repeated.
//!
//! Two implementations: `cuda_device` (a GPU) and `host_device` (the same kernels compiled for the host, block by block).
//! All calls come from the rank thread, and what they start runs in the order of the calls. Only `download` and
//! `synchronize` wait.

use std::fmt::Debug;

use super::kernel::Kernel;
use crate::{backend::BackendError, collective::Collective};

/// Most threads of a block.
pub const BLOCK_THREADS_MAX: u32 = 1024;
/// Most bytes of shared memory of a block: what an H100 gives to one.
pub const SHARED_BYTES_MAX: u32 = 227 << 10;
/// Most bytes of a kernel's arguments.
pub const ARGUMENT_BYTES_MAX: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    #[error("the device has no room for {bytes} bytes of {what}")]
    OutOfMemory { what: &'static str, bytes: usize },
    #[error("kernel {kernel} cannot be launched as {shape:?}: {reason}")]
    Launch {
        kernel: &'static str,
        shape: LaunchShape,
        reason: String,
    },
    #[error("{doing}: {reason}")]
    Device { doing: &'static str, reason: String },
}

impl From<GpuError> for BackendError {
    fn from(error: GpuError) -> Self {
        match error {
            GpuError::OutOfMemory { what, bytes } => Self::OutOfMemory { what, bytes },
            other => Self::Device {
                backend: "gpu",
                reason: other.to_string(),
            },
        }
    }
}

/// Device memory, given back when dropped. Aligned to 256 bytes. What it holds at first is anything.
pub trait DeviceBuffer: Send + Debug {
    /// As kernels see it.
    fn address(&self) -> u64;

    fn bytes(&self) -> usize;
}

/// How many blocks of how many threads, each block with how much shared memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LaunchShape {
    pub grid: [u32; 3],
    pub block: u32,
    /// Dynamic shared memory; a device raises its kernels' limit where this is above 48 KiB.
    pub shared_bytes: u32,
}

impl LaunchShape {
    pub fn new(grid: [u32; 3], block: u32) -> Self {
        Self {
            grid,
            block,
            shared_bytes: 0,
        }
    }

    pub fn shared(self, shared_bytes: usize) -> Self {
        Self {
            shared_bytes: shared_bytes.try_into().unwrap_or(u32::MAX),
            ..self
        }
    }

    /// What no device takes, said before one is asked.
    pub fn check(self, kernel: Kernel, arguments: &[u8]) -> Result<(), GpuError> {
        let [x, y, z] = self.grid;
        let reason = if x == 0 || y == 0 || z == 0 || y > 65_535 || z > 65_535 || x > i32::MAX as u32 {
            "a grid is 1..2^31 by 1..65535 by 1..65535 blocks".to_owned()
        } else if self.block == 0 || self.block > BLOCK_THREADS_MAX || !self.block.is_multiple_of(32) {
            format!("a block has whole warps of 32 threads, up to {BLOCK_THREADS_MAX}")
        } else if self.shared_bytes > SHARED_BYTES_MAX {
            format!("a block has up to {SHARED_BYTES_MAX} bytes of shared memory")
        } else if arguments.len() != kernel.argument_bytes() {
            format!(
                "its arguments are {} bytes, not {}",
                kernel.argument_bytes(),
                arguments.len()
            )
        } else {
            return Ok(());
        };
        Err(GpuError::Launch {
            kernel: kernel.name(),
            shape: self,
            reason,
        })
    }
}

/// What a captured step is found by: all that decides which kernels it launches and how.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GraphKey {
    pub tokens: u32,
    /// Attention chunks that the longest sequence may have.
    pub chunks: u32,
}

/// The 16-bit floats that a GEMM multiplies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GemmDtype {
    F16,
    BF16,
}

/// `out = x * weights^T`, added in f32 in whatever order is fastest: of the fast mode alone. All are addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gemm {
    pub dtype: GemmDtype,
    /// `[tokens][cols]`
    pub x: u64,
    /// `[rows][cols]`
    pub weights: u64,
    /// f32, `[tokens][out_stride]`
    pub out: u64,
    pub tokens: u32,
    pub rows: u32,
    pub cols: u32,
    pub out_stride: u32,
    /// Adds to `out` instead of replacing it.
    pub accumulate: bool,
}

pub trait GpuDevice: Send + Debug {
    type Buffer: DeviceBuffer;

    /// What it is, for people: the GPU's name.
    fn name(&self) -> String;

    fn allocate(&mut self, what: &'static str, bytes: usize) -> Result<Self::Buffer, GpuError>;

    /// Writes `bytes` at `at`; they are copied before this returns.
    ///
    /// # Panics
    /// If they do not fit, as in all calls that name a range.
    fn upload(&mut self, bytes: &[u8], target: &Self::Buffer, at: usize) -> Result<(), GpuError>;

    /// Waits for all that was started, then reads.
    fn download(&mut self, source: &Self::Buffer, at: usize, bytes: &mut [u8]) -> Result<(), GpuError>;

    /// Source and target do not overlap.
    fn copy(
        &mut self,
        source: &Self::Buffer,
        source_at: usize,
        target: &Self::Buffer,
        target_at: usize,
        bytes: usize,
    ) -> Result<(), GpuError>;

    /// Sets `bytes` bytes from `at` to zero.
    fn clear(&mut self, target: &Self::Buffer, at: usize, bytes: usize) -> Result<(), GpuError>;

    /// Launches a kernel with its argument struct, passed by value.
    fn launch_bytes(&mut self, kernel: Kernel, shape: LaunchShape, arguments: &[u8]) -> Result<(), GpuError>;

    fn gemm(&mut self, gemm: &Gemm) -> Result<(), GpuError>;

    fn synchronize(&mut self) -> Result<(), GpuError>;

    /// Gets ready to add among the ranks of an epoch without the host, if that can be done; every rank calls at the same
    /// place. False if the host has to add.
    fn join(&mut self, collective: &mut dyn Collective) -> Result<bool, BackendError> {
        let _ = collective;
        Ok(false)
    }

    /// Adds `len` i64 from the start of `sums` over all ranks of the epoch, in place, if the device has a way of its own;
    /// false if the host has to.
    fn all_reduce(&mut self, sums: &Self::Buffer, len: usize) -> Result<bool, GpuError> {
        let _ = (sums, len);
        Ok(false)
    }

    /// Runs a captured step again. False if there is none of that key.
    fn replay(&mut self, key: GraphKey) -> Result<bool, GpuError> {
        let _ = key;
        Ok(false)
    }

    /// From here on calls are recorded, not run. False where a device cannot; then they run as always.
    fn begin_capture(&mut self) -> Result<bool, GpuError> {
        Ok(false)
    }

    /// Ends what `begin_capture` began, keeps it under `key` and runs it once.
    fn end_capture(&mut self, key: GraphKey) -> Result<(), GpuError> {
        let _ = key;
        Ok(())
    }

    /// Forgets what was captured: its buffers are about to go.
    fn forget_graphs(&mut self) {}
}
