//! The books of the KV cache and of the model's cut into units: pure, synchronous, deterministic.
//!
//! Nothing here knows of async, clocks, tensors, I/O or randomness, and nothing iterates a hash map.

pub mod block_pool;
pub mod cell;
pub mod control;
pub mod head_layout;
pub mod ids;
pub mod kv_dtype;
pub mod prefix_cache;
pub mod request;
pub mod shard_plan;
pub mod step;
pub mod transfer;
pub mod units;

pub use block_pool::*;
pub use cell::*;
pub use control::*;
pub use head_layout::*;
pub use ids::*;
pub use kv_dtype::*;
pub use prefix_cache::*;
pub use request::*;
pub use shard_plan::*;
pub use step::*;
pub use transfer::*;
pub use units::*;
