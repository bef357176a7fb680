//! The arithmetic: the same bits for any split of the work, any batch and any instruction set.
//!
//! [`mod@reference`] is the definition, scalar and plain. Every kernel is written once, over the sixteen lanes of `simd::Simd`,
//! and runs on portable code, AVX2 or AVX-512; tests compare each with the definition bit for bit.
//! A sum over columns is a chain in column order, one chain per lane, and lanes are output rows: neither the number of tokens
//! in a step nor the share of rows a thread takes can change it. Sums over units are made in integers.
//!
//! Shapes. Activations lie in *panels*, `[cols / 16][tokens][16]`; for one token that is plain column order. What a thread
//! computes for a range of row groups (16 rows) is therefore one contiguous slice.
//!
//! What is absent here: threads, ranks, models. Callers split the work; these functions run on the caller's thread.

// Kernels index arrays of registers in loops of constant bounds: these unroll, and closures would not be compiled for the
// instruction set of their caller.
#![allow(clippy::needless_range_loop)]

pub mod attend;
mod attend_tiles;
mod cell_element;
mod element;
mod elementwise;
mod exp;
pub mod fixed;
mod float_tile;
pub mod huge;
pub mod int8_rows;
mod int8_tile;
pub mod isa;
mod k_tile;
pub mod kv_view;
mod matmul;
mod packed_format;
pub mod packed_matrix;
pub mod panel_source;
pub mod panels;
mod portable;
mod quants;
pub mod reference;
mod rms_norm;
pub mod rope;
mod simd;
#[cfg(test)]
pub(crate) mod tests;
pub mod vocab;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use attend::{AttendScratch, AttendedChunks};
pub use huge::{HugeBuffer, WeightArena};
pub use int8_rows::{Int8Part, Int8Rows};
pub use isa::{Isa, Kernels};
pub use kv_view::KvView;
pub use matmul::{ActivationsRef, UnitColumns};
pub use packed_matrix::PackedMatrix;
pub use panel_source::{Gated, GatedPanel, HeadRows, Normed, PanelSource};
pub use reference::ATTENTION_CHUNK;
pub use rope::{RopeTable, rope_frequencies};
pub use vocab::UnitSummary;

/// Bumped when any result of this module changes by a bit.
pub use kvasir_model::NUMERICS_VERSION;

/// Rows of a row group, lanes of a vector, columns of a panel.
pub const LANES: usize = 16;
/// Columns that share a scale: quantized weights and activations are cut so.
pub const SUB_BLOCK: usize = 32;
