//! Zeroed memory advised for huge pages, and an arena that hands out disjoint pieces of it.
//!
//! With 4 KiB pages a core reads a third less per second. Pages become real when first written, so a buffer costs what is
//! used of it; a piece keeps its mapping alive, and the mapping is given back when its last piece is dropped.

use std::{
    fmt, io,
    ops::{Deref, DerefMut},
    ptr::{self, NonNull},
    sync::Arc,
};

use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Pieces start at cache lines.
const ALIGNMENT: usize = 64;
const HUGE_PAGE: usize = 2 << 20;
const PAGE: usize = 4096;
/// What an arena maps at a time.
const ARENA_CHUNK_BYTES: usize = 64 << 20;

/// An anonymous private mapping that begins at a huge page boundary.
struct Mapping {
    mapped: NonNull<u8>,
    mapped_bytes: usize,
    start: NonNull<u8>,
}

// SAFETY: the mapping is plain memory that no thread is tied to; access to its bytes is governed by `HugeBuffer`.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared `Mapping` gives no access to bytes at all.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(bytes: usize) -> io::Result<Self> {
        let mapped_bytes = bytes.max(1).checked_add(HUGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing memory.
        let mapped = unsafe {
            rustix::mm::mmap_anonymous(
                ptr::null_mut(),
                mapped_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let mapped = NonNull::new(mapped.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let skipped = mapped.as_ptr().align_offset(HUGE_PAGE);
        // SAFETY: `align_offset` of a byte pointer is below HUGE_PAGE, and the mapping is longer than that.
        let start = unsafe { mapped.add(skipped) };
        // Advice only: without huge pages everything works, slower.
        // SAFETY: the range lies inside the mapping made above, and the advice changes no contents.
        let _ = unsafe { rustix::mm::madvise(start.as_ptr().cast(), mapped_bytes - skipped, Advice::LinuxHugepage) };
        Ok(Self {
            mapped,
            mapped_bytes,
            start,
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the whole mapping made by `new`, and every buffer in it held an `Arc` of self.
        let _ = unsafe { rustix::mm::munmap(self.mapped.as_ptr().cast(), self.mapped_bytes) };
    }
}

/// Owned bytes in a mapping, aligned to a cache line; zeroed when new.
pub struct HugeBuffer {
    bytes: NonNull<[u8]>,
    _mapping: Arc<Mapping>,
}

// SAFETY: a buffer owns its range of the mapping exclusively, as a Vec owns its memory.
unsafe impl Send for HugeBuffer {}
// SAFETY: as above; `&HugeBuffer` gives only `&[u8]`.
unsafe impl Sync for HugeBuffer {}

impl HugeBuffer {
    /// A buffer in a mapping of its own.
    ///
    /// Errors if the address space or the process's limits do not allow the mapping.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let mapping = Arc::new(Mapping::new(bytes)?);
        Ok(Self {
            bytes: NonNull::slice_from_raw_parts(mapping.start, bytes),
            _mapping: mapping,
        })
    }
}

impl HugeBuffer {
    /// Reads all that is in whole 256 bytes, from beginning to end, as a measurement of memory wants it.
    pub fn read_through(&self) -> [u64; 32] {
        let mut sums = [0; 32];
        for chunk in self.as_chunks::<256>().0 {
            for (sum, bytes) in sums.iter_mut().zip(chunk.as_chunks::<8>().0) {
                *sum ^= u64::from_le_bytes(*bytes);
            }
        }
        sums
    }

    /// Gives the memory of a range back; it reads as zeros afterwards, or still as what it was where pages are shared with
    /// what lies around the range.
    pub fn discard(&mut self, range: std::ops::Range<usize>) {
        let bytes: &mut [u8] = &mut self[range];
        let begin = bytes.as_ptr().align_offset(PAGE).min(bytes.len());
        let len = (bytes.len() - begin) / PAGE * PAGE;
        if len > 0 {
            // SAFETY: the range is mapped, private and anonymous, lies inside this buffer, which nobody else refers to, and
            // zeros are as valid bytes as any. An error leaves it as it was.
            let _ = unsafe { rustix::mm::madvise(bytes[begin..].as_mut_ptr().cast(), len, Advice::LinuxDontNeed) };
        }
    }
}

impl Deref for HugeBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range is mapped readable while `_mapping` lives, zeroed by the kernel, and only self refers to it.
        unsafe { self.bytes.as_ref() }
    }
}

impl DerefMut for HugeBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is the only way to it.
        unsafe { self.bytes.as_mut() }
    }
}

impl fmt::Debug for HugeBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HugeBuffer({} bytes)", self.len())
    }
}

/// Hands out buffers one after the other, so that matrices packed in the order of use are read as one stream.
#[derive(Default)]
pub struct WeightArena {
    current: Option<Arc<Mapping>>,
    used: usize,
}

impl WeightArena {
    pub fn new() -> Self {
        Self::default()
    }

    /// A zeroed buffer of its own range. Errors as [`HugeBuffer::new`].
    pub fn alloc(&mut self, bytes: usize) -> io::Result<HugeBuffer> {
        if bytes > ARENA_CHUNK_BYTES {
            return HugeBuffer::new(bytes);
        }
        if self.used + bytes > ARENA_CHUNK_BYTES {
            self.current = None;
        }
        let mapping = match &self.current {
            Some(mapping) => Arc::clone(mapping),
            None => {
                self.used = 0;
                Arc::clone(self.current.insert(Arc::new(Mapping::new(ARENA_CHUNK_BYTES)?)))
            }
        };
        // SAFETY: `used + bytes` is at most the chunk's size, checked above.
        let start = unsafe { mapping.start.add(self.used) };
        // Ranges never overlap: `used` only grows while the mapping is current.
        self.used = (self.used + bytes).next_multiple_of(ALIGNMENT);
        Ok(HugeBuffer {
            bytes: NonNull::slice_from_raw_parts(start, bytes),
            _mapping: mapping,
        })
    }
}

impl fmt::Debug for WeightArena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeightArena")
            .field("used_bytes", &self.used)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_an_arena_are_aligned_zeroed_and_disjoint() {
        let mut arena = WeightArena::new();
        let sizes = [0, 1, 63, 64, 65, 1000, ARENA_CHUNK_BYTES, 3, ARENA_CHUNK_BYTES + 1, 70];
        let mut buffers: Vec<HugeBuffer> = sizes.iter().map(|bytes| arena.alloc(*bytes).unwrap()).collect();
        drop(arena);
        for (i, buffer) in buffers.iter_mut().enumerate() {
            assert_eq!(buffer.len(), sizes[i]);
            assert!(buffer.as_ptr().addr().is_multiple_of(ALIGNMENT));
            assert!(buffer.iter().all(|byte| *byte == 0));
            buffer.fill(i as u8 + 1);
        }
        for (i, buffer) in buffers.iter().enumerate() {
            assert!(
                buffer.iter().all(|byte| *byte == i as u8 + 1),
                "buffer {i} was overwritten"
            );
        }
    }
}
