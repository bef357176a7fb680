//! Collectives on CPU: the exact all-reduce and the all-gather that join the ranks of a TP group.
//!
//! Guarantees:
//! - *The same bits for any world size and any transport.* Sums are added in `i64`, where grouping does not
//!   matter, and rounded to `f32` once.
//! - *Nothing waits for ever.* Every call has a deadline and can be aborted from another thread; a call that fails
//!   leaves a collective that refuses every later call.
//! - *Nothing is shared between epochs.* Segments and connections are new per epoch: a rank that wakes up in an old
//!   epoch writes where nobody reads.
//!
//! It does not detect a killed peer through shared memory (the deadline, or an abort by whoever noticed, ends the
//! wait), and it does not retry: a group whose collective failed starts its next epoch.
//!
//! Setting up takes two steps, because somebody else carries the addresses between the ranks:
//! [`Listening::prepare`] gives an [`Endpoint`], [`Listening::connect`] takes those of all ranks.

mod abort;
mod arrival;
mod content;
mod endpoint;
mod error;
mod exchange;
mod frame;
mod handshake;
mod link;
mod listening;
mod member;
mod patience;
mod rounding;
mod segment;
mod shared_memory;
mod shared_memory_wire;
mod solo_wire;
mod tcp_wire;
#[cfg(test)]
mod tests;
mod transport;

pub use abort::Abort;
pub use endpoint::Endpoint;
pub(crate) use endpoint::SegmentFile;
pub use error::CollectiveError;
pub use listening::{EpochNonce, Listening, Seat, Terms};
pub use rounding::round_sums;
pub use transport::Transport;

/// The most ranks that one group may have: bounds the shared segment and what a stranger can make us allocate.
pub const WORLD_SIZE_MAX: usize = 256;

/// The most bytes that one rank may bring to an all-gather.
pub const GATHER_BYTES_MAX: usize = 64 << 20;

/// One epoch's connection of a rank to its peers. New per epoch, never reused.
///
/// All ranks make the same calls in the same order. After an error the collective is dead: later calls return
/// [`CollectiveError::Aborted`] or [`CollectiveError::Dead`] at once.
pub trait Collective: Send + std::fmt::Debug {
    /// Ranks in the group.
    fn world_size(&self) -> usize;

    /// The place of this rank, from 0.
    fn rank(&self) -> usize;

    /// What carries the bytes.
    fn transport(&self) -> Transport;

    /// Exact sum over ranks, element by element (wrapping `i64` addition), then `((sum as f64) * 2^-30) as f32`.
    /// Every rank gets all of `out`. Any length, the same on all ranks; it is worked off in pieces.
    ///
    /// sums: `[len]`, out: `[len]`. Waits at most the call's deadline.
    ///
    /// # Panics
    /// If `sums` and `out` differ in length.
    fn all_reduce(&mut self, sums: &[i64], out: &mut [f32]) -> Result<(), CollectiveError>;

    /// Every rank's bytes, in rank order; lengths may differ, up to [`GATHER_BYTES_MAX`] each. `gathered` becomes
    /// one entry per rank, and its buffers are reused. Waits at most the call's deadline.
    fn all_gather(&mut self, mine: &[u8], gathered: &mut Vec<Vec<u8>>) -> Result<(), CollectiveError>;
}
