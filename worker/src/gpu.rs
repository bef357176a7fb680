//! The GPU backend: the forward pass in kernels of our own, over any `GpuDevice`.

#[cfg(feature = "cuda")]
pub mod cuda_device;
pub mod device;
#[cfg(any(feature = "cuda", test))]
mod group_card;
#[cfg(feature = "cuda-on-host")]
pub mod host_device;
pub mod kernel;
pub mod packed_rows;
pub mod product;
#[cfg(feature = "cuda-on-host")]
pub mod test_device;
#[cfg(all(test, feature = "cuda-on-host"))]
mod tests;
