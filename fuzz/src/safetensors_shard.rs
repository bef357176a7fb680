//! A safetensors file from a section of an input: whole headers without the weights that they speak of.

use std::{fs::File, io, io::Write, path::Path};

use serde_json::Value;

/// More weights than this are missing at the end of the file.
const DATA_BYTES_MAX: u64 = 1 << 20;

/// Bytes that begin as a header's JSON get their length before them and zeros as weights behind them, so that the
/// fuzzer need not keep the two in step; all others are the file.
pub fn write(path: &Path, section: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    if !section.starts_with(b"{") {
        return file.write_all(section);
    }
    file.write_all(&(section.len() as u64).to_le_bytes())?;
    file.write_all(section)?;
    file.set_len(8 + section.len() as u64 + data_bytes(section))
}

/// Up to the last end of a tensor that the header names.
fn data_bytes(header: &[u8]) -> u64 {
    let Ok(Value::Object(header)) = serde_json::from_slice(header) else {
        return 0;
    };
    let end = |tensor: &Value| tensor.get("data_offsets")?.get(1)?.as_u64();
    let last = header.values().filter_map(end).max();
    last.unwrap_or(0).min(DATA_BYTES_MAX)
}
