//! The host's device or a GPU, decided when a test runs.

use std::{
    sync::{Mutex, OnceLock},
    time::Instant,
};

use crate::{
    backend::BackendError,
    collective::Collective,
    gpu::{
        cuda_device::{CudaBuffer, CudaDevice},
        device::{DeviceBuffer, Gemm, GpuDevice, GpuError, GraphKey, LaunchShape},
        host_device::{HostBuffer, HostDevice},
        kernel::Kernel,
    },
};

#[derive(Debug)]
pub enum TestDevice {
    Host(HostDevice),
    Gpu(Box<CudaDevice>),
}

#[derive(Debug)]
pub enum TestBuffer {
    Host(HostBuffer),
    Gpu(CudaBuffer),
}

pub(super) fn on_host() -> Result<TestDevice, GpuError> {
    HostDevice::new().map(TestDevice::Host)
}

/// Opened first and kept to the end: a process makes its context once then, however many devices come and go.
static KEPT: OnceLock<Mutex<CudaDevice>> = OnceLock::new();

pub(super) fn on_gpu(ordinal: u32) -> Result<TestDevice, GpuError> {
    if KEPT.get().is_none() {
        let kept = Mutex::new(CudaDevice::open(ordinal)?);
        // Another thread may have been quicker; then this one goes.
        let _ = KEPT.set(kept);
    }
    CudaDevice::open(ordinal).map(|device| TestDevice::Gpu(Box::new(device)))
}

impl TestBuffer {
    fn host(&self) -> &HostBuffer {
        match self {
            Self::Host(buffer) => buffer,
            Self::Gpu(_) => panic!("a buffer of another device"),
        }
    }

    fn gpu(&self) -> &CudaBuffer {
        match self {
            Self::Gpu(buffer) => buffer,
            Self::Host(_) => panic!("a buffer of another device"),
        }
    }
}

impl DeviceBuffer for TestBuffer {
    fn address(&self) -> u64 {
        match self {
            Self::Host(buffer) => buffer.address(),
            Self::Gpu(buffer) => buffer.address(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Host(buffer) => buffer.bytes(),
            Self::Gpu(buffer) => buffer.bytes(),
        }
    }
}

impl GpuDevice for TestDevice {
    type Buffer = TestBuffer;

    fn name(&self) -> String {
        match self {
            Self::Host(device) => device.name(),
            Self::Gpu(device) => device.name(),
        }
    }

    /// All ones at first, on a GPU as on the host: NaN, so that a kernel that leaves out a value is found out.
    fn allocate(&mut self, what: &'static str, bytes: usize) -> Result<TestBuffer, GpuError> {
        match self {
            Self::Host(device) => device.allocate(what, bytes).map(TestBuffer::Host),
            Self::Gpu(device) => {
                let buffer = device.allocate(what, bytes)?;
                device.fill(&buffer, 0xff)?;
                Ok(TestBuffer::Gpu(buffer))
            }
        }
    }

    fn upload(&mut self, bytes: &[u8], target: &TestBuffer, at: usize) -> Result<(), GpuError> {
        match self {
            Self::Host(device) => device.upload(bytes, target.host(), at),
            Self::Gpu(device) => device.upload(bytes, target.gpu(), at),
        }
    }

    fn download(&mut self, source: &TestBuffer, at: usize, bytes: &mut [u8]) -> Result<(), GpuError> {
        match self {
            Self::Host(device) => device.download(source.host(), at, bytes),
            Self::Gpu(device) => device.download(source.gpu(), at, bytes),
        }
    }

    fn copy(
        &mut self,
        source: &TestBuffer,
        source_at: usize,
        target: &TestBuffer,
        target_at: usize,
        bytes: usize,
    ) -> Result<(), GpuError> {
        match self {
            Self::Host(device) => device.copy(source.host(), source_at, target.host(), target_at, bytes),
            Self::Gpu(device) => device.copy(source.gpu(), source_at, target.gpu(), target_at, bytes),
        }
    }

    fn clear(&mut self, target: &TestBuffer, at: usize, bytes: usize) -> Result<(), GpuError> {
        match self {
            Self::Host(device) => device.clear(target.host(), at, bytes),
            Self::Gpu(device) => device.clear(target.gpu(), at, bytes),
        }
    }

    fn launch_bytes(&mut self, kernel: Kernel, shape: LaunchShape, arguments: &[u8]) -> Result<(), GpuError> {
        match self {
            Self::Host(device) => device.launch_bytes(kernel, shape, arguments),
            Self::Gpu(device) => device.launch_bytes(kernel, shape, arguments),
        }
    }

    fn gemm(&mut self, gemm: &Gemm) -> Result<(), GpuError> {
        match self {
            Self::Host(device) => device.gemm(gemm),
            Self::Gpu(device) => device.gemm(gemm),
        }
    }

    fn synchronize(&mut self) -> Result<(), GpuError> {
        match self {
            Self::Host(device) => device.synchronize(),
            Self::Gpu(device) => device.synchronize(),
        }
    }

    fn join(&mut self, collective: &mut dyn Collective) -> Result<bool, BackendError> {
        match self {
            Self::Host(device) => device.join(collective),
            Self::Gpu(device) => device.join(collective),
        }
    }

    fn all_reduce(&mut self, sums: &TestBuffer, len: usize) -> Result<bool, GpuError> {
        match self {
            Self::Host(device) => device.all_reduce(sums.host(), len),
            Self::Gpu(device) => device.all_reduce(sums.gpu(), len),
        }
    }

    fn replay(&mut self, key: GraphKey) -> Result<bool, GpuError> {
        match self {
            Self::Host(device) => device.replay(key),
            Self::Gpu(device) => device.replay(key),
        }
    }

    fn begin_capture(&mut self) -> Result<bool, GpuError> {
        match self {
            Self::Host(device) => device.begin_capture(),
            Self::Gpu(device) => device.begin_capture(),
        }
    }

    fn end_capture(&mut self, key: GraphKey) -> Result<(), GpuError> {
        match self {
            Self::Host(device) => device.end_capture(key),
            Self::Gpu(device) => device.end_capture(key),
        }
    }

    fn forget_graphs(&mut self) {
        match self {
            Self::Host(device) => device.forget_graphs(),
            Self::Gpu(device) => device.forget_graphs(),
        }
    }
}

/// Microseconds that the device takes for what `work` starts.
pub fn time_us(
    device: &mut TestDevice,
    work: impl FnOnce(&mut TestDevice) -> Result<(), GpuError>,
) -> Result<f64, GpuError> {
    let TestDevice::Gpu(gpu) = device else {
        let begun = Instant::now();
        work(device)?;
        return Ok(begun.elapsed().as_secs_f64() * 1e6);
    };
    let begin = gpu.mark()?;
    work(device)?;
    match device {
        TestDevice::Gpu(gpu) => gpu.since_us(&begin),
        TestDevice::Host(_) => unreachable!("work does not exchange the device"),
    }
}
