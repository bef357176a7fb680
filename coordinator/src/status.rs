//! What a coordinator shows of itself: plain data, a snapshot.

use std::time::Duration;

use kvasir_kv::{
    BlockCounts, Epoch, GroupId, LoadReport, Progress, Rank, RankShare, RequestId, SequenceId, TenantId, TransferFault,
    TransferId, Transport, WorkerId,
};

use crate::{GroupRole, SessionId};

#[derive(Clone, PartialEq, Debug, Default)]
pub struct ClusterStatus {
    pub groups: Vec<GroupStatus>,
    /// All live workers, spares included, in join order.
    pub workers: Vec<WorkerStatus>,
    /// Oldest first.
    pub sequences: Vec<SequenceStatus>,
    /// Under way.
    pub transfers: Vec<TransferStatus>,
    pub reshards: Vec<ReshardStatus>,
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
    pub role: GroupRole,
    pub phase: GroupPhase,
    pub transport: Transport,
    pub ranks: Vec<RankStatus>,
    pub blocks: BlockCounts,
    pub block_size: u32,
    pub steps_outstanding: u32,
    pub usual_step_ms: f64,
    /// Ranks that it is to have.
    pub workers_wanted: u32,
    /// Its sequences that run, and those that wait for room in it.
    pub running: u32,
    pub waiting: u32,
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
    pub tenant: TenantId,
    pub priority: i32,
    /// Where it runs, or waits for room.
    pub group: GroupId,
    pub running: bool,
    /// It runs, and no plan has told its ranks yet: it has come from another group, or its first blocks are about to, or the
    /// ranks are new.
    pub arriving: bool,
    /// Prompt and answer.
    pub tokens: u32,
    /// Positions in plans sent.
    pub computed: u32,
    pub blocks: u32,
    /// Prompt tokens that the prefix cache had.
    pub cached: u32,
    pub preemptions: u32,
}

/// A sequence on its way to another group.
#[derive(Clone, PartialEq, Debug)]
pub struct TransferStatus {
    pub transfer: TransferId,
    pub request: RequestId,
    pub source: GroupId,
    pub target: GroupId,
    /// copying, frozen or adopted.
    pub stage: &'static str,
    /// order, drain, handoff, room or load; prefix where cached blocks are copied.
    pub reason: &'static str,
    pub cells_planned: u64,
    pub cells_arrived: u64,
    pub bytes: u64,
    pub age: Duration,
}

/// A group on its way to other ranks.
#[derive(Clone, PartialEq, Debug)]
pub struct ReshardStatus {
    pub group: GroupId,
    pub epoch: Epoch,
    /// preparing, copying, frozen or switched.
    pub stage: &'static str,
    pub from_ranks: u32,
    /// Of the new epoch, in rank order.
    pub workers: Vec<WorkerId>,
    pub cells_planned: u64,
    pub cells_arrived: u64,
    pub bytes: u64,
    pub age: Duration,
}

/// Counts with a name each, listed once.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Since the coordinator's start.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }

            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

counters! {
    epochs,
    steps,
    submitted,
    finished,
    failed,
    /// Of those finished: ended by their clients.
    cancelled,
    /// Of those failed: refused at a bound of the queue, at once or for waiting too long.
    rejected,
    prompt_tokens,
    generation_tokens,
    /// Sequences that gave up their blocks and were queued again.
    preemptions,
    /// Of those: for a sequence of a higher priority, or of a tenant that had less than its share.
    preemptions_for_others,
    ranks_lost,
    recoveries,
    /// Sequences that were sent to a group because of what its prefix cache had of them.
    routed_by_prefix,
    /// Waiting sequences that went from one group to another.
    sequences_rerouted,
    /// Tokens of sequences at admission, re-admission after preemption or loss included, and those of them that the
    /// prefix cache had.
    prefix_queries_tokens,
    prefix_hits_tokens,
    /// Cached blocks forgotten because their room was needed.
    evictions,
    /// Cached cells that were not what had been computed into them; their epoch ended before they were used.
    cells_corrupt,
    /// Positions computed again, after preemption or loss.
    tokens_recomputed,
    /// Sampled for sequences that had ended.
    tokens_discarded,
    /// Plans that computed a part of a prompt and left the rest to later ones, by sequence.
    chunks,
    /// Steps after which free, cached, held and blocks in flight were not all blocks.
    conservation_violations,
    migrations_begun,
    /// Of those: the sequence goes on in the other group.
    migrations_moved,
    /// Of those: the sequence ended first.
    migrations_ended,
    /// Of those: the sequence stayed, or was computed again.
    migrations_failed,
    /// Of those that moved: to decode elsewhere after prefill, to make room, and for the load.
    handoffs,
    migrations_for_room,
    migrations_for_load,
    /// Beginnings of sequences fetched from the prefix cache of another group; of those: that came, with their tokens and
    /// bytes, and that were computed after all.
    prefix_copies_begun,
    prefix_copies_adopted,
    prefix_copies_failed,
    prefix_copied_tokens,
    prefix_copy_bytes,
    /// Microseconds from the last token of the source to the first of the target, of all that moved.
    migration_pause_us,
    reshards_begun,
    /// Of those: the group goes on with the new ranks.
    reshards_switched,
    /// Of those: the group went on as it was, or lost a rank.
    reshards_failed,
    /// Microseconds from the last token of the old epochs to the first of the new ones.
    reshard_pause_us,
    /// Cells that the plans of completed migrations, reshards and copies of prefixes had copied, those that came, and their bytes.
    cells_planned,
    cells_adopted,
    transfer_bytes,
    /// Of these, those that went through shared memory.
    transfer_shared_bytes,
    /// Those of handoffs, and what of them had come before the prompt was computed.
    handoff_bytes,
    transfer_prompt_bytes,
    /// Transfers refused at a rank, by reason.
    cells_refused_ticket,
    cells_refused_epoch,
    cells_refused_tag,
    cells_refused_cell,
    cells_refused_numerics,
    cells_refused_checksum,
    cells_refused_frame,
    /// Transfers given up because an end could not be reached, or took too long.
    transfers_broken,
    /// Messages of closed sessions and old epochs.
    messages_stale,
    workers_refused,
    /// Workers that left, and had nothing left.
    workers_released,
}

impl Counters {
    pub(crate) fn count_refused(&mut self, fault: TransferFault) {
        *match fault {
            TransferFault::Ticket => &mut self.cells_refused_ticket,
            TransferFault::Epoch => &mut self.cells_refused_epoch,
            TransferFault::Tag => &mut self.cells_refused_tag,
            TransferFault::Cell => &mut self.cells_refused_cell,
            TransferFault::Numerics => &mut self.cells_refused_numerics,
            TransferFault::Checksum => &mut self.cells_refused_checksum,
            TransferFault::Frame => &mut self.cells_refused_frame,
            TransferFault::Connection | TransferFault::Deadline => &mut self.transfers_broken,
        } += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up_by_name() {
        let mut sum = Counters {
            steps: 2,
            ..Counters::default()
        };
        sum.add(&Counters {
            steps: 3,
            evictions: 1,
            ..Counters::default()
        });
        let named = sum.named();
        assert!(named.contains(&("steps", 5)) && named.contains(&("evictions", 1)));
    }
}
