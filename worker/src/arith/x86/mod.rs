//! The instruction sets of x86-64. This folder has all the unsafe code of the kernels: a line or two per operation.

mod avx2;
mod avx512;

pub(super) use avx2::Avx2;
pub(super) use avx512::Avx512;
