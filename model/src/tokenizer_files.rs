//! The files of a model's folder that say how text becomes tokens, and what the tokens mean.

use std::{fs, io, path::Path};

use serde::Deserialize;
use serde_json::Value;

use crate::{CheckpointError, TokenizerError};

/// Their bytes; absent ones are `None`. Nothing is parsed yet.
#[derive(Clone, Default, Debug)]
pub struct TokenizerFiles {
    pub tokenizer: Vec<u8>,
    pub tokenizer_config: Option<Vec<u8>>,
    pub special_tokens_map: Option<Vec<u8>>,
    pub config: Option<Vec<u8>>,
    pub generation_config: Option<Vec<u8>>,
    pub chat_template_jinja: Option<Vec<u8>>,
    pub chat_template_json: Option<Vec<u8>>,
}

impl TokenizerFiles {
    /// Errors if there is no tokenizer.json, or a file that is there cannot be read.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let file = |name| optional(&folder.as_ref().join(name));
        let path = folder.as_ref().join("tokenizer.json");
        let tokenizer = fs::read(&path).map_err(|source| CheckpointError::Open { path, source })?;
        Ok(Self {
            tokenizer,
            tokenizer_config: file("tokenizer_config.json")?,
            special_tokens_map: file("special_tokens_map.json")?,
            config: file("config.json")?,
            generation_config: file("generation_config.json")?,
            chat_template_jinja: file("chat_template.jinja")?,
            chat_template_json: file("chat_template.json")?,
        })
    }

    /// The text of a special token (`bos_token`, `eos_token`), which may be written in two files in two ways.
    pub(crate) fn special_text(&self, role: &str) -> Result<Option<String>, TokenizerError> {
        let config = parse("tokenizer_config.json", self.tokenizer_config.as_deref())?;
        let map = parse("special_tokens_map.json", self.special_tokens_map.as_deref())?;
        // A null in the first file says that there is none.
        let value = config.get(role).or_else(|| map.get(role));
        Ok(value
            .and_then(|value| value.as_str().or_else(|| value.get("content")?.as_str()))
            .map(str::to_owned))
    }
}

fn optional(path: &Path) -> Result<Option<Vec<u8>>, CheckpointError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CheckpointError::Open {
            path: path.to_path_buf(),
            source,
        }),
    }
}

/// `Value::Null` for a file that is not there.
pub(crate) fn parse(file: &'static str, bytes: Option<&[u8]>) -> Result<Value, TokenizerError> {
    bytes.map_or(Ok(Value::Null), |bytes| from_json(file, bytes))
}

pub(crate) fn from_json<'b, T: Deserialize<'b>>(file: &'static str, bytes: &'b [u8]) -> Result<T, TokenizerError> {
    serde_json::from_slice(bytes).map_err(|source| TokenizerError::Json {
        file,
        reason: source.to_string(),
    })
}
