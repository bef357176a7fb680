//! The wire: generated code for the .proto files, and conversions to and from domain types.
//!
//! Everything that arrives is parsed here into a domain type or refused with the field's name; nothing behind this
//! crate sees an unchecked message.

#[allow(clippy::all, missing_docs, missing_debug_implementations)]
mod generated {
    include!("generated/kvasir.v1.rs");
}

#[allow(clippy::all, missing_docs, missing_debug_implementations)]
mod generated_inference {
    include!("generated/inference.rs");
}

pub mod convert;

/// The messages and services of package `kvasir.v1`.
pub mod v1 {
    pub use super::generated::*;
}

/// The messages and services of package `inference`: the Open Inference Protocol.
pub mod inference {
    pub use super::generated_inference::*;
}

/// The serialized descriptor set of both, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/descriptors.bin");

/// Raised when `Cluster.Join` changes in a way that old peers would misread.
pub const CLUSTER_PROTOCOL_VERSION: u32 = 4;
