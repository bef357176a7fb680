//! Memory that several processes map, seen as atomics.
//!
//! The bytes live in a memory file: it has no name, so nothing is left behind when its processes die, and its size
//! is sealed, so no peer can pull the pages away from under the others. Every view is one of atomics, in which any bits are
//! valid; what peers hand each other between two meetings is copied whole, in and out, and never referred to in place.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::fs::{MemfdFlags, OFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use super::CollectiveError;
use super::endpoint::SegmentFile;

/// Seals that keep every mapped byte backed.
const SIZE_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// How the bytes divide: control words first, data words behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MemorySize {
    /// Number of `u32` control words, even.
    pub control_words: usize,
    /// Number of `u64` data words.
    pub data_words: usize,
}

impl MemorySize {
    fn control_bytes(self) -> usize {
        self.control_words * size_of::<u32>()
    }

    fn bytes(self) -> usize {
        self.control_bytes() + self.data_words * size_of::<u64>()
    }
}

/// A mapping of a memory file; unmapped when dropped.
#[derive(Debug)]
pub(super) struct SharedMemory {
    base: NonNull<u8>,
    size: MemorySize,
}

// SAFETY: the mapping is owned by this value alone, is valid in every thread, and is reached through atomics only.
unsafe impl Send for SharedMemory {}

/// Copies plain values into words, which only their owner writes and only between two meetings: as fast as memory goes,
/// where a loop over atomics takes a word at a time. A peer that breaks the rule gets wrong bits, and so do those that it
/// meets.
///
/// # Panics
/// If the words are too few.
pub(super) fn copy_in<T: bytemuck::Pod>(from: &[T], words: &[AtomicU64]) {
    let bytes = bytemuck::cast_slice::<T, u8>(from);
    assert!(bytes.len() <= size_of_val(words));
    // SAFETY: the words have room for the bytes, checked above, may be written through a shared reference, and are not part
    // of any memory that safe code can refer to otherwise.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), words.as_ptr().cast::<u8>().cast_mut(), bytes.len()) }
}

/// Copies plain values out of words that nobody writes before the next meeting; see [`copy_in`].
///
/// # Panics
/// If the words are too few.
pub(super) fn copy_out<T: bytemuck::Pod>(words: &[AtomicU64], to: &mut [T]) {
    let bytes = bytemuck::cast_slice_mut::<T, u8>(to);
    assert!(bytes.len() <= size_of_val(words));
    // SAFETY: the words hold the bytes, checked above; any bits are a value of plain old data.
    unsafe { std::ptr::copy_nonoverlapping(words.as_ptr().cast::<u8>(), bytes.as_mut_ptr(), bytes.len()) }
}

impl SharedMemory {
    /// Makes a memory file of zeros and maps it. The others can map it while the descriptor is open.
    pub fn create(size: MemorySize) -> Result<(SharedMemory, OwnedFd), CollectiveError> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create(c"kvasir-collective", flags)
            .map_err(CollectiveError::errno("cannot make a memory file"))?;
        rustix::fs::ftruncate(&file, size.bytes() as u64)
            .map_err(CollectiveError::errno("cannot size a memory file"))?;
        rustix::fs::fcntl_add_seals(&file, SIZE_SEALS | SealFlags::SEAL)
            .map_err(CollectiveError::errno("cannot seal a memory file"))?;
        Ok((Self::map(file.as_fd(), size)?, file))
    }

    /// Maps a peer's memory file. None if what is found there is no memory file of this size with its size sealed.
    pub fn open(source: SegmentFile, size: MemorySize) -> Result<Option<SharedMemory>, CollectiveError> {
        let file = source
            .open(OFlags::RDWR)
            .map_err(CollectiveError::errno("cannot open the memory file of rank 0"))?;
        let is_sealed = rustix::fs::fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SIZE_SEALS));
        let found = rustix::fs::fstat(&file).map_err(CollectiveError::errno("cannot stat a memory file"))?;
        if !is_sealed || found.st_size as u64 != size.bytes() as u64 {
            return Ok(None);
        }
        Self::map(file.as_fd(), size).map(Some)
    }

    /// control: [control_words]
    #[inline]
    pub fn control(&self) -> &[AtomicU32] {
        // SAFETY: the mapping begins with `control_words` aligned u32, lives as long as `self`, keeps its size
        // (sealed), and all processes reach these words through atomics of this width.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast(), self.size.control_words) }
    }

    /// data: [data_words]
    #[inline]
    pub fn data(&self) -> &[AtomicU64] {
        // SAFETY: behind the control bytes (a multiple of eight, checked in `map`) lie `data_words` u64; the mapping
        // lives as long as `self`, keeps its size (sealed), and all processes reach these words through atomics of
        // this width.
        unsafe {
            let start = self.base.as_ptr().add(self.size.control_bytes());
            std::slice::from_raw_parts(start.cast(), self.size.data_words)
        }
    }

    fn map(file: BorrowedFd<'_>, size: MemorySize) -> Result<SharedMemory, CollectiveError> {
        assert!(size.control_words.is_multiple_of(2), "data words are aligned");
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel picks a free range, so no memory of this program is replaced; the file has `bytes`
        // bytes and is sealed, so every page of the range stays backed.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                size.bytes(),
                protection,
                MapFlags::SHARED,
                file,
                0,
            )
        }
        .map_err(CollectiveError::errno("cannot map a memory file"))?;
        let base = NonNull::new(base.cast()).expect("the kernel does not map at null");
        Ok(SharedMemory { base, size })
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: this range was mapped by `map`, is unmapped once, and every view of it borrowed `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.size.bytes()) };
        debug_assert!(unmapped.is_ok(), "the range is the one that was mapped");
    }
}
