//! An open GGUF file of a llama model, mapped and checked.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use crate::{
    ChatTemplate, ChatTemplateError, CheckpointError, LlamaTensors, Metadata, ModelSpec, TensorView, Tokenizer,
    cursor::Cursor, llama, mapped::MappedFile, metadata_entries::Entries, spec::TensorFacts,
    tensor_directory::TensorDirectory,
};

const ALIGNMENT_DEFAULT: u32 = 32;
/// Shown when a file is not GGUF.
const MAGIC: &[u8; 4] = b"GGUF";

/// Can be shared between threads; holds the mapping, not a copy.
pub struct Checkpoint {
    path: PathBuf,
    file: MappedFile,
    entries: Entries,
    directory: TensorDirectory,
    spec: ModelSpec,
    tensors: LlamaTensors,
    content_hash: OnceLock<[u8; 32]>,
}

impl Checkpoint {
    /// Reads the header; the weights stay on disk until someone looks at them. The file must not be changed in place
    /// while it is open; replacing it by rename is fine.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref().to_path_buf();
        let file = MappedFile::open(&path).map_err(|source| CheckpointError::Open {
            path: path.clone(),
            source,
        })?;
        let (entries, directory) = parse_header(&file)?;
        let metadata = Metadata::new(&file, &entries);
        check_architecture(&metadata)?;
        let spec = ModelSpec::parse(&metadata, &tensor_facts(&directory)?)?;
        let tensors = LlamaTensors::new(&spec, &directory)?;
        Ok(Self {
            path,
            file,
            entries,
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
    pub fn tensors(&self) -> &LlamaTensors {
        &self.tensors
    }

    /// Cannot fail for the names in `tensors`.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, CheckpointError> {
        self.directory
            .view(&self.file, name)
            .ok_or_else(|| CheckpointError::NoSuchTensor {
                tensor: name.to_owned(),
            })
    }

    pub fn metadata(&self) -> Metadata<'_> {
        Metadata::new(&self.file, &self.entries)
    }

    /// BLAKE3 of the whole file. The first call reads all of it (50 ms per 100 MB from the page cache).
    pub fn content_hash(&self) -> [u8; 32] {
        *self.content_hash.get_or_init(|| blake3::hash(&self.file).into())
    }

    /// Builds the tokenizer of the file; keep it, it takes tens of milliseconds.
    pub fn tokenizer(&self) -> Result<Tokenizer, CheckpointError> {
        Tokenizer::from_metadata(&self.metadata(), &self.spec)
    }

    /// Compiles the chat template of the file. Errors if it has none.
    pub fn chat_template(&self) -> Result<ChatTemplate, CheckpointError> {
        let source = self
            .metadata()
            .str("tokenizer.chat_template")?
            .ok_or(ChatTemplateError::Missing)?;
        let token_text = |token| self.token_text(token);
        let bos_token = self.spec.bos_token.map_or(Ok(String::new()), token_text)?;
        let eos_token = self.spec.eos_token.map_or(Ok(String::new()), token_text)?;
        Ok(ChatTemplate::new(source, &bos_token, &eos_token)?)
    }

    fn token_text(&self, token: kvasir_kv::TokenId) -> Result<String, CheckpointError> {
        let key = "tokenizer.ggml.tokens";
        let missing = || CheckpointError::MissingKey { key: key.to_owned() };
        let bytes = self
            .metadata()
            .strings(key)?
            .and_then(|mut tokens| tokens.nth(token.0 as usize));
        Ok(String::from_utf8_lossy(bytes.ok_or_else(missing)?).into_owned())
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("path", &self.path)
            .field("spec", &self.spec)
            .finish_non_exhaustive()
    }
}

fn parse_header(file: &[u8]) -> Result<(Entries, TensorDirectory), CheckpointError> {
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
    Ok((entries, directory))
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
        let expected = "a power of two, 8 or more".to_owned();
        return Err(CheckpointError::BadValue {
            key: key.to_owned(),
            value: alignment.to_string(),
            expected,
        });
    }
    Ok(alignment)
}

fn check_architecture(metadata: &Metadata<'_>) -> Result<(), CheckpointError> {
    let key = "general.architecture";
    match metadata.str(key)? {
        Some("llama") => Ok(()),
        Some(name) => Err(CheckpointError::Architecture { name: name.to_owned() }),
        None => Err(CheckpointError::MissingKey { key: key.to_owned() }),
    }
}

fn tensor_facts(directory: &TensorDirectory) -> Result<TensorFacts, CheckpointError> {
    let tensor = llama::TOKEN_EMBEDDING;
    let (rows, cols) = directory
        .shape(tensor)
        .ok_or_else(|| CheckpointError::NoSuchTensor { tensor: tensor.into() })?;
    let vocab_size = u32::try_from(rows).map_err(|_| CheckpointError::Dimensions {
        tensor: tensor.into(),
        dimensions: vec![cols, rows],
    })?;
    Ok(TensorFacts {
        vocab_size,
        tied_head: !directory.contains(llama::OUTPUT),
    })
}
