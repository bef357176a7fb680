//! A model as Hugging Face's folders hold it: config.json, safetensors files, and the tokenizer's files.
//!
//! Weights are in model.safetensors, or in the files that model.safetensors.index.json names.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Component, Path},
};

use serde::Deserialize;

use crate::{
    CheckpointError, TokenRoles, TokenizerFiles,
    config_json::ConfigJson,
    mapped::MappedFile,
    tensor_directory::TensorDirectory,
    tokenizer_files::{in_file, read_file},
};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The largest models have some two hundred.
const SHARDS_MAX: usize = 4096;

pub(crate) struct SafetensorsFolder {
    pub config: ConfigJson,
    config_bytes: Vec<u8>,
    /// `None` without a tokenizer.json.
    texts: Option<TokenizerFiles>,
}

#[derive(Deserialize)]
struct Index {
    /// The file of each tensor.
    weight_map: BTreeMap<String, String>,
}

impl SafetensorsFolder {
    /// Reads all but the weights, which are mapped.
    pub(crate) fn open(path: &Path) -> Result<(Self, Vec<MappedFile>, TensorDirectory), CheckpointError> {
        let config_bytes = read_file(path, CONFIG)?.ok_or_else(|| CheckpointError::MissingFile {
            file: CONFIG.to_owned(),
            hint: ": a model is a GGUF file, or a folder with config.json and safetensors files",
        })?;
        let (files, directory) = open_weights(path)?;
        let folder = Self {
            config: ConfigJson::parse(&config_bytes)?,
            config_bytes,
            texts: TokenizerFiles::read(path)?,
        };
        Ok((folder, files, directory))
    }

    /// The tokenizer's files. Errors if there is no tokenizer.json.
    pub(crate) fn texts(&self) -> Result<&TokenizerFiles, CheckpointError> {
        self.texts.as_ref().ok_or_else(|| CheckpointError::MissingFile {
            file: "tokenizer.json".to_owned(),
            hint: "",
        })
    }

    /// Empty without a tokenizer.json.
    pub(crate) fn token_roles(&self, vocab_size: u32) -> Result<TokenRoles, CheckpointError> {
        match &self.texts {
            Some(texts) => Ok(TokenRoles::from_files(texts, vocab_size)?),
            None => Ok(TokenRoles::default()),
        }
    }

    /// Over everything but the weights.
    pub(crate) fn hash(&self, hasher: &mut blake3::Hasher) {
        hasher.update(&(self.config_bytes.len() as u64).to_le_bytes());
        hasher.update(&self.config_bytes);
        if let Some(texts) = &self.texts {
            texts.hash(hasher);
        }
    }
}

fn open_weights(path: &Path) -> Result<(Vec<MappedFile>, TensorDirectory), CheckpointError> {
    let index = read_file(path, INDEX)?.map(|bytes| parse_index(&bytes)).transpose()?;
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
