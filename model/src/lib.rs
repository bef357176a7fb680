//! The checkpoint: a GGUF file or a safetensors folder as a `ModelSpec`, weight views, a tokenizer and a chat template.
//!
//! Files are mapped, checked once when opened, and then cannot fail: whoever holds a `Checkpoint` has every tensor
//! of its architecture with the right shape. A malformed or hostile file is an error that names what is wrong, never
//! a panic and never an allocation larger than the file justifies. There is no tensor arithmetic here beyond
//! `dequantize`, and no network.

#![deny(unsafe_code)]

mod architecture;
mod byte_level;
pub mod chat_template;
pub mod checkpoint;
mod config_json;
mod cursor;
pub mod dequantize;
pub mod detokenizer;
pub mod error;
mod facts;
mod gguf_file;
mod gguf_spec;
mod long_runs;
#[allow(unsafe_code)]
mod mapped;
pub mod metadata;
mod metadata_entries;
pub mod numerics;
pub mod quantize;
mod rope_scaling;
mod safetensors_folder;
pub mod spec;
mod special_tokens;
pub mod sub_block;
pub mod tensor_directory;
pub mod tensor_view;
pub mod tensors;
pub mod tokenizer;
pub mod unit_layout;
pub mod weight_type;

pub use architecture::{Architecture, Presence, RotatedPairs};
pub use chat_template::{ChatMessage, ChatTemplate, ChatTemplateError};
pub use checkpoint::Checkpoint;
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
pub use tokenizer::{Tokenizer, TokenizerError};
pub use weight_type::WeightType;
