//! The key-value part of a GGUF file.
//!
//! Numbers keep their value, not their width: a file may store a count as any integer type. An absent key is `None`,
//! a value of the wrong type an error that names the key.

use crate::{
    CheckpointError,
    metadata_entries::{Entries, ValueType},
};

/// A value, borrowed from the file.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum MetadataValue<'a> {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    /// Not promised to be UTF-8.
    String(&'a [u8]),
    Array(MetadataArray<'a>),
}

/// An array, borrowed from the file.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct MetadataArray<'a> {
    pub(crate) item: ValueType,
    pub(crate) len: usize,
    pub(crate) bytes: &'a [u8],
}

/// The keys and values of one open file.
#[derive(Clone, Copy, Debug)]
pub struct Metadata<'a> {
    bytes: &'a [u8],
    entries: &'a Entries,
}

impl<'a> Metadata<'a> {
    pub(crate) fn new(bytes: &'a [u8], entries: &'a Entries) -> Self {
        Self { bytes, entries }
    }

    pub fn get(&self, key: &str) -> Option<MetadataValue<'a>> {
        self.entries.get(key).map(|stored| stored.value(self.bytes))
    }

    /// All keys in alphabetical order.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.entries.keys()
    }

    /// `None` if the key is absent. Errors if the value is not an integer from 0 to 2^32 - 1.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, CheckpointError> {
        self.typed(key, "an integer from 0 to 2^32 - 1", |value| match value {
            MetadataValue::Unsigned(value) => u32::try_from(value).ok(),
            MetadataValue::Signed(value) => u32::try_from(value).ok(),
            _ => None,
        })
    }

    /// `None` if the key is absent. Errors if the value is not a float.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, CheckpointError> {
        self.typed(key, "a float", |value| match value {
            MetadataValue::Float(value) => Some(value as f32),
            _ => None,
        })
    }

    /// `None` if the key is absent. Errors if the value is not a bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, CheckpointError> {
        self.typed(key, "a bool", |value| match value {
            MetadataValue::Bool(value) => Some(value),
            _ => None,
        })
    }

    /// `None` if the key is absent. Errors if the value is not a string of UTF-8.
    pub fn str(&self, key: &str) -> Result<Option<&'a str>, CheckpointError> {
        self.typed(key, "a string of valid UTF-8", |value| match value {
            MetadataValue::String(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        })
    }

    /// `None` if the key is absent. Errors if the value is not an array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<Strings<'a>>, CheckpointError> {
        self.typed(key, "an array of strings", |value| match value {
            MetadataValue::Array(array) => array.strings(),
            _ => None,
        })
    }

    /// `None` if the key is absent. Errors if the value is not an array of integers.
    pub fn integers(&self, key: &str) -> Result<Option<Integers<'a>>, CheckpointError> {
        self.typed(key, "an array of integers", |value| match value {
            MetadataValue::Array(array) => array.integers(),
            _ => None,
        })
    }

    /// `None` if the key is absent. Errors if the value is not an array of floats.
    pub fn floats(&self, key: &str) -> Result<Option<Floats<'a>>, CheckpointError> {
        self.typed(key, "an array of floats", |value| match value {
            MetadataValue::Array(array) => array.floats(),
            _ => None,
        })
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(MetadataValue<'a>) -> Option<T>,
    ) -> Result<Option<T>, CheckpointError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let found = value.kind();
        convert(value).map(Some).ok_or_else(|| CheckpointError::WrongType {
            key: key.to_owned(),
            found,
            expected,
        })
    }
}

impl MetadataValue<'_> {
    fn kind(&self) -> &'static str {
        match self {
            Self::Unsigned(_) | Self::Signed(_) => "another integer",
            Self::Float(_) => "a float",
            Self::Bool(_) => "a bool",
            Self::String(_) => "another string",
            Self::Array(_) => "another array",
        }
    }
}

/// The strings of an array, in order.
#[derive(Clone, Debug)]
pub struct Strings<'a> {
    bytes: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        let (len, rest) = self.bytes.split_first_chunk::<8>()?;
        let (string, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        self.bytes = rest;
        Some(string)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Strings<'_> {}

/// The integers of an array, in order.
#[derive(Clone, Debug)]
pub struct Integers<'a> {
    item: ValueType,
    items: std::slice::ChunksExact<'a, u8>,
}

impl Iterator for Integers<'_> {
    type Item = i64;

    fn next(&mut self) -> Option<i64> {
        let item = self.items.next()?;
        let mut word = [if self.item.is_signed() && item[item.len() - 1] >= 128 {
            255
        } else {
            0
        }; 8];
        word[..item.len()].copy_from_slice(item);
        // A u64 above i64::MAX turns negative: no field that we read is that large, and none may be negative.
        Some(i64::from_le_bytes(word))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.items.size_hint()
    }
}

impl ExactSizeIterator for Integers<'_> {}

/// The floats of an array, in order; 64-bit ones are rounded.
#[derive(Clone, Debug)]
pub struct Floats<'a> {
    items: std::slice::ChunksExact<'a, u8>,
}

impl Iterator for Floats<'_> {
    type Item = f32;

    fn next(&mut self) -> Option<f32> {
        let item = self.items.next()?;
        match *item {
            [a, b, c, d] => Some(f32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => Some(f64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32),
            _ => None,
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.items.size_hint()
    }
}

impl ExactSizeIterator for Floats<'_> {}

impl<'a> MetadataArray<'a> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `None` if this is not an array of strings.
    pub fn strings(&self) -> Option<Strings<'a>> {
        (self.item == ValueType::String).then_some(Strings {
            bytes: self.bytes,
            left: self.len,
        })
    }

    /// `None` if this is not an array of integers.
    pub fn integers(&self) -> Option<Integers<'a>> {
        let size = self.item.size().filter(|_| self.item.is_integer())?;
        Some(Integers {
            item: self.item,
            items: self.bytes.chunks_exact(size),
        })
    }

    /// `None` if this is not an array of floats.
    pub fn floats(&self) -> Option<Floats<'a>> {
        let is_float = matches!(self.item, ValueType::F32 | ValueType::F64);
        let size = self.item.size().filter(|_| is_float)?;
        Some(Floats {
            items: self.bytes.chunks_exact(size),
        })
    }
}
