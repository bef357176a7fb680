//! A bounds-checked little-endian reader over the header of a file.
//!
//! Allocates nothing but the texts of errors; every count is checked against the bytes that are left before anyone
//! loops or reserves by it.

use std::ops::Range;

use crate::CheckpointError;

pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.offset
    }

    /// Steps over `len` bytes and says where they were.
    pub(crate) fn skip(&mut self, len: u64, what: &dyn Fn() -> String) -> Result<Range<usize>, CheckpointError> {
        let start = self.offset;
        if len > self.left() as u64 {
            return Err(CheckpointError::Truncated {
                what: what(),
                offset: start,
                needed: len,
                left: self.left(),
            });
        }
        self.offset += len as usize;
        Ok(start..self.offset)
    }

    fn array<const N: usize>(&mut self, what: &dyn Fn() -> String) -> Result<[u8; N], CheckpointError> {
        let range = self.skip(N as u64, what)?;
        Ok(self.bytes[range].try_into().expect("the range is N long"))
    }

    pub(crate) fn u32(&mut self, what: &dyn Fn() -> String) -> Result<u32, CheckpointError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &dyn Fn() -> String) -> Result<u64, CheckpointError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of items of at least `item_bytes` bytes each. Errors if it is above `max` or the rest of the file
    /// cannot hold so many.
    pub(crate) fn count(
        &mut self,
        item_bytes: u64,
        max: u64,
        what: &dyn Fn() -> String,
    ) -> Result<u64, CheckpointError> {
        let offset = self.offset;
        let count = self.u64(what)?;
        let most = (self.left() as u64 / item_bytes).min(max);
        if count > most {
            return Err(CheckpointError::Count {
                what: what(),
                offset,
                count,
                most,
            });
        }
        Ok(count)
    }

    /// A length-prefixed string; says where its bytes are.
    pub(crate) fn string(&mut self, what: &dyn Fn() -> String) -> Result<Range<usize>, CheckpointError> {
        let len = self.u64(what)?;
        self.skip(len, what)
    }

    /// A length-prefixed name of at most `max` bytes of UTF-8.
    pub(crate) fn name(&mut self, max: u64, what: &dyn Fn() -> String) -> Result<&'a str, CheckpointError> {
        let offset = self.offset;
        let range = self.string(what)?;
        if range.len() as u64 > max {
            return Err(CheckpointError::TooLong {
                what: what(),
                offset,
                len: range.len() as u64,
                max,
            });
        }
        std::str::from_utf8(&self.bytes[range]).map_err(|_| CheckpointError::NotUtf8 { what: what(), offset })
    }
}
