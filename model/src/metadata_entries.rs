//! Reads the key-value part of a GGUF file.
//!
//! Keeps scalars and the places of strings and arrays: a vocabulary of 100,000 strings costs nothing until it is read.
//! Every array was stepped through once here, so that reading it later stays inside its bytes.

use std::{collections::BTreeMap, ops::Range};

use crate::{
    CheckpointError,
    cursor::Cursor,
    metadata::{MetadataArray, MetadataValue},
};

/// Limit of the GGUF specification.
const KEY_BYTES_MAX: u64 = 65_535;
/// Arrays of arrays exist in the format, but in no known file.
const NESTING_MAX: usize = 4;

/// What a parsed file keeps; `Metadata` adds the bytes.
#[derive(Debug, Default)]
pub(crate) struct Entries(BTreeMap<String, Stored>);

/// A scalar, or where in the file a string or an array lies.
#[derive(Debug)]
pub(crate) enum Stored {
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
    /// `bytes` are those of the whole file.
    pub(crate) fn value<'a>(&self, bytes: &'a [u8]) -> MetadataValue<'a> {
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

    pub(crate) fn get(&self, key: &str) -> Option<&Stored> {
        self.0.get(key)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
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
pub(crate) enum ValueType {
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
    pub(crate) fn size(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }

    pub(crate) fn is_signed(self) -> bool {
        matches!(self, Self::I8 | Self::I16 | Self::I32 | Self::I64)
    }

    pub(crate) fn is_integer(self) -> bool {
        self.is_signed() || matches!(self, Self::U8 | Self::U16 | Self::U32 | Self::U64)
    }
}
