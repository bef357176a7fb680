//! The memory of a transfer's slots: a source writes cells there, and a target on the same host reads them.
//!
//! It is a memory file without a name, so nothing is left behind when its processes die. Its size is sealed, so no page
//! can be pulled away from under a reader, and so is writing: nobody but its maker ever has it mapped to write, and to the
//! maker a slot is plain memory. A reader trusts nobody: to it the bytes are atomics, any of which may change at any time.

use std::{
    io,
    ops::{Deref, DerefMut},
    os::fd::{AsFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    fs::{MemfdFlags, SealFlags},
    mm::{MapFlags, ProtFlags},
};

use crate::collective::SegmentFile;

/// Seals that keep every mapped byte backed.
const SIZE_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);
/// Of the file systems, the one whose pages need no reservation: a reader of huge pages could be short of one.
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// Slots begin at pages, however large these are.
const PAGE_BYTES_MAX: usize = 1 << 16;
/// Bytes that are copied before their checksum is taken: they are still close to the processor then.
const PIECE_BYTES: usize = 4096;

/// Bytes from one slot's begin to the next one's.
fn stride(cell_bytes: usize) -> usize {
    cell_bytes.next_multiple_of(PAGE_BYTES_MAX)
}

/// One slot, as its maker sees it.
#[derive(Debug)]
pub(super) struct SlotMemory {
    mapping: Mapping,
    cell_bytes: usize,
}

impl SlotMemory {
    /// Makes slots of `cell_bytes` each. A reader can open them while the descriptor is open.
    pub fn make(count: u32, cell_bytes: usize) -> io::Result<(Vec<Self>, OwnedFd)> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create(c"kvasir-cells", flags)?;
        let stride = stride(cell_bytes);
        rustix::fs::ftruncate(&file, u64::from(count) * stride as u64)?;
        let slot = |index| {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            let mapping = Mapping::new(&file, index as usize * stride, stride, protection)?;
            Ok(Self { mapping, cell_bytes })
        };
        let slots: io::Result<Vec<Self>> = (0..count).map(slot).collect();
        // From here on nobody can map or open it to write.
        rustix::fs::fcntl_add_seals(&file, SIZE_SEALS | SealFlags::FUTURE_WRITE | SealFlags::SEAL)?;
        Ok((slots?, file))
    }
}

impl Deref for SlotMemory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is at least `cell_bytes` long, lives as long as `self`, is the only one of its range that
        // may be written (the file was sealed before anybody heard of it), and `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.mapping.base.as_ptr(), self.cell_bytes) }
    }
}

