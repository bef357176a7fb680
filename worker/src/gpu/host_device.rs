//! The device kernels on the host: compiled as C++, run block by block. For tests: it is slow, and exact.
//!
//! Its memory ends with a mark that is looked at when a buffer goes, so a kernel that writes beyond it is found out. What it
//! does not have is time: nothing overlaps, and races that only a GPU shows stay hidden.

use std::{collections::BTreeMap, ffi::c_void, ptr::NonNull};

use super::{
    device::{ARGUMENT_BYTES_MAX, DeviceBuffer, Gemm, GemmDtype, GpuDevice, GpuError, GraphKey, LaunchShape},
    kernel::{Kernel, with_kernels},
};

type Entry = unsafe extern "C" fn(*const c_void) -> u32;

unsafe extern "C" {
    fn on_host_new_runner() -> *mut c_void;
    fn on_host_free_runner(runner: *mut c_void);
    fn on_host_run(runner: *mut c_void, entry: Entry, arguments: *const c_void, grid: *const u32, threads: u32) -> u32;
}

macro_rules! entries {
    ($($variant:ident $name:literal,)+) => {
        #[allow(non_snake_case)]
        mod functions {
            use std::ffi::c_void;
            unsafe extern "C" {
                $(
                    #[link_name = concat!("on_host_", $name)]
                    pub fn $variant(arguments: *const c_void) -> u32;
                )+
            }
        }

        fn entry(kernel: Kernel) -> Entry {
            match kernel {
                $(Kernel::$variant => functions::$variant,)+
            }
        }
    };
}
with_kernels!(entries);

const MARK: [u8; 64] = [0xa5; 64];
/// Buffers begin at multiples of this many bytes, as a GPU's do.
const ALIGNMENT: usize = 256;

#[derive(Debug)]
pub struct HostBuffer {
    /// `bytes`, then the mark, somewhere in memory that is a little longer.
    memory: Box<[u8]>,
    begin: usize,
    bytes: usize,
}

impl HostBuffer {
    fn new(bytes: usize) -> Self {
        let mut memory = vec![0xff; ALIGNMENT + bytes + MARK.len()].into_boxed_slice();
        let begin = memory.as_ptr().align_offset(ALIGNMENT);
        memory[begin + bytes..][..MARK.len()].copy_from_slice(&MARK);
        Self { memory, begin, bytes }
    }

    fn range(&self, at: usize, bytes: usize) -> std::ops::Range<usize> {
        assert!(
            at + bytes <= self.bytes,
            "bytes {at}..{} of a buffer of {}",
            at + bytes,
            self.bytes
        );
        self.begin + at..self.begin + at + bytes
    }

    fn pointer(&self, at: usize, bytes: usize) -> *mut u8 {
        self.memory[self.range(at, bytes)].as_ptr().cast_mut()
    }
}

impl DeviceBuffer for HostBuffer {
    fn address(&self) -> u64 {
        self.memory[self.begin..].as_ptr() as u64
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        let whole = self.memory[self.begin + self.bytes..][..MARK.len()] == MARK;
        assert!(
            whole || std::thread::panicking(),
            "a kernel wrote beyond a buffer of {} bytes",
            self.bytes
        );
    }
}

/// What a step that is captured consists of.
#[derive(Clone, Debug)]
enum Recorded {
    Launch(Kernel, LaunchShape, Vec<u8>),
    Gemm(Gemm),
}

/// A captured step keeps arguments as they were, as a GPU's graph does: whatever differs from step to step must be in memory.
#[derive(Debug)]
pub struct HostDevice {
    runner: NonNull<c_void>,
    recording: Option<Vec<Recorded>>,
    graphs: BTreeMap<GraphKey, Vec<Recorded>>,
}

// SAFETY: a runner is memory that only `on_host_run` touches, during a call that has `&mut self`.
unsafe impl Send for HostDevice {}

impl HostDevice {
    /// Errors where the machine lacks what the kernels were compiled for.
    pub fn new() -> Result<Self, GpuError> {
        let missing = |reason: &str| GpuError::Device {
            doing: "kernels on the host",
            reason: reason.to_owned(),
        };
        if !(std::is_x86_feature_detected!("avx2")
            && std::is_x86_feature_detected!("fma")
            && std::is_x86_feature_detected!("f16c"))
        {
            return Err(missing(
                "the processor lacks AVX2, FMA or F16C, which they are compiled for",
            ));
        }
        // SAFETY: takes nothing, and gives memory or null.
        let runner = NonNull::new(unsafe { on_host_new_runner() }).ok_or_else(|| missing("no memory for fibers"))?;
        Ok(Self {
            runner,
            recording: None,
            graphs: BTreeMap::new(),
        })
    }

    /// Captured steps.
    pub fn num_graphs(&self) -> usize {
        self.graphs.len()
    }

    /// As on a GPU: what would be read or written at another time has no place in a captured step.
    fn check_not_recording(&self, doing: &'static str) -> Result<(), GpuError> {
        match self.recording {
            None => Ok(()),
            Some(_) => Err(GpuError::Device {
                doing,
                reason: "a step that is captured only launches".to_owned(),
            }),
        }
    }

    fn run(&mut self, recorded: &Recorded) -> Result<(), GpuError> {
        match recorded {
            Recorded::Launch(kernel, shape, arguments) => self.run_kernel(*kernel, *shape, arguments),
            Recorded::Gemm(gemm) => {
                multiply(gemm);
                Ok(())
            }
        }
    }

