//! The books of the KV cache and of the model's cut into units: pure, synchronous, deterministic.
//!
//! Nothing here knows of async, clocks, tensors, I/O or randomness, and nothing iterates a hash map.

pub mod ids;

pub use ids::*;
