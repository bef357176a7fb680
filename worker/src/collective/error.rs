//! Why a collective, or setting one up, failed.

use std::io;

use super::Transport;

/// Why a collective, or setting one up, failed. Nothing that was written to an output buffer may be used.
#[derive(Debug, thiserror::Error)]
pub enum CollectiveError {
    /// Somebody used the abort handle.
    #[error("collective aborted")]
    Aborted,
    /// An earlier call failed; the epoch is over.
    #[error("collective is dead: an earlier call failed")]
    Dead,
    /// These ranks did not enter in time.
    #[error("collective deadline exceeded after {waited_ms} ms: ranks {missing:?} did not enter")]
    DeadlineExceeded { missing: Vec<usize>, waited_ms: u64 },
    /// The rank let go of its side. Whoever leaves because of another's death also looks gone: take it as a hint.
    #[error("rank {rank} left the collective")]
    PeerGone { rank: usize },
    /// The rank is in another call than we are, or brought another length.
    #[error("rank {rank} is out of step: expected {expected}, found {found}")]
    OutOfStep {
        rank: usize,
        expected: String,
        found: String,
    },
    /// The rank brings more bytes than a gather may carry.
    #[error("rank {rank} brings {found_bytes} bytes to a gather of at most {limit_bytes} bytes")]
    GatherTooLong {
        rank: usize,
        found_bytes: u64,
        limit_bytes: usize,
    },
    /// The rank at that endpoint does not belong to this epoch, or its place is taken.
    #[error("rank {rank} refused: {reason}")]
    Refused { rank: usize, reason: String },
    #[error("endpoint {endpoint:?} of rank {rank} is not one of {transport}")]
    BadEndpoint {
        rank: usize,
        endpoint: String,
        transport: Transport,
    },
    #[error("rank {rank} of {world_size} is no seat: {reason}")]
    BadSeat {
        rank: usize,
        world_size: usize,
        reason: String,
    },
    #[error("{action}: {source}")]
    Io { action: &'static str, source: io::Error },
}

impl CollectiveError {
    pub(super) fn io(action: &'static str) -> impl Fn(io::Error) -> CollectiveError {
        move |source| CollectiveError::Io { action, source }
    }

    pub(super) fn errno(action: &'static str) -> impl Fn(rustix::io::Errno) -> CollectiveError {
        move |errno| CollectiveError::Io {
            action,
            source: errno.into(),
        }
    }
}