impl DerefMut for SlotMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`; others who map it read it as atomics or not at all.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.base.as_ptr(), self.cell_bytes) }
    }
}

/// All slots of a source, as their reader sees them.
#[derive(Debug)]
pub(super) struct SlotView {
    mapping: Mapping,
    cell_bytes: usize,
}

impl SlotView {
    /// Errors if what is found there is no memory file, can shrink, or holds less than `count` slots.
    pub fn open(source: SegmentFile, count: u32, cell_bytes: usize) -> io::Result<Self> {
        let file = source.open(rustix::fs::OFlags::RDONLY)?;
        let refused = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
        if !rustix::fs::fcntl_get_seals(&file)?.contains(SIZE_SEALS) {
            return Err(refused("its size is not sealed"));
        }
        if rustix::fs::fstatfs(&file)?.f_type as u64 != TMPFS_MAGIC {
            return Err(refused("it is no memory file of usual pages"));
        }
        let found = rustix::fs::fstat(&file)?.st_size as u64;
        let bytes = u64::from(count) * stride(cell_bytes) as u64;
        if found < bytes {
            return Err(refused(&format!("it has {found} bytes; expected {bytes}")));
        }
        let mapping = Mapping::new(&file, 0, bytes as usize, ProtFlags::READ)?;
        Ok(Self { mapping, cell_bytes })
    }

    /// Copies the first bytes of a slot; returns the CRC-32C of what `bytes` holds then.
    ///
    /// # Panics
    /// If there is no such slot, or it is shorter.
    pub fn copy(&self, slot: u32, bytes: &mut [u8]) -> u32 {
        let begin = slot as usize * stride(self.cell_bytes) / size_of::<u64>();
        let words = bytes.len().div_ceil(size_of::<u64>());
        let words = &self.words()[begin..begin + words];
        let mut checksum = 0;
        for (piece, words) in bytes.chunks_mut(PIECE_BYTES).zip(words.chunks(PIECE_BYTES / 8)) {
            copy_piece(words, piece);
            checksum = crc32c::crc32c_append(checksum, piece);
        }
        checksum
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping begins at a page, lives as long as `self`, and keeps its size (sealed). This process only
        // ever reads it, through atomics; what others write meanwhile is a value like any other.
        unsafe { std::slice::from_raw_parts(self.mapping.base.as_ptr().cast(), self.mapping.bytes / 8) }
    }
}

/// The bytes of these words, in the order in which they lie in memory.
fn copy_piece(words: &[AtomicU64], bytes: &mut [u8]) {
    let (whole, rest) = bytes.as_chunks_mut::<8>();
    let (words, last) = words.split_at(whole.len());
    for (bytes, word) in whole.iter_mut().zip(words) {
        *bytes = word.load(Ordering::Relaxed).to_ne_bytes();
    }
    if let Some(word) = last.first() {
        let word = word.load(Ordering::Relaxed).to_ne_bytes();
        rest.copy_from_slice(&word[..rest.len()]);
    }
}

/// Unmapped when dropped.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is owned by this value alone and is valid in every thread; who may write it says its owner.
unsafe impl Send for Mapping {}
// SAFETY: a shared reference to it gives nothing away but the address.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: &OwnedFd, offset: usize, bytes: usize, protection: ProtFlags) -> io::Result<Self> {
        // Pages now rather than one by one while somebody waits for a cell.
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: the kernel picks a free range, so no memory of this program is replaced. The callers have sized the
        // file or checked its size, and it is sealed before anybody else can shrink it.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                flags,
                file.as_fd(),
                offset as u64,
            )
        }?;
        let base = NonNull::new(base.cast()).expect("the kernel does not map at null");
        Ok(Self { base, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this range was mapped by `new`, is unmapped once, and every view of it borrowed its owner.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "the range is the one that was mapped");
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn name(file: &OwnedFd) -> SegmentFile {
        SegmentFile {
            process: std::process::id(),
            descriptor: file.as_raw_fd() as u32,
        }
    }

    #[test]
    fn what_a_maker_writes_a_reader_finds_with_its_checksum_whatever_the_length() {
        for len in [1, 7, 8, 96, 4095, 4096, 4100, 491_520] {
            let (mut slots, file) = SlotMemory::make(3, len).unwrap();
            let view = SlotView::open(name(&file), 3, len).unwrap();
            drop(file);
            for (index, slot) in slots.iter_mut().enumerate() {
                slot.iter_mut()
                    .enumerate()
                    .for_each(|(at, byte)| *byte = (31 * at + index) as u8);
            }
            for (index, slot) in slots.iter().enumerate() {
                let mut found = vec![0; len];
                assert_eq!(view.copy(index as u32, &mut found), crc32c::crc32c(slot));
                assert_eq!(found, **slot);
            }
        }
    }

    #[test]
    fn slots_can_neither_be_written_nor_cut_by_others() {
        let (slots, file) = SlotMemory::make(2, 96).unwrap();
        let other = name(&file).open(rustix::fs::OFlags::RDWR).unwrap();
        assert!(rustix::fs::ftruncate(&other, 0).is_err());
        assert!(rustix::io::pwrite(&other, &[1], 0).is_err());
        assert!(Mapping::new(&other, 0, 96, ProtFlags::READ | ProtFlags::WRITE).is_err());
        assert_eq!(slots[0][0], 0);
    }

    #[test]
    fn memory_that_is_short_or_could_shrink_or_is_gone_is_not_opened() {
        let (_slots, file) = SlotMemory::make(2, 96).unwrap();
        let why = |file: SegmentFile, count| SlotView::open(file, count, 96).unwrap_err().to_string();
        assert!(why(name(&file), 3).contains("bytes; expected"));
        assert!(why(name(&file), u32::MAX).contains("bytes; expected"));
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let loose = rustix::fs::memfd_create(c"loose", flags).unwrap();
        rustix::fs::ftruncate(&loose, 1 << 20).unwrap();
        assert!(why(name(&loose), 1).contains("not sealed"));
        let gone = name(&file);
        drop(file);
        assert!(SlotView::open(gone, 2, 96).is_err());
    }
}
