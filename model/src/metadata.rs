//! The key-value part of a GGUF file.
//!
//! Holds scalars and the places of strings and arrays: a vocabulary of 100,000 strings costs nothing until it is
//! read. Numbers keep their value, not their width: a file may store a count as any integer type.

use std::{collections::BTreeMap, ops::Range};

use crate::{CheckpointError, cursor::Cursor};

/// Limit of the GGUF specification.
const KEY_BYTES_MAX: u64 = 65_535;
/// Arrays of arrays exist in the format, but in no known file.
const NESTING_MAX: usize = 4;

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
    item: ValueType,
    len: usize,
    bytes: &'a [u8],
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
        self.entries.0.get(key).map(|stored| stored.value(self.bytes))
    }

    /// All keys in alphabetical order.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.entries.0.keys().map(String::as_str)
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
}

/// What a parsed file keeps; `Metadata` adds the bytes.
#[derive(Debug, Default)]
pub(crate) struct Entries(BTreeMap<String, Stored>);

#[derive(Debug)]
enum Stored {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(Range<usize>),
    Array {
        item: ValueType,
        len: usize,
        items: Range<usize>,
    },
}

impl Stored {
    fn value<'a>(&self, bytes: &'a [u8]) -> MetadataValue<'a> {
        match self {
            Self::Unsigned(value) => MetadataValue::Unsigned(*value),
            Self::Signed(value) => MetadataValue::Signed(*value),
            Self::Float(value) => MetadataValue::Float(*value),
            Self::Bool(value) => MetadataValue::Bool(*value),
            Self::String(range) => MetadataValue::String(&bytes[range.clone()]),
            Self::Array { item, len, items } => MetadataValue::Array(MetadataArray {
                item: *item,
                len: *len,
                bytes: &bytes[items.clone()],
            }),
        }
    }
}

impl Entries {
    /// The shortest entry: a key's length, one letter, a value type, a one-byte value.
    pub(crate) const ENTRY_BYTES_MIN: u64 = 8 + 1 + 4 + 1;
    /// A hundred times what real files have, so that tiny entries cannot fill the memory with map nodes.
    pub(crate) const LEN_MAX: u64 = 65_536;

    /// Reads `count` entries. The caller has checked `count` against the length of the file.
    pub(crate) fn parse(bytes: &[u8], cursor: &mut Cursor<'_>, count: u64) -> Result<Self, CheckpointError> {
        let mut entries = BTreeMap::new();
        for i in 0..count {
            let key = cursor
                .name(KEY_BYTES_MAX, &|| format!("the key of metadata entry {i}"))?
                .to_owned();
            let stored = parse_value(bytes, cursor, &key)?;
            if entries.contains_key(&key) {
                return Err(CheckpointError::DuplicateKey { key });
            }
            entries.insert(key, stored);
        }
        Ok(Self(entries))
    }
}

fn parse_value(bytes: &[u8], cursor: &mut Cursor<'_>, key: &str) -> Result<Stored, CheckpointError> {
    let item = parse_type(cursor, key)?;
    let what = || format!("metadata {key:?}");
    match item {
        ValueType::String => Ok(Stored::String(cursor.string(&what)?)),
        ValueType::Array => parse_array(cursor, key),
        _ => {
            let size = item.size().expect("strings and arrays are handled above");
            let range = cursor.skip(size as u64, &what)?;
            parse_scalar(item, &bytes[range], key)
        }
    }
}

fn parse_scalar(item: ValueType, bytes: &[u8], key: &str) -> Result<Stored, CheckpointError> {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    let unsigned = u64::from_le_bytes(word);
    let unused_bits = 64 - 8 * bytes.len() as u32;
    Ok(match item {
        ValueType::F32 => Stored::Float(f64::from(f32::from_bits(unsigned as u32))),
        ValueType::F64 => Stored::Float(f64::from_bits(unsigned)),
        ValueType::Bool if unsigned > 1 => {
            let expected = "0 or 1 for a bool".to_owned();
            return Err(CheckpointError::BadValue {
                key: key.to_owned(),
                value: unsigned.to_string(),
                expected,
            });
        }
        ValueType::Bool => Stored::Bool(unsigned == 1),
        _ if item.is_signed() => Stored::Signed((unsigned << unused_bits) as i64 >> unused_bits),
        _ => Stored::Unsigned(unsigned),
    })
}

fn parse_array(cursor: &mut Cursor<'_>, key: &str) -> Result<Stored, CheckpointError> {
    let item = parse_type(cursor, key)?;
    let len = parse_len(cursor, item, key)?;
    let start = cursor.offset();
    skip_items(cursor, item, len, key, 1)?;
    // The length fits: every item takes at least one byte of a file that is mapped into memory.
    Ok(Stored::Array {
        item,
        len: len as usize,
        items: start..cursor.offset(),
    })
}

fn parse_len(cursor: &mut Cursor<'_>, item: ValueType, key: &str) -> Result<u64, CheckpointError> {
    let item_bytes = match item {
        ValueType::String => 8,
        ValueType::Array => 12,
        _ => item.size().expect("strings and arrays are handled above") as u64,
    };
    cursor.count(item_bytes, u64::MAX, &|| format!("the array of metadata {key:?}"))
}

fn skip_items(
    cursor: &mut Cursor<'_>,
    item: ValueType,
    len: u64,
    key: &str,
    depth: usize,
) -> Result<(), CheckpointError> {
    if depth > NESTING_MAX {
        return Err(CheckpointError::Nesting {
            key: key.to_owned(),
            offset: cursor.offset(),
            max: NESTING_MAX,
        });
    }
    let what = || format!("the array of metadata {key:?}");
    if let Some(size) = item.size() {
        // No overflow: `parse_len` compared the count with the bytes left.
        return cursor.skip(len * size as u64, &what).map(drop);
    }
    for _ in 0..len {
        if item == ValueType::String {
            cursor.string(&what)?;
        } else {
            let inner = parse_type(cursor, key)?;
            let inner_len = parse_len(cursor, inner, key)?;
            skip_items(cursor, inner, inner_len, key, depth + 1)?;
        }
    }
    Ok(())
}

fn parse_type(cursor: &mut Cursor<'_>, key: &str) -> Result<ValueType, CheckpointError> {
    let offset = cursor.offset();
    let found = cursor.u32(&|| format!("the value type of metadata {key:?}"))?;
    ValueType::from_id(found).ok_or_else(|| CheckpointError::ValueType {
        key: key.to_owned(),
        offset,
        found,
    })
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    fn from_id(id: u32) -> Option<Self> {
        use ValueType::*;
        let in_order = [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64];
        in_order.get(id as usize).copied()
    }

    /// Bytes of a value; `None` for strings and arrays, which say it themselves.
    fn size(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }

    fn is_signed(self) -> bool {
        matches!(self, Self::I8 | Self::I16 | Self::I32 | Self::I64)
    }

    fn is_integer(self) -> bool {
        self.is_signed() || matches!(self, Self::U8 | Self::U16 | Self::U32 | Self::U64)
    }
}
