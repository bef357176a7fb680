//! The GPU backend: the forward pass in kernels of our own, over any `GpuDevice`.

pub mod device;
pub mod kernel;
