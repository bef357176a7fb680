//! A model as Hugging Face's folders hold it: config.json, safetensors files, and the tokenizer's files.
//!
//! Weights are in model.safetensors, or in the files that model.safetensors.index.json names.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read},
    path::{Component, Path},
};

use serde::Deserialize;

use crate::{CheckpointError, config_json::ConfigJson, mapped::MappedFile, tensor_directory::TensorDirectory};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// What the tokenizer and the chat template are made of, as far as a folder has it.
const TEXT_FILES: [&str; 6] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
];
/// Large tokenizers have 30 MB.
const JSON_BYTES_MAX: u64 = 256 << 20;
/// The largest models have some two hundred.
const SHARDS_MAX: usize = 4096;

pub(crate) struct SafetensorsFolder {
    pub config: ConfigJson,
    config_bytes: Vec<u8>,
    /// Those of `TEXT_FILES` that are there, by name.
    texts: BTreeMap<&'static str, Vec<u8>>,
}

#[derive(Deserialize)]
struct Index {
    /// The file of each tensor.
    weight_map: BTreeMap<String, String>,
}

impl SafetensorsFolder {
    /// Reads all but the weights, which are mapped.
    pub(crate) fn open(path: &Path) -> Result<(Self, Vec<MappedFile>, TensorDirectory), CheckpointError> {
        let config_bytes = read(path, CONFIG)?.ok_or_else(|| CheckpointError::MissingFile {
            file: CONFIG.to_owned(),
            hint: ": a model is a GGUF file, or a folder with config.json and safetensors files",
        })?;
        let mut texts = BTreeMap::new();
        for name in TEXT_FILES {
            if let Some(text) = read(path, name)? {
                texts.insert(name, text);
            }
        }
        let (files, directory) = open_weights(path)?;
        let folder = Self {
            config: ConfigJson::parse(&config_bytes)?,
            config_bytes,
            texts,
        };
        Ok((folder, files, directory))
    }

    /// One of the tokenizer's files.
    pub(crate) fn text(&self, name: &str) -> Option<&[u8]> {
        self.texts.get(name).map(Vec::as_slice)
    }

    /// Over everything but the weights.
    pub(crate) fn hash(&self, hasher: &mut blake3::Hasher) {
        let config = std::iter::once((CONFIG, &self.config_bytes));
        for (name, bytes) in config.chain(self.texts.iter().map(|(name, bytes)| (*name, bytes))) {
            hasher.update(name.as_bytes());
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        }
    }
}

fn open_weights(path: &Path) -> Result<(Vec<MappedFile>, TensorDirectory), CheckpointError> {
    let index = read(path, INDEX)?.map(|bytes| parse_index(&bytes)).transpose()?;
    let names = match &index {
        Some(index) => index.weight_map.values().cloned().collect::<BTreeSet<_>>(),
        None => BTreeSet::from([WEIGHTS.to_owned()]),
    };
    let (mut files, mut directory) = (Vec::new(), TensorDirectory::default());
    for name in &names {
        let file = open_shard(path, name)?;
        directory
            .add_safetensors(files.len(), &file)
            .map_err(|source| in_file(name, source))?;
        files.push(file);
    }
    if let Some(index) = index {
        let names: Vec<&String> = names.iter().collect();
        check_index(&index, &names, &directory)?;
    }
    Ok((files, directory))
}

fn parse_index(bytes: &[u8]) -> Result<Index, CheckpointError> {
    let index: Index = serde_json::from_slice(bytes).map_err(|source| CheckpointError::Json {
        file: INDEX.to_owned(),
        source,
    })?;
    let names: BTreeSet<&String> = index.weight_map.values().collect();
    if names.is_empty() || names.len() > SHARDS_MAX {
        return Err(crate::facts::bad_value(
            "weight_map",
            format!("a map to {} files", names.len()),
            format!("1 to {SHARDS_MAX} files"),
        ));
    }
    // A name with a path in it would leave the folder.
    let leaves = |name: &&&String| {
        !matches!(
            Path::new(name).components().collect::<Vec<_>>()[..],
            [Component::Normal(_)]
        )
    };
    match names.iter().find(leaves) {
        Some(name) => Err(crate::facts::bad_value(
            "weight_map",
            format!("{name:?}"),
            "the name of a file in the same folder",
        )),
        None => Ok(index),
    }
}

/// Every tensor is in the file that the index says, so that a mixture of two downloads is found.
fn check_index(index: &Index, names: &[&String], directory: &TensorDirectory) -> Result<(), CheckpointError> {
    for (tensor, expected) in &index.weight_map {
        match directory.file(tensor) {
            None => {
                return Err(CheckpointError::NoSuchTensor { tensor: tensor.clone() });
            }
            Some(found) if names[found] != expected => {
                return Err(CheckpointError::WrongShard {
                    tensor: tensor.clone(),
                    found: names[found].clone(),
                    expected: expected.clone(),
                });
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn open_shard(folder: &Path, name: &str) -> Result<MappedFile, CheckpointError> {
    let path = folder.join(name);
    MappedFile::open(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => CheckpointError::MissingFile {
            file: name.to_owned(),
            hint: " (is the download complete?)",
        },
        _ => in_file(name, CheckpointError::Open { path, source }),
    })
}

/// A small file as a whole; `None` if there is none.
fn read(folder: &Path, name: &str) -> Result<Option<Vec<u8>>, CheckpointError> {
    let path = folder.join(name);
    let open = |source| {
        in_file(
            name,
            CheckpointError::Open {
                path: path.clone(),
                source,
            },
        )
    };
    // Asked before opening: opening a pipe without a writer waits for ever.
    match std::fs::metadata(&path) {
        Ok(metadata) if !metadata.is_file() => {
            return Err(open(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(open)?,
    };
    let mut bytes = Vec::new();
    let mut file = File::open(&path).map_err(open)?.take(JSON_BYTES_MAX + 1);
    file.read_to_end(&mut bytes).map_err(open)?;
    if bytes.len() as u64 > JSON_BYTES_MAX {
        return Err(CheckpointError::FileTooLong {
            file: name.to_owned(),
            bytes: bytes.len() as u64,
            bytes_max: JSON_BYTES_MAX,
        });
    }
    Ok(Some(bytes))
}

fn in_file(file: &str, source: CheckpointError) -> CheckpointError {
    CheckpointError::InFile {
        file: file.to_owned(),
        source: Box::new(source),
    }
}
