//! The hands: one process, one rank, one device. Arithmetic, KV cells, collectives and the sampler.
//!
//! This crate alone does tensor arithmetic. It knows no requests and no clients, and never imports the coordinator.

/// Whether this build can compute on NVIDIA GPUs.
pub const HAS_CUDA: bool = cfg!(feature = "cuda");
/// Whether its GPUs can add among themselves.
pub const HAS_NCCL: bool = cfg!(feature = "nccl");

mod acknowledgements;
pub mod arith;
pub mod backend;
pub mod canonical;
pub mod cells;
pub mod collective;
mod constrained;
mod draw;
pub mod followed;
pub mod gpu;
mod open_backend;
pub mod oracle;
mod prepared_epoch;
pub mod rank;
pub mod rank_books;
mod rank_control;
mod rank_meter;
pub mod rank_threads;
mod running_epoch;
pub mod sampler;
pub mod scorer;
pub mod session;
mod shares;
pub mod threads;
pub mod transfer;
pub mod weights;

pub use open_backend::{BackendConfig, open_backend};
