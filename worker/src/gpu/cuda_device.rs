//! A GPU of NVIDIA's: our kernels through its driver, matrix products through cuBLAS, steps as CUDA graphs.
//!
//! One stream carries all that a rank starts, in order. Memory is plain device memory, never managed. Not here: any
//! choice of what to launch, which is the backend's.
//!
//! It has been compiled and linked, and its kernels have gone through NVIDIA's assembler; README says what has run.

mod buffer;
mod error;
mod functions;
mod group;
mod staging;

use std::{collections::BTreeMap, ffi::c_void, fmt, sync::Arc};

use candle_core::cuda_backend::cudarc::{
    cublas::{CudaBlas, result::gemm_ex, sys as blas},
    driver::{CudaContext, CudaEvent, CudaGraph, CudaStream, result, sys},
};

pub use self::buffer::CudaBuffer;
use self::{error::doing, functions::Functions, group::Group, staging::Staging};
use super::{
    device::{DeviceBuffer, Gemm, GemmDtype, GpuDevice, GpuError, GraphKey, LaunchShape},
    kernel::Kernel,
};
use crate::{backend::BackendError, collective::Collective};

/// The kernels are compiled for this compute capability; newer GPUs take them too.
const CAPABILITY_MIN: (i32, i32) = (9, 0);
/// cuBLAS allocates nothing while a step is recorded, so it gets this at the start: what NVIDIA advises for Hopper.
const BLAS_WORKSPACE_BYTES: usize = 32 << 20;

/// A place in the stream of what the GPU does.
#[derive(Debug)]
pub struct Mark(CudaEvent);

pub struct CudaDevice {
    name: String,
    functions: Functions,
    staging: Staging,
    graphs: BTreeMap<GraphKey, CudaGraph>,
    is_recording: bool,
    group: Option<Group>,
    blas: Arc<CudaBlas>,
    blas_workspace: CudaBuffer,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
}

// SAFETY: graphs and a group are handles that must not be used by two threads at once. Every call takes the device by
// `&mut`, and each call binds the context to the thread it is on.
unsafe impl Send for CudaDevice {}

impl fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("CudaDevice");
        text.field("name", &self.name).field("graphs", &self.graphs.len());
        text.finish_non_exhaustive()
    }
}

impl CudaDevice {
    /// Opens GPU number `ordinal` and loads all kernels. Errors if there is none, or if it is older than Hopper.
    pub fn open(ordinal: u32) -> Result<Self, GpuError> {
        check_ordinal(ordinal)?;
        let candle = candle_core::CudaDevice::new_with_stream(ordinal as usize).map_err(doing("opening the GPU"))?;
        let stream = candle.cuda_stream();
        let context = Arc::clone(stream.context());
        let name = context.name().map_err(doing("asking the GPU's name"))?;
        check_capability(&context, &name)?;
        let blas = candle.cublas_handle();
        let mut device = Self {
            functions: Functions::load(&context)?,
            staging: Staging::new(&context)?,
            graphs: BTreeMap::new(),
            is_recording: false,
            group: None,
            blas_workspace: CudaBuffer::new(&context, "the matrix library's workspace", BLAS_WORKSPACE_BYTES)?,
            blas,
            stream,
            context,
            name,
        };
        device.give_workspace()?;
        Ok(device)
    }

    fn give_workspace(&mut self) -> Result<(), GpuError> {
        let address = self.blas_workspace.address() as *mut c_void;
        // SAFETY: the workspace lives as long as the device, which holds the handle.
        let status = unsafe { blas::cublasSetWorkspace_v2(*self.blas.handle(), address, BLAS_WORKSPACE_BYTES) };
        status.result().map_err(doing("giving cuBLAS its workspace"))
    }

    /// Remembers where the stream is, to take a time from there.
    pub fn mark(&mut self) -> Result<Mark, GpuError> {
        let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        self.stream
            .record_event(timed)
            .map(Mark)
            .map_err(doing("recording an event"))
    }

    /// Microseconds that the GPU took since then for what was started since then, once all of it is done.
    pub fn since_us(&mut self, mark: &Mark) -> Result<f64, GpuError> {
        let end = self.mark()?;
        self.wait()?;
        let elapsed_ms = mark.0.elapsed_ms(&end.0).map_err(doing("asking for a time"))?;
        Ok(f64::from(elapsed_ms) * 1e3)
    }

