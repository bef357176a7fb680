//! The checkpoint: a GGUF file as a `ModelSpec`, weight views, a tokenizer and a chat template.
//!
//! Files are mapped, checked once when opened, and then cannot fail: whoever holds a `Checkpoint` has every tensor
//! of its architecture with the right shape. A malformed or hostile file is an error that names what is wrong, never
//! a panic and never an allocation larger than the file justifies. There is no tensor arithmetic here beyond
//! `dequantize`, and no network.

#![deny(unsafe_code)]

mod byte_level;
mod byte_pairs;
pub mod chat_template;
pub mod checkpoint;
mod cursor;
pub mod dequantize;
pub mod detokenizer;
mod encoder;
pub mod error;
mod gguf_tokenizer;
mod json_pipeline;
pub mod llama;
#[allow(unsafe_code)]
mod mapped;
pub mod metadata;
mod metadata_entries;
mod normalizer;
pub mod numerics;
mod pre_tokenizer;
mod python_json;
mod sentence_pieces;
pub mod spec;
mod special_tokens;
mod template_date;
mod template_guard;
pub mod tensor_directory;
pub mod tensor_view;
pub mod token_roles;
pub mod tokenizer;
mod tokenizer_error;
pub mod tokenizer_files;
mod tokenizer_json;
pub mod unit_layout;
mod vocabulary;
pub mod weight_type;
mod word_splitter;

pub use chat_template::{ChatMessage, ChatTemplate, ChatTemplateError};
pub use checkpoint::Checkpoint;
pub use dequantize::dequantize;
pub use detokenizer::IncrementalDetokenizer;
pub use error::CheckpointError;
pub use llama::{LlamaLayer, LlamaTensors};
pub use metadata::{Metadata, MetadataArray, MetadataValue};
pub use numerics::{BackendKind, NUMERICS_VERSION, UnknownName, WeightMode, numerics_id};
pub use spec::ModelSpec;
pub use tensor_view::TensorView;
pub use token_roles::TokenRoles;
pub use tokenizer::Tokenizer;
pub use tokenizer_error::TokenizerError;
pub use tokenizer_files::TokenizerFiles;
pub use weight_type::WeightType;
