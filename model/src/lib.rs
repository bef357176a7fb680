//! The checkpoint: a GGUF file or a safetensors folder as a `ModelSpec`, weight views, a tokenizer and a chat template.
//!
//! Files are mapped, checked once when opened, and then cannot fail: whoever holds a `Checkpoint` has every tensor
//! of its architecture with the right shape. A malformed or hostile file is an error that names what is wrong, never
//! a panic and never an allocation larger than the file justifies. There is no tensor arithmetic here beyond
//! `dequantize`, and no network.

#![deny(unsafe_code)]

mod architecture;
mod byte_level;
mod byte_pairs;
pub mod chat_template;
pub mod checkpoint;
mod config_json;
pub mod constraints;
mod cursor;
pub mod dequantize;
pub mod detokenizer;
mod encoder;
pub mod error;
mod facts;
mod gguf_file;
mod gguf_spec;
mod gguf_tokenizer;
mod json_pipeline;
#[allow(unsafe_code)]
mod mapped;
pub mod metadata;
mod metadata_entries;
mod normalizer;
pub mod numerics;
mod pre_tokenizer;
mod python_json;
pub mod quantize;
mod rope_scaling;
mod safetensors_folder;
mod sentence_pieces;
pub mod spec;
mod special_tokens;
pub mod sub_block;
mod template_date;
mod template_guard;
pub mod tensor_directory;
pub mod tensor_view;
pub mod tensors;
pub mod token_roles;
pub mod tokenizer;
mod tokenizer_error;
pub mod tokenizer_files;
mod tokenizer_json;
pub mod unit_layout;
mod vocabulary;
pub mod weight_type;
mod word_splitter;

pub use architecture::{Architecture, Presence, RotatedPairs};
pub use chat_template::{ChatMessage, ChatTemplate, ChatTemplateError};
pub use checkpoint::Checkpoint;
pub use constraints::{ConstraintError, Constraints, Followed, TokenMask};
pub use dequantize::{dequantize, dequantize_columns};
pub use detokenizer::IncrementalDetokenizer;
pub use error::CheckpointError;
pub use metadata::{Metadata, MetadataArray, MetadataValue};
pub use numerics::{BackendKind, NUMERICS_VERSION, UnknownName, WeightMode, numerics_id};
pub use quantize::quantize;
pub use spec::ModelSpec;
pub use sub_block::SubBlock;
pub use tensor_view::TensorView;
pub use tensors::{LayerBiases, LayerTensors, ModelTensors};
pub use token_roles::TokenRoles;
pub use tokenizer::Tokenizer;
pub use tokenizer_error::TokenizerError;
pub use tokenizer_files::TokenizerFiles;
pub use weight_type::WeightType;