    /// Sets every byte of a buffer.
    pub fn fill(&mut self, target: &CudaBuffer, byte: u8) -> Result<(), GpuError> {
        self.set_bytes(address_of(target, 0, target.bytes()), target.bytes(), byte)
    }

    fn set_bytes(&mut self, address: u64, bytes: usize, byte: u8) -> Result<(), GpuError> {
        if bytes == 0 {
            return Ok(());
        }
        self.context.bind_to_thread().map_err(doing("setting memory"))?;
        // SAFETY: the callers checked the range, and freeing a buffer waits for the stream.
        let set = unsafe { result::memset_d8_async(address, byte, bytes, self.stream.cu_stream()) };
        set.map_err(doing("setting memory"))
    }

    /// Free and total bytes of the GPU's memory.
    pub fn memory_bytes(&self) -> Result<(usize, usize), GpuError> {
        self.context.mem_get_info().map_err(doing("asking for free memory"))
    }

    /// A recorded step holds addresses of host memory that would be read at every replay.
    fn check_not_recording(&self, doing: &'static str) -> Result<(), GpuError> {
        if self.is_recording {
            let reason = "a step that is being recorded only launches kernels".to_owned();
            return Err(GpuError::Device { doing, reason });
        }
        Ok(())
    }

    /// Until all is done that was started, or the group's deadline is over.
    fn wait(&mut self) -> Result<(), GpuError> {
        match &mut self.group {
            Some(group) => group.wait(&self.stream),
            None => self.stream.synchronize().map_err(doing("waiting for the GPU")),
        }
    }
}

fn check_ordinal(ordinal: u32) -> Result<(), GpuError> {
    let count = CudaContext::device_count().map_err(doing("looking for GPUs"))?;
    if i64::from(ordinal) < i64::from(count) {
        return Ok(());
    }
    let reason = match count {
        0 => format!("there is no cuda:{ordinal}: the driver sees no GPU (CUDA_VISIBLE_DEVICES may hide it)"),
        _ => format!(
            "there is no cuda:{ordinal}; this machine has cuda:0 to cuda:{}",
            count - 1
        ),
    };
    Err(GpuError::Device {
        doing: "opening the GPU",
        reason,
    })
}

fn check_capability(context: &CudaContext, name: &str) -> Result<(), GpuError> {
    let found = context.compute_capability().map_err(doing("asking what the GPU can"))?;
    if found >= CAPABILITY_MIN {
        return Ok(());
    }
    let (major, minor) = CAPABILITY_MIN;
    Err(GpuError::Device {
        doing: "opening the GPU",
        reason: format!(
            "{name} has compute capability {}.{}; the kernels need {major}.{minor} (H100) or newer",
            found.0, found.1
        ),
    })
}

/// # Panics
/// If the range does not lie in the buffer.
fn address_of(buffer: &CudaBuffer, at: usize, bytes: usize) -> u64 {
    let fits = at.checked_add(bytes).is_some_and(|end| end <= buffer.bytes());
    assert!(fits, "{bytes} bytes at {at} of a buffer of {} bytes", buffer.bytes());
    buffer.address() + at as u64
}

impl GpuDevice for CudaDevice {
    type Buffer = CudaBuffer;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn allocate(&mut self, what: &'static str, bytes: usize) -> Result<CudaBuffer, GpuError> {
        CudaBuffer::new(&self.context, what, bytes)
    }

    fn upload(&mut self, bytes: &[u8], target: &CudaBuffer, at: usize) -> Result<(), GpuError> {
        self.check_not_recording("uploading")?;
        let target = address_of(target, at, bytes.len());
        self.staging.upload(&self.stream, bytes, target)
    }

    fn download(&mut self, source: &CudaBuffer, at: usize, bytes: &mut [u8]) -> Result<(), GpuError> {
        self.check_not_recording("downloading")?;
        let source = address_of(source, at, bytes.len());
        // The group's ranks may be gone: this wait has a deadline, and after it the copies are quick.
        self.wait()?;
        self.staging.download(&self.stream, source, bytes)
    }

    fn copy(
        &mut self,
        source: &CudaBuffer,
        source_at: usize,
        target: &CudaBuffer,
        target_at: usize,
        bytes: usize,
    ) -> Result<(), GpuError> {
        let source = address_of(source, source_at, bytes);
        let target = address_of(target, target_at, bytes);
        if bytes == 0 {
            return Ok(());
        }
        self.context.bind_to_thread().map_err(doing("copying on the GPU"))?;
        // SAFETY: both ranges were checked, and the buffers outlive what the stream does: freeing waits for it.
        let copied = unsafe { result::memcpy_dtod_async(target, source, bytes, self.stream.cu_stream()) };
        copied.map_err(doing("copying on the GPU"))
    }

