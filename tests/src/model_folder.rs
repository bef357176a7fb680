//! The folder of a model, to change before it is written: sound ones are those of `reference/models`.
//!
//! For tests alone: what cannot be read or written panics.

// Helpers of tests are tests too, which clippy does not know.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use kvasir_model::{ChatMessage, Checkpoint, CheckpointError};
use serde_json::{Map, Value};

use crate::reference_models;

pub const CONFIG: &str = "config.json";
pub const WEIGHTS: &str = "model.safetensors";
pub const INDEX: &str = "model.safetensors.index.json";
pub const TOKENIZER: &str = "tokenizer.json";
/// A model in one file.
pub const WHOLE: &str = "llama-f32";
/// A model in three files.
pub const SHARDED: &str = "llama-bf16-sharded";

/// The files of a folder, to change before they are written.
#[derive(Clone, Debug)]
pub struct ModelFolder {
    pub files: BTreeMap<String, Vec<u8>>,
}

/// A folder on disk, gone with the value.
#[derive(Debug)]
pub struct WrittenFolder {
    pub path: PathBuf,
    _folder: tempfile::TempDir,
}

impl ModelFolder {
    /// Of a model in `reference/models`.
    pub fn of(model: &str) -> Self {
        let entries = fs::read_dir(reference_models::path(model)).unwrap();
        let file = |entry: fs::DirEntry| {
            (
                entry.file_name().into_string().unwrap(),
                fs::read(entry.path()).unwrap(),
            )
        };
        Self {
            files: entries.map(|entry| file(entry.unwrap())).collect(),
        }
    }

    pub fn write(&self) -> WrittenFolder {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in &self.files {
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        WrittenFolder {
            path: folder.path().to_owned(),
            _folder: folder,
        }
    }

    pub fn put(&mut self, name: &str, bytes: impl Into<Vec<u8>>) {
        self.files.insert(name.to_owned(), bytes.into());
    }

    pub fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.files[name]).unwrap()
    }

    pub fn change_json(&mut self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut json = self.json(name);
        change(&mut json);
        self.put(name, json.to_string());
    }

    /// Sets a key of config.json; null takes it away.
    pub fn configure(&mut self, key: &str, value: Value) {
        self.change_json(CONFIG, |config| config[key] = value);
    }

    pub fn shard(&self, name: &str) -> Shard {
        Shard::parse(&self.files[name])
    }

    /// Panics if nothing is wrong with it.
    pub fn refusal(&self) -> String {
        use_all(&self.write().path).unwrap_err().to_string()
    }

    pub fn change_header(&mut self, name: &str, change: impl FnOnce(&mut Map<String, Value>)) {
        let mut shard = self.shard(name);
        change(&mut shard.header);
        self.put(name, shard.to_bytes());
    }
}

/// A safetensors file.
#[derive(Debug)]
pub struct Shard {
    pub header: Map<String, Value>,
    pub weights: Vec<u8>,
}

impl Shard {
    pub fn parse(bytes: &[u8]) -> Self {
        let (header, weights) = bytes[8..].split_at(header_len(bytes));
        Self {
            header: serde_json::from_slice(header).unwrap(),
            weights: weights.to_vec(),
        }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let header = serde_json::to_vec(&self.header).unwrap();
        [&(header.len() as u64).to_le_bytes(), header.as_slice(), &self.weights].concat()
    }
}

/// Of the JSON after the length.
pub fn header_len(bytes: &[u8]) -> usize {
    u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

/// Opens a folder and uses everything in it; a panic is what the tests look for.
pub fn use_all(path: &Path) -> Result<(), CheckpointError> {
    let checkpoint = Checkpoint::open(path)?;
    for name in checkpoint.tensors().names() {
        let tensor = checkpoint.tensor(name)?;
        let mut row = vec![0.0; tensor.cols];
        tensor.dequantize_row(tensor.rows - 1, &mut row);
    }
    checkpoint.content_hash();
    if let Ok(template) = checkpoint.chat_template() {
        let _ = template.render(&[ChatMessage::new("user", "hi")], true);
    }
    if let Ok(tokenizer) = checkpoint.tokenizer() {
        let tokens = tokenizer.encode("ab <s> \u{7} 12  é🦀", true)?;
        tokenizer.decode(&tokens, false);
    }
    Ok(())
}

/// Panics unless the changed folder is refused with that message.
#[track_caller]
pub fn assert_refused(model: &str, change: impl FnOnce(&mut ModelFolder), message: &str) {
    let mut folder = ModelFolder::of(model);
    change(&mut folder);
    let refusal = folder.refusal();
    assert!(refusal.contains(message), "{refusal}");
}
