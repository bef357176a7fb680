//! What a coordinator shows of itself: plain data, a snapshot.

use kvasir_kv::{
    BlockCounts, Epoch, GroupId, LoadReport, Progress, Rank, RankShare, RequestId, SequenceId, Transport, WorkerId,
};

use crate::SessionId;

#[derive(Clone, PartialEq, Debug, Default)]
pub struct ClusterStatus {
    pub groups: Vec<GroupStatus>,
    /// All live workers, spares included, in join order.
    pub workers: Vec<WorkerStatus>,
    /// Oldest first.
    pub sequences: Vec<SequenceStatus>,
    pub counters: Counters,
}

impl ClusterStatus {
    /// True if a group serves.
    pub fn is_ready(&self) -> bool {
        self.groups.iter().any(|group| group.phase == GroupPhase::Running)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum GroupPhase {
    /// Too few workers, or none that fit.
    #[default]
    Waiting,
    Forming,
    Connecting,
    Running,
}

impl GroupPhase {
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Forming => "forming",
            Self::Connecting => "connecting",
            Self::Running => "running",
        }
    }
}

#[derive(Clone, PartialEq, Debug, Default)]
pub struct GroupStatus {
    pub id: GroupId,
    pub epoch: Epoch,
    pub phase: GroupPhase,
    pub transport: Transport,
    pub ranks: Vec<RankStatus>,
    pub blocks: BlockCounts,
    pub block_size: u32,
    pub steps_outstanding: u32,
    pub usual_step_ms: f64,
    /// Why no group forms, with the numbers.
    pub cause: Option<String>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct RankStatus {
    pub rank: Rank,
    pub worker: WorkerId,
    pub pid: u32,
    pub address: String,
    pub share: RankShare,
    /// Bytes of weights of its units.
    pub weight_bytes: u64,
    /// Bytes of KV cells that it holds for the pool.
    pub cell_bytes: u64,
    pub load: Option<LoadReport>,
    pub progress: Progress,
}

#[derive(Clone, PartialEq, Debug)]
pub struct WorkerStatus {
    pub session: SessionId,
    pub worker: WorkerId,
    pub pid: u32,
    pub address: String,
    pub host: String,
    pub backend: String,
    pub threads: u32,
    pub kv_memory_bytes: u64,
    /// `None` for a spare.
    pub rank: Option<Rank>,
    /// Failures that it reported since it last completed a step.
    pub strikes: u32,
    pub silent_ms: u64,
}

#[derive(Clone, PartialEq, Debug)]
pub struct SequenceStatus {
    pub sequence: SequenceId,
    pub request: RequestId,
    /// `None` while it waits.
    pub group: Option<GroupId>,
    /// Prompt and answer.
    pub tokens: u32,
    /// Positions in plans sent.
    pub computed: u32,
    pub blocks: u32,
}

/// Since the coordinator's start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    pub epochs: u64,
    pub steps: u64,
    pub submitted: u64,
    pub finished: u64,
    pub failed: u64,
    pub prompt_tokens: u64,
    pub generation_tokens: u64,
    pub preemptions: u64,
    pub ranks_lost: u64,
    pub recoveries: u64,
    /// Tokens of sequences at admission, re-admission after preemption or loss included, and those of them that the
    /// prefix cache had.
    pub prefix_queries_tokens: u64,
    pub prefix_hits_tokens: u64,
    /// Cached blocks forgotten because their room was needed.
    pub evictions: u64,
    /// Cached cells that were not what had been computed into them; their epoch ended before they were used.
    pub cells_corrupt: u64,
    /// Positions computed again, after preemption or loss.
    pub tokens_recomputed: u64,
    /// Sampled for sequences that had ended.
    pub tokens_discarded: u64,
    /// Messages of closed sessions and old epochs.
    pub messages_stale: u64,
    pub workers_refused: u64,
}
