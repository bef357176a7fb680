//! What can be wrong with a checkpoint. Every message names the field, tensor or offset, and what would work.

use std::{io, path::PathBuf};

use kvasir_kv::HeadLayoutError;

use crate::{TokenizerError, chat_template::ChatTemplateError};

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    #[error("cannot open it: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("not a GGUF file: it starts with {found:?}, a GGUF file with \"GGUF\"")]
    NotGguf { found: String },
    #[error("GGUF version {version} is not supported; supported: 2, 3 (convert the model again)")]
    Version { version: u32 },
    #[error("the file is big-endian; only little-endian GGUF files are supported (convert the model again)")]
    BigEndian,
    #[error(
        "the file ends inside {what} at offset {offset}: {needed} bytes needed, {left} left (is the download complete?)"
    )]
    Truncated {
        what: String,
        offset: usize,
        needed: u64,
        left: usize,
    },
    #[error("{what} at offset {offset} is {count}, at most {most} are possible there")]
    Count {
        what: String,
        offset: usize,
        count: u64,
        most: u64,
    },
    #[error("{what} at offset {offset} is {len} bytes long, at most {max} are allowed")]
    TooLong {
        what: String,
        offset: usize,
        len: u64,
        max: u64,
    },
    #[error("{what} at offset {offset} is not valid UTF-8")]
    NotUtf8 { what: String, offset: usize },
    #[error("metadata {key:?} at offset {offset} has the unknown value type {found}; known: 0 to 12")]
    ValueType { key: String, offset: usize, found: u32 },
    #[error("metadata {key:?} at offset {offset} nests arrays deeper than {max}")]
    Nesting { key: String, offset: usize, max: usize },
    #[error("metadata {key:?} is there twice")]
    DuplicateKey { key: String },
    #[error("metadata {key:?} is missing")]
    MissingKey { key: String },
    #[error("metadata {key:?} is {found}, expected {expected}")]
    WrongType {
        key: String,
        found: &'static str,
        expected: &'static str,
    },
    #[error("metadata {key:?} is {value}, expected {expected}")]
    BadValue {
        key: String,
        value: String,
        expected: String,
    },
    #[error("metadata {key:?} is {value}: {what} is not supported yet; supported: {supported}")]
    Unsupported {
        key: String,
        value: String,
        what: &'static str,
        supported: &'static str,
    },
    #[error("architecture {name:?} is not supported yet; supported: {supported}")]
    Architecture { name: String, supported: String },
    #[error("heads of the model: {source}")]
    Heads { source: HeadLayoutError },
    #[error("{what} ({key}) is {value}, expected a multiple of 32")]
    Width {
        what: &'static str,
        key: String,
        value: u32,
    },
    #[error("tensor {tensor:?} is there twice")]
    DuplicateTensor { tensor: String },
    #[error("tensor {tensor:?} has dimensions {dimensions:?}; supported: one or two, none of them zero")]
    Dimensions { tensor: String, dimensions: Vec<u64> },
    #[error(
        "tensor {tensor:?} has weight type {found}: {found} is not supported yet; supported: {}",
        crate::WeightType::supported()
    )]
    WeightType { tensor: String, found: String },
    #[error("tensor {tensor:?} has {cols} columns; {weight_type} stores {block_len} columns together")]
    CutBlock {
        tensor: String,
        cols: u64,
        weight_type: crate::WeightType,
        block_len: usize,
    },
    #[error("tensor {tensor:?} starts at data offset {offset}, which is not a multiple of the alignment {alignment}")]
    Misaligned {
        tensor: String,
        offset: u64,
        alignment: u64,
    },
    #[error(
        "tensor {tensor:?} needs {bytes} bytes at data offset {offset}, but the file has {available} bytes of data (is the download complete?)"
    )]
    OutOfBounds {
        tensor: String,
        offset: u64,
        bytes: u128,
        available: u64,
    },
    #[error("tensors {first:?} and {second:?} overlap")]
    Overlap { first: String, second: String },
    #[error("tensor {tensor:?} is missing; expected {expected_rows} x {expected_cols} (rows x columns)")]
    MissingTensor {
        tensor: String,
        expected_rows: u64,
        expected_cols: u64,
    },
    #[error("tensor {tensor:?} is {rows} x {cols} (rows x columns), expected {expected_rows} x {expected_cols}")]
    Shape {
        tensor: String,
        rows: u64,
        cols: u64,
        expected_rows: u64,
        expected_cols: u64,
    },
    #[error("tensor {tensor:?} is not part of the {architecture} architecture as it is computed here{hint}")]
    UnknownTensor {
        tensor: String,
        architecture: &'static str,
        hint: &'static str,
    },
    #[error("there is no tensor {tensor:?}")]
    NoSuchTensor { tensor: String },
    #[error("in file {file}: {source}")]
    InFile { file: String, source: Box<CheckpointError> },
    #[error("{file} is not the JSON that it should be: {source}")]
    Json { file: String, source: serde_json::Error },
    #[error("the folder has no {file}{hint}")]
    MissingFile { file: String, hint: &'static str },
    #[error("{file} has more than {bytes_max} bytes, the most that are allowed")]
    FileTooLong { file: String, bytes_max: u64 },
    #[error("the header of this safetensors file: {source} (is the download complete?)")]
    SafeTensors { source: safetensors::SafeTensorError },
    #[error("tensor {tensor:?} has dtype {found}: {found} is not supported yet; supported: F32, F16, BF16")]
    Dtype { tensor: String, found: String },
    #[error("tensor {tensor:?} is in file {found}, the index says {expected}")]
    WrongShard {
        tensor: String,
        found: String,
        expected: String,
    },
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    ChatTemplate(#[from] ChatTemplateError),
}