    fn clear(&mut self, target: &CudaBuffer, at: usize, bytes: usize) -> Result<(), GpuError> {
        self.set_bytes(address_of(target, at, bytes), bytes, 0)
    }

    fn launch_bytes(&mut self, kernel: Kernel, shape: LaunchShape, arguments: &[u8]) -> Result<(), GpuError> {
        shape.check(kernel, arguments)?;
        self.functions.launch(&self.stream, kernel, shape, arguments)
    }

    /// Row by row as we count is column by column as cuBLAS counts: it computes `out^T = weights * x^T`.
    fn gemm(&mut self, gemm: &Gemm) -> Result<(), GpuError> {
        if gemm.tokens == 0 || gemm.rows == 0 {
            return Ok(());
        }
        let dtype = match gemm.dtype {
            GemmDtype::F16 => blas::cudaDataType::CUDA_R_16F,
            GemmDtype::BF16 => blas::cudaDataType::CUDA_R_16BF,
        };
        let (one, keep) = (1.0f32, if gemm.accumulate { 1.0f32 } else { 0.0 });
        let [tokens, rows, cols, stride] = [gemm.tokens, gemm.rows, gemm.cols, gemm.out_stride].map(|dim| dim as i32);
        self.context.bind_to_thread().map_err(doing("multiplying"))?;
        // SAFETY: the caller names device memory of these shapes; the factors are read before this returns.
        let multiplied = unsafe {
            gemm_ex(
                *self.blas.handle(),
                blas::cublasOperation_t::CUBLAS_OP_T,
                blas::cublasOperation_t::CUBLAS_OP_N,
                rows,
                tokens,
                cols,
                (&raw const one).cast(),
                gemm.weights as *const c_void,
                dtype,
                cols,
                gemm.x as *const c_void,
                dtype,
                cols,
                (&raw const keep).cast(),
                gemm.out as *mut c_void,
                blas::cudaDataType::CUDA_R_32F,
                stride,
                blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        multiplied.map_err(doing("multiplying"))
    }

    fn synchronize(&mut self) -> Result<(), GpuError> {
        self.check_not_recording("waiting")?;
        self.wait()
    }

    /// Forms an NCCL communicator with the other ranks of an epoch, so that `all_reduce` works, if this build has NCCL and
    /// every rank has a GPU that NCCL takes. Every rank makes this call at the same place.
    /// Whether it was formed.
    fn join(&mut self, collective: &mut dyn Collective) -> Result<bool, BackendError> {
        self.group = None;
        self.group = Group::form(&self.context, collective)?;
        Ok(self.group.is_some())
    }

    fn all_reduce(&mut self, sums: &CudaBuffer, len: usize) -> Result<bool, GpuError> {
        let address = address_of(sums, 0, len * size_of::<i64>());
        match &mut self.group {
            Some(group) => group.all_reduce(&self.stream, address, len).map(|()| true),
            None => Ok(false),
        }
    }

    fn replay(&mut self, key: GraphKey) -> Result<bool, GpuError> {
        match self.graphs.get(&key) {
            Some(graph) => graph.launch().map(|()| true).map_err(doing("replaying a step")),
            None => Ok(false),
        }
    }

    /// Only this thread's calls are recorded and held to the rules of recording: another rank may share the process.
    fn begin_capture(&mut self) -> Result<bool, GpuError> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(doing("recording a step"))?;
        self.is_recording = true;
        Ok(true)
    }

    fn end_capture(&mut self, key: GraphKey) -> Result<(), GpuError> {
        self.is_recording = false;
        let flags = sys::CUgraphInstantiate_flags(0);
        let graph = self.stream.end_capture(flags).map_err(doing("recording a step"))?;
        let Some(graph) = graph else {
            let (doing, reason) = ("recording a step", "nothing was launched in it".to_owned());
            return Err(GpuError::Device { doing, reason });
        };
        graph.launch().map_err(doing("running a recorded step"))?;
        self.graphs.insert(key, graph);
        Ok(())
    }

    fn forget_graphs(&mut self) {
        self.graphs.clear();
    }
}

impl Drop for CudaDevice {
    /// The memory that the stream's work uses is given back after this.
    fn drop(&mut self) {
        self.graphs.clear();
        // A failure here is one that some call has reported.
        let _ = self.wait();
    }
}
