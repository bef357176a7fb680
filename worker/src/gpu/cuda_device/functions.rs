//! The kernels, loaded: from the images that this program holds to functions that the driver launches.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::cuda_backend::cudarc::{
    driver::{
        CudaContext, CudaFunction, CudaStream, result,
        sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
    },
    nvrtc::Ptx,
};

use super::error::doing;
use crate::gpu::{
    device::{GpuError, LaunchShape},
    kernel::Kernel,
};

/// Each source file's name, and its machine code and PTX.
const IMAGES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/images.rs"));
/// What a block gets without being asked for.
const SHARED_BYTES_PLAIN: u32 = 48 << 10;

pub(super) struct Functions {
    loaded: BTreeMap<Kernel, Loaded>,
}

struct Loaded {
    function: CudaFunction,
    /// The dynamic shared memory that a launch may ask for so far.
    shared_bytes_max: u32,
}

impl Functions {
    /// On a GPU newer than Hopper the driver compiles what it has not compiled before: seconds, once for each driver.
    pub(super) fn load(context: &Arc<CudaContext>) -> Result<Self, GpuError> {
        let mut modules = BTreeMap::new();
        for &(file, image) in IMAGES {
            let module = context
                .load_module(Ptx::from_binary(image.to_vec()))
                .map_err(|error| GpuError::Device {
                    doing: "loading the kernels",
                    reason: format!("{file}: {error}; the driver must be of CUDA 13.0 or newer"),
                })?;
            modules.insert(file, module);
        }
        let mut loaded = BTreeMap::new();
        for &kernel in Kernel::ALL {
            let missing = |reason: String| GpuError::Device {
                doing: "loading the kernels",
                reason: format!("{} of {}: {reason}", kernel.name(), kernel.file()),
            };
            let module = modules
                .get(kernel.file())
                .ok_or_else(|| missing("no such file".to_owned()))?;
            let function = module.load_function(kernel.name());
            let function = function.map_err(|error| missing(error.to_string()))?;
            let shared_bytes_max = SHARED_BYTES_PLAIN;
            loaded.insert(
                kernel,
                Loaded {
                    function,
                    shared_bytes_max,
                },
            );
        }
        Ok(Self { loaded })
    }

    /// `arguments` is the kernel's one parameter, a struct by value.
    pub(super) fn launch(
        &mut self,
        stream: &CudaStream,
        kernel: Kernel,
        shape: LaunchShape,
        arguments: &[u8],
    ) -> Result<(), GpuError> {
        let failed = |error: result::DriverError| GpuError::Launch {
            kernel: kernel.name(),
            shape,
            reason: error.to_string(),
        };
        let loaded = self.loaded.get_mut(&kernel).expect("`load` loaded all kernels");
        stream.context().bind_to_thread().map_err(doing("launching"))?;
        loaded.allow_shared(shape.shared_bytes).map_err(failed)?;
        let [x, y, z] = shape.grid;
        let mut parameters = [arguments.as_ptr().cast_mut().cast()];
        // SAFETY: the parameter is as long as the kernel's struct (`LaunchShape::check`), and is copied before this
        // returns. What its addresses name is the backend's, which keeps buffers until the stream is done with them.
        let launched = unsafe {
            result::launch_kernel(
                loaded.function.cu_function(),
                (x, y, z),
                (shape.block, 1, 1),
                shape.shared_bytes,
                stream.cu_stream(),
                &mut parameters,
            )
        };
        launched.map_err(failed)
    }
}

impl Loaded {
    fn allow_shared(&mut self, bytes: u32) -> Result<(), result::DriverError> {
        if bytes > self.shared_bytes_max {
            let limit = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            self.function.set_attribute(limit, bytes as i32)?;
            self.shared_bytes_max = bytes;
        }
        Ok(())
    }
}