    fn run_kernel(&mut self, kernel: Kernel, shape: LaunchShape, arguments: &[u8]) -> Result<(), GpuError> {
        let refused = |reason: String| GpuError::Launch {
            kernel: kernel.name(),
            shape,
            reason,
        };
        let entry = entry(kernel);
        // SAFETY: without arguments an entry only says how many bytes they are.
        let expected = unsafe { entry(std::ptr::null()) } as usize;
        if expected != arguments.len() {
            return Err(refused(format!(
                "the source says {expected} bytes of arguments, not {}",
                arguments.len()
            )));
        }
        let mut aligned = [0u64; ARGUMENT_BYTES_MAX / 8];
        bytemuck::cast_slice_mut(&mut aligned)[..arguments.len()].copy_from_slice(arguments);
        let runner = self.runner.as_ptr();
        // SAFETY: the arguments are what the entry takes; the addresses in them are the caller's promise, as on a GPU.
        let outcome = unsafe { on_host_run(runner, entry, aligned.as_ptr().cast(), shape.grid.as_ptr(), shape.block) };
        match outcome {
            0 => Ok(()),
            _ => Err(refused("threads waited for others that never came".to_owned())),
        }
    }
}

impl Drop for HostDevice {
    fn drop(&mut self) {
        // SAFETY: from `on_host_new_runner`, and given back once.
        unsafe { on_host_free_runner(self.runner.as_ptr()) }
    }
}

impl GpuDevice for HostDevice {
    type Buffer = HostBuffer;

    fn name(&self) -> String {
        "kernels on the host".to_owned()
    }

    fn allocate(&mut self, _: &'static str, bytes: usize) -> Result<HostBuffer, GpuError> {
        Ok(HostBuffer::new(bytes))
    }

    fn upload(&mut self, bytes: &[u8], target: &HostBuffer, at: usize) -> Result<(), GpuError> {
        self.check_not_recording("an upload")?;
        let pointer = target.pointer(at, bytes.len());
        // SAFETY: inside the target, which nobody else touches while the device is borrowed.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), pointer, bytes.len()) };
        Ok(())
    }

    fn download(&mut self, source: &HostBuffer, at: usize, bytes: &mut [u8]) -> Result<(), GpuError> {
        self.check_not_recording("a download")?;
        bytes.copy_from_slice(&source.memory[source.range(at, bytes.len())]);
        Ok(())
    }

    fn copy(
        &mut self,
        source: &HostBuffer,
        source_at: usize,
        target: &HostBuffer,
        target_at: usize,
        bytes: usize,
    ) -> Result<(), GpuError> {
        self.check_not_recording("a copy")?;
        let (from, to) = (source.pointer(source_at, bytes), target.pointer(target_at, bytes));
        // SAFETY: inside both, which nobody else touches while the device is borrowed.
        unsafe { std::ptr::copy(from, to, bytes) };
        Ok(())
    }

    fn clear(&mut self, target: &HostBuffer, at: usize, bytes: usize) -> Result<(), GpuError> {
        self.check_not_recording("setting memory")?;
        // SAFETY: inside the target, which nobody else touches while the device is borrowed.
        unsafe { std::ptr::write_bytes(target.pointer(at, bytes), 0, bytes) };
        Ok(())
    }

    fn launch_bytes(&mut self, kernel: Kernel, shape: LaunchShape, arguments: &[u8]) -> Result<(), GpuError> {
        match &mut self.recording {
            Some(recording) => {
                recording.push(Recorded::Launch(kernel, shape, arguments.to_vec()));
                Ok(())
            }
            None => self.run_kernel(kernel, shape, arguments),
        }
    }

    fn gemm(&mut self, gemm: &Gemm) -> Result<(), GpuError> {
        match &mut self.recording {
            Some(recording) => recording.push(Recorded::Gemm(*gemm)),
            None => multiply(gemm),
        }
        Ok(())
    }

    fn synchronize(&mut self) -> Result<(), GpuError> {
        Ok(())
    }
    fn replay(&mut self, key: GraphKey) -> Result<bool, GpuError> {
        let Some(recorded) = self.graphs.get(&key).cloned() else {
            return Ok(false);
        };
        for recorded in &recorded {
            self.run(recorded)?;
        }
        Ok(true)
    }

    fn begin_capture(&mut self) -> Result<bool, GpuError> {
        self.recording = Some(Vec::new());
        Ok(true)
    }

    fn end_capture(&mut self, key: GraphKey) -> Result<(), GpuError> {
        self.graphs
            .extend(self.recording.take().map(|recorded| (key, recorded)));
        self.replay(key).map(drop)
    }

    fn forget_graphs(&mut self) {
        self.graphs.clear();
        // One that failed on its way.
        self.recording = None;
    }
}

/// A plain loop.
fn multiply(gemm: &Gemm) {
    let (tokens, rows, cols) = (gemm.tokens as usize, gemm.rows as usize, gemm.cols as usize);
    let stride = gemm.out_stride as usize;
    // SAFETY: addresses and shapes are the caller's promise, as on a GPU.
    let (x, weights, out) = unsafe {
        (
            std::slice::from_raw_parts(gemm.x as *const u16, tokens * cols),
            std::slice::from_raw_parts(gemm.weights as *const u16, rows * cols),
            std::slice::from_raw_parts_mut(gemm.out as *mut f32, (tokens - 1) * stride + rows),
        )
    };
    let value = |bits: u16| match gemm.dtype {
        GemmDtype::F16 => half::f16::from_bits(bits).to_f32(),
        GemmDtype::BF16 => half::bf16::from_bits(bits).to_f32(),
    };
    for (token, x) in x.chunks_exact(cols).enumerate() {
        for (row, weights) in weights.chunks_exact(cols).enumerate() {
            let sum: f32 = x.iter().zip(weights).map(|(x, w)| value(*x) * value(*w)).sum();
            let out = &mut out[token * stride + row];
            *out = if gemm.accumulate { *out + sum } else { sum };
        }
    }
}
