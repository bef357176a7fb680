//! The GPU backend: the forward pass in kernels of our own, over any `GpuDevice`.

#[cfg(feature = "cuda")]
pub mod cuda_device;
pub mod device;
#[cfg(any(feature = "cuda", test))]
mod group_card;
pub mod kernel;
