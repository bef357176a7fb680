//! An open model, mapped and checked: a GGUF file, or a folder of safetensors files.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use kvasir_kv::TokenId;

use crate::{
    Architecture, ChatTemplate, ChatTemplateError, CheckpointError, Metadata, ModelSpec, ModelTensors, TensorView,
    Tokenizer, config_json,
    facts::{bad_value, missing},
    gguf_file::GgufHeader,
    gguf_spec,
    mapped::MappedFile,
    safetensors_folder::SafetensorsFolder,
    spec::TensorFacts,
    tensor_directory::TensorDirectory,
    tensors::{Naming, ROPE_DIVISORS, check_shape},
};

/// Can be shared between threads; holds the mapping, not a copy.
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<MappedFile>,
    source: Source,
    directory: TensorDirectory,
    spec: ModelSpec,
    tensors: ModelTensors,
    content_hash: OnceLock<[u8; 32]>,
}

/// What there is besides the weights.
enum Source {
    Gguf(GgufHeader),
    Folder(Box<SafetensorsFolder>),
}

impl Checkpoint {
    /// Reads the headers; the weights stay on disk until someone looks at them. The files must not be changed in place
    /// while they are open; replacing them by rename is fine.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        if path.is_dir() {
            Self::open_folder(path)
        } else {
            Self::open_gguf(path)
        }
    }

    fn open_gguf(path: &Path) -> Result<Self, CheckpointError> {
        let file = MappedFile::open(path).map_err(|source| CheckpointError::Open {
            path: path.to_path_buf(),
            source,
        })?;
        let (header, directory) = GgufHeader::parse(&file)?;
        let files = vec![file];
        let metadata = header.metadata(&files[0]);
        let architecture = gguf_spec::architecture(&metadata)?;
        let mut spec = gguf_spec::parse(&metadata, architecture, &tensor_facts(Naming::Gguf, &directory, None)?)?;
        let tensors = ModelTensors::new(&spec, architecture, Naming::Gguf, &directory)?;
        let own_divisors = read_rope_divisors(&spec, &directory, &files)?;
        spec.rope_divisors = gguf_spec::rope_divisors(&metadata, &spec, own_divisors)?;
        Ok(Self {
            path: path.to_path_buf(),
            files,
            source: Source::Gguf(header),
            directory,
            spec,
            tensors,
            content_hash: OnceLock::new(),
        })
    }

    fn open_folder(path: &Path) -> Result<Self, CheckpointError> {
        let (folder, files, directory) = SafetensorsFolder::open(path)?;
        let architecture: &Architecture = config_json::architecture(&folder.config)?;
        let naming = Naming::HuggingFace;
        let facts = tensor_facts(naming, &directory, config_json::tied_head(&folder.config)?)?;
        let mut spec = config_json::parse(
            &folder.config,
            architecture,
            &facts,
            folder.token_roles(facts.vocab_size)?,
        )?;
        let tensors = ModelTensors::new(&spec, architecture, naming, &directory)?;
        spec.rope_divisors = config_json::rope_divisors(&folder.config, &spec)?;
        Ok(Self {
            path: path.to_path_buf(),
            files,
            source: Source::Folder(Box::new(folder)),
            directory,
            spec,
            tensors,
            content_hash: OnceLock::new(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The names of all tensors, by what they are for.
    pub fn tensors(&self) -> &ModelTensors {
        &self.tensors
    }

    /// Takes what was read so far out of this process's memory; it can be read again at any time, from the page cache.
    pub fn let_go(&self) {
        self.files.iter().for_each(MappedFile::let_go);
    }

    /// Cannot fail for the names in `tensors`.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, CheckpointError> {
        let view = self.directory.view(&self.files, name);
        view.ok_or_else(|| no_such_tensor(name))
    }

    /// Of a GGUF file; a folder has none.
    pub fn metadata(&self) -> Option<Metadata<'_>> {
        match &self.source {
            Source::Gguf(header) => Some(header.metadata(&self.files[0])),
            Source::Folder(_) => None,
        }
    }

    /// BLAKE3 of everything that an answer can depend on: the whole GGUF file, or all files of a folder that are used.
    /// The first call reads all of it (50 ms per 100 MB from the page cache).
    pub fn content_hash(&self) -> [u8; 32] {
        *self.content_hash.get_or_init(|| match &self.source {
            Source::Gguf(_) => blake3::hash(&self.files[0]).into(),
            Source::Folder(folder) => {
                let mut hasher = blake3::Hasher::new_derive_key("kvasir safetensors folder");
                folder.hash(&mut hasher);
                for file in &self.files {
                    hasher.update(&(file.len() as u64).to_le_bytes());
                    hasher.update(file);
                }
                hasher.finalize().into()
            }
        })
    }

    /// Builds the tokenizer of the file; keep it, it takes tens of milliseconds.
    pub fn tokenizer(&self) -> Result<Tokenizer, CheckpointError> {
        let folder = match &self.source {
            Source::Gguf(header) => return Tokenizer::from_metadata(&header.metadata(&self.files[0]), &self.spec),
            Source::Folder(folder) => folder,
        };
        let roles = folder.token_roles(self.spec.vocab_size)?;
        let tokenizer = Tokenizer::from_json(&folder.texts()?.tokenizer, &roles)?;
        // Fewer tokens than rows is usual: tables are padded.
        if tokenizer.vocab_size() > self.spec.vocab_size as usize {
            let expected = format!("at most the {} rows of the token embedding", self.spec.vocab_size);
            return Err(bad_value(
                "number of tokens in tokenizer.json",
                tokenizer.vocab_size(),
                expected,
            ));
        }
        Ok(tokenizer)
    }

    /// Compiles the chat template of the file. Errors if it has none.
    pub fn chat_template(&self) -> Result<ChatTemplate, CheckpointError> {
        let metadata = match &self.source {
            Source::Gguf(header) => header.metadata(&self.files[0]),
            Source::Folder(folder) => return Ok(ChatTemplate::from_files(folder.texts()?)?),
        };
        let source = metadata
            .str("tokenizer.chat_template")?
            .ok_or(ChatTemplateError::Missing)?;
        let token_text = |token: Option<TokenId>| token.map_or(Ok(String::new()), |token| token_text(&metadata, token));
        let (bos_token, eos_token) = (token_text(self.spec.bos_token)?, token_text(self.spec.eos_token)?);
        Ok(ChatTemplate::new(source, &bos_token, &eos_token)?)
    }
}

fn token_text(metadata: &Metadata<'_>, token: TokenId) -> Result<String, CheckpointError> {
    let key = "tokenizer.ggml.tokens";
    let tokens = metadata.strings(key)?;
    let text = tokens.and_then(|mut tokens| tokens.nth(token.0 as usize));
    Ok(String::from_utf8_lossy(text.ok_or_else(|| missing(key))?).into_owned())
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("path", &self.path)
            .field("spec", &self.spec)
            .finish_non_exhaustive()
    }
}

