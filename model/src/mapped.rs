//! A file mapped into memory for reading. The only unsafe code of this crate.
//!
//! The pages stay in the page cache and are shared by all processes that map the same file.

use std::{fs::File, io, ops::Deref, path::Path};

use memmap2::{Mmap, UncheckedAdvice};

pub(crate) struct MappedFile(Mmap);

impl MappedFile {
    /// Errors if `path` is not a regular file (a pipe would block, a directory cannot be mapped) or cannot be read.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        // Asked before opening: opening a pipe without a writer waits for ever.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let file = File::open(path)?;
        // SAFETY: the mapping is private, read-only and lives as long as `Mmap`. Rust also demands that the bytes do
        // not change meanwhile: checkpoints are replaced by rename, not written in place, which the documentation of
        // `Checkpoint::open` asks of its caller. Every reader checks bounds against the mapped length and none
        // relies on reading the same value twice, so a file that is overwritten anyway gives wrong weights or, when
        // cut short, a bus error, but no access outside the mapping.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self(map))
    }

    /// The process no longer counts as one that uses the pages read so far. Whoever reads on gets them from the page cache.
    pub(crate) fn let_go(&self) {
        // SAFETY: the mapping is read-only and of a file, so no contents can be lost: a page that is touched again is the
        // file's. An error leaves all as it was.
        let _ = unsafe { self.0.unchecked_advise(UncheckedAdvice::DontNeed) };
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_let_go_reads_as_before() {
        let path = std::env::temp_dir().join(format!("kvasir-mapped-{}", std::process::id()));
        let bytes: Vec<u8> = (0..100_000_u32).map(|at| (at % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = MappedFile::open(&path).unwrap();
        assert!(*file == bytes[..]);
        file.let_go();
        assert!(*file == bytes[..]);
        std::fs::remove_file(&path).unwrap();
    }
}
