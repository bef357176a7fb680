//! The files of a model's folder that say how text becomes tokens, and what the tokens mean.

use std::{
    fs,
    io::{self, Read},
    path::Path,
};

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

/// Of each file. Large tokenizers have 30 MB.
const FILE_BYTES_MAX: u64 = 256 << 20;

impl TokenizerFiles {
    /// `None` if there is no tokenizer.json. Errors if a file that is there cannot be read.
    pub fn read(folder: impl AsRef<Path>) -> Result<Option<Self>, CheckpointError> {
        let file = |name| read_file(folder.as_ref(), name);
        let Some(tokenizer) = file("tokenizer.json")? else {
            return Ok(None);
        };
        Ok(Some(Self {
            tokenizer,
            tokenizer_config: file("tokenizer_config.json")?,
            special_tokens_map: file("special_tokens_map.json")?,
            config: file("config.json")?,
            generation_config: file("generation_config.json")?,
            chat_template_jinja: file("chat_template.jinja")?,
            chat_template_json: file("chat_template.json")?,
        }))
    }

    /// Over all files.
    pub(crate) fn hash(&self, hasher: &mut blake3::Hasher) {
        let optional = [
            &self.tokenizer_config,
            &self.special_tokens_map,
            &self.config,
            &self.generation_config,
            &self.chat_template_jinja,
            &self.chat_template_json,
        ];
        for file in std::iter::once(Some(&self.tokenizer)).chain(optional.map(Option::as_ref)) {
            hasher.update(&file.map_or(u64::MAX, |file| file.len() as u64).to_le_bytes());
            hasher.update(file.map_or(&[], |file| file.as_slice()));
        }
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

/// A small file as a whole; `None` if there is none.
pub(crate) fn read_file(folder: &Path, name: &str) -> Result<Option<Vec<u8>>, CheckpointError> {
    let path = folder.join(name);
    let open = |source| {
        let path = path.clone();
        in_file(name, CheckpointError::Open { path, source })
    };
    // Asked before opening: opening a pipe without a writer waits for ever.
    match fs::metadata(&path) {
        Ok(metadata) if !metadata.is_file() => {
            return Err(open(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(open)?,
    };
    let mut bytes = Vec::new();
    let mut file = fs::File::open(&path).map_err(open)?.take(FILE_BYTES_MAX + 1);
    file.read_to_end(&mut bytes).map_err(open)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(CheckpointError::FileTooLong {
            file: name.to_owned(),
            bytes_max: FILE_BYTES_MAX,
        });
    }
    Ok(Some(bytes))
}

pub(crate) fn in_file(file: &str, source: CheckpointError) -> CheckpointError {
    CheckpointError::InFile {
        file: file.to_owned(),
        source: Box::new(source),
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