/// tied_head: what the checkpoint says of it, if it does.
fn tensor_facts(
    naming: Naming,
    directory: &TensorDirectory,
    tied_head: Option<bool>,
) -> Result<TensorFacts, CheckpointError> {
    let tensor = naming.token_embedding();
    let (rows, cols) = directory.shape(&tensor).ok_or_else(|| no_such_tensor(&tensor))?;
    let vocab_size = u32::try_from(rows).map_err(|_| CheckpointError::Dimensions {
        tensor,
        dimensions: vec![cols, rows],
    })?;
    Ok(TensorFacts {
        vocab_size,
        tied_head: tied_head.unwrap_or_else(|| !directory.contains(&naming.output())),
    })
}

/// Of a GGUF file that has a tensor of them.
fn read_rope_divisors(
    spec: &ModelSpec,
    directory: &TensorDirectory,
    files: &[MappedFile],
) -> Result<Option<Vec<f32>>, CheckpointError> {
    let Some(view) = directory.view(files, ROPE_DIVISORS) else {
        return Ok(None);
    };
    check_shape(directory, ROPE_DIVISORS, 1, spec.rope_dim / 2)?;
    let mut divisors = vec![0.0; view.cols];
    view.dequantize_row(0, &mut divisors);
    Ok(Some(divisors))
}

fn no_such_tensor(name: &str) -> CheckpointError {
    CheckpointError::NoSuchTensor {
        tensor: name.to_owned(),
    }
}
