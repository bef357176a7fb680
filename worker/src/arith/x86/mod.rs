//! The instruction sets of x86-64. This folder has all the unsafe code of the kernels: a line or two per operation.

mod avx2;
mod avx512;

pub(super) use avx2::Avx2;
pub(super) use avx512::Avx512;

/// Into the second cache. The intrinsic would do the same, but keeps the compiler from moving loads across it, and then
/// sums no longer stay in registers.
#[expect(
    clippy::pointers_in_nomem_asm_block,
    reason = "a hint about an address is no access to it"
)]
#[inline(always)]
fn prefetch(address: *const u8) {
    // SAFETY: a prefetch reads and writes nothing, and takes any address.
    unsafe {
        std::arch::asm!("prefetcht1 [{}]", in(reg) address, options(nomem, nostack, preserves_flags));
    }
}
