//! The header of a GGUF file: its metadata and where its tensors lie.

use crate::{
    CheckpointError, Metadata, cursor::Cursor, facts::bad_value, metadata_entries::Entries,
    tensor_directory::TensorDirectory,
};

const ALIGNMENT_DEFAULT: u32 = 32;
/// Shown when a file is not GGUF.
const MAGIC: &[u8; 4] = b"GGUF";

pub(crate) struct GgufHeader(Entries);

impl GgufHeader {
    pub(crate) fn parse(file: &[u8]) -> Result<(Self, TensorDirectory), CheckpointError> {
        if !file.starts_with(MAGIC) {
            let found = file[..file.len().min(4)].escape_ascii().to_string();
            return Err(CheckpointError::NotGguf { found });
        }
        let mut cursor = Cursor::new(file);
        cursor.skip(4, &|| "the magic".to_owned())?;
        check_version(cursor.u32(&|| "the version".to_owned())?)?;
        let num_tensors = cursor.count(TensorDirectory::ENTRY_BYTES_MIN, TensorDirectory::LEN_MAX, &|| {
            "the tensor count".to_owned()
        })?;
        let num_entries = cursor.count(Entries::ENTRY_BYTES_MIN, Entries::LEN_MAX, &|| {
            "the metadata count".to_owned()
        })?;
        let entries = Entries::parse(file, &mut cursor, num_entries)?;
        let alignment = parse_alignment(&Metadata::new(file, &entries))?;
        let directory = TensorDirectory::parse(file.len(), &mut cursor, num_tensors, alignment)?;
        Ok((Self(entries), directory))
    }

    /// file: the same as was parsed.
    pub(crate) fn metadata<'a>(&'a self, file: &'a [u8]) -> Metadata<'a> {
        Metadata::new(file, &self.0)
    }
}

fn check_version(version: u32) -> Result<(), CheckpointError> {
    match version {
        2 | 3 => Ok(()),
        _ if matches!(version.swap_bytes(), 1..=3) => Err(CheckpointError::BigEndian),
        _ => Err(CheckpointError::Version { version }),
    }
}

fn parse_alignment(metadata: &Metadata<'_>) -> Result<u32, CheckpointError> {
    let key = "general.alignment";
    let alignment = metadata.u32(key)?.unwrap_or(ALIGNMENT_DEFAULT);
    if !alignment.is_power_of_two() || alignment < 8 {
        return Err(bad_value(key, alignment, "a power of two, 8 or more"));
    }
    Ok(alignment)
}
