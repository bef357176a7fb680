//! What happens to a coordinator and what it does about it, as data.
//!
//! `Cluster::on` takes an [`Event`] and the time, and returns [`Effect`]s in the order in which they are to be carried
//! out. The driver delivers the events of one session in order, and never delivers one after its `WorkerGone`.

use std::{fmt, time::Duration};

use kvasir_kv::{
    Epoch, FinishReason, FromWorker, GroupId, PromptLogprob, Rank, Request, RequestId, SampledToken, SequenceId,
    ToWorker, TransferFault, TransferId, Transport, WorkerId, WorkerInfo,
};

use crate::prefix_copy::Forecast;

/// Time since the driver's start, monotonic.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Now(pub Duration);

impl Now {
    /// Zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(wait))
    }
}

/// One connection of a worker. Fresh for each connection, never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What an operator asked for; fresh for each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct OrderId(pub u64);

#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    WorkerJoined {
        session: SessionId,
        info: WorkerInfo,
    },
    /// The connection ended, whoever ended it.
    WorkerGone {
        session: SessionId,
    },
    FromWorker {
        session: SessionId,
        message: FromWorker,
    },
    /// `sequences` are fresh: one for each answer that is wanted, of this choice and the next ones; all are taken or none.
    /// A request with `generated` tokens continues after them.
    Submit {
        sequences: Vec<SequenceId>,
        request: Request,
        deadline: Option<Now>,
    },
    /// The client went away, or its driver gave up for `reason`.
    Cancel {
        sequence: SequenceId,
        reason: FinishReason,
    },
    /// A stop string ended with the token of index `last_index`; later tokens are discarded.
    Stop {
        sequence: SequenceId,
        last_index: u32,
    },
    /// An operator wants all sequences of a request in another group: in `target`, or where most room is. `OrderEnded`
    /// answers.
    Migrate {
        order: OrderId,
        request: RequestId,
        target: Option<GroupId>,
    },
    /// An operator wants a worker to leave. One that is not there has left.
    LetGo {
        worker: WorkerId,
    },
    /// An operator wants a group to have so many ranks from now on. `ReshardOrderEnded` answers.
    Reshard {
        order: OrderId,
        group: GroupId,
        ranks: u32,
    },
    /// Whoever leads needs a higher one from now on.
    RaiseTerm {
        term: u64,
    },
    /// Comes every `ClusterConfig::tick_interval`.
    Tick,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    Send {
        session: SessionId,
        message: ToWorker,
    },
    /// Close after what has been sent. `WorkerGone` for it may follow and changes nothing.
    CloseSession {
        session: SessionId,
        reason: String,
    },
    /// Token `index` of the answer, from `generated.len()` on without gap or repetition. A stop token is delivered too.
    Token {
        sequence: SequenceId,
        index: u32,
        token: SampledToken,
    },
    /// Logprobs of the prompt's tokens from `position` on, without gap or repetition; all of them before the first token.
    PromptLogprobs {
        sequence: SequenceId,
        position: u32,
        logprobs: Vec<PromptLogprob>,
    },
    /// The last effect of a sequence that ended as it should.
    Finished {
        sequence: SequenceId,
        reason: FinishReason,
        usage: Usage,
    },
    /// The last effect of a sequence that could not be completed.
    Failed {
        sequence: SequenceId,
        error: SequenceError,
    },
    /// All that an operator asked for has ended, or nothing of it was begun.
    OrderEnded {
        order: OrderId,
        result: Result<Vec<MigrationReport>, MigrationError>,
    },
    ReshardOrderEnded {
        order: OrderId,
        result: Result<ReshardReport, ReshardError>,
    },
    /// For the log: a reshard is over, however it went.
    ReshardEnded(ReshardReport),
    /// For the log: a group goes on in another epoch, with all that its sequences hold.
    EpochSwitched {
        group: GroupId,
        from: Epoch,
        epoch: Epoch,
        world_size: u32,
        transport: Transport,
        num_blocks: u32,
    },
    /// For the log: a sequence is on its way to another group.
    MigrationBegan {
        transfer: TransferId,
        request: RequestId,
        sequence: SequenceId,
        source: GroupId,
        target: GroupId,
        reason: MigrationReason,
    },
    /// For the log: a group is on its way to other ranks.
    ReshardBegan {
        group: GroupId,
        from_ranks: u32,
        ranks: u32,
    },
    /// For the log: a migration is over, however it went.
    MigrationEnded(MigrationReport),
    /// For the log: cached blocks have gone to another group, or not.
    PrefixCopyEnded(PrefixCopyReport),
    /// For the log: a rank refused cells of a transfer that is none any more, or a stranger.
    TransferRefused {
        transfer: TransferId,
        fault: TransferFault,
        reason: String,
    },
    /// For the log: the group serves.
    EpochStarted {
        group: GroupId,
        epoch: Epoch,
        world_size: u32,
        transport: Transport,
        num_blocks: u32,
    },
    /// For the log: a life of the group is over; its sequences wait for the next.
    EpochEnded {
        group: GroupId,
        epoch: Epoch,
        /// The worker that reported a failure of its own, if that was it; it stays.
        reporter: Option<WorkerId>,
        reason: String,
    },
    /// For the log: a rank or a spare is no longer counted on.
    RankLost {
        worker: WorkerId,
        /// `None` for a spare.
        rank: Option<Rank>,
        epoch: Epoch,
        how: LossCause,
        /// From its last sign of life or progress to the verdict.
        detection_ms: u64,
        reason: String,
    },
    /// For the log: every sequence that the loss interrupted has gone on or ended, in this group or another.
    Recovered {
        group: GroupId,
        /// Of the group that had the loss, by now.
        epoch: Epoch,
        /// From the verdict until the last of them went on.
        stall_ms: u64,
        /// Positions that had been computed and were computed again.
        tokens_recomputed: u64,
        sequences: u32,
    },
}

/// How a sequence was moved, or why not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MigrationReport {
    pub transfer: TransferId,
    pub request: RequestId,
    pub sequence: SequenceId,
    pub source: GroupId,
    pub target: GroupId,
    pub reason: MigrationReason,
    pub outcome: MigrationOutcome,
    /// That have come, and their bytes.
    pub cells: u64,
    pub bytes: u64,
    /// Of them, in a handoff: had come before the source had computed the prompt.
    pub prompt_bytes: u64,
    pub rounds: u32,
    pub took: Duration,
}

/// How cached blocks went to the group of a new sequence, or why not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrefixCopyReport {
    pub transfer: TransferId,
    pub request: RequestId,
    pub source: GroupId,
    pub target: GroupId,
    /// That the blocks are of, and the bytes that have come.
    pub tokens: u32,
    pub bytes: u64,
    /// Why they did not come; they are computed.
    pub outcome: Result<(), String>,
    pub forecast: Forecast,
    pub took: Duration,
}

/// Why a sequence is moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MigrationReason {
    /// An operator wants it.
    Order(OrderId),
    /// Its workers leave.
    Drain,
    /// Its prompt is computed, and another group is to decode.
    Handoff,
    /// Its group needs the room.
    Room,
    /// Its group has much more to do than another.
    Load,
}

impl MigrationReason {
    pub(crate) const NAMES: [&'static str; 5] = ["order", "drain", "handoff", "room", "load"];

    pub fn name(self) -> &'static str {
        match self {
            Self::Order(_) => "order",
            Self::Drain => "drain",
            Self::Handoff => "handoff",
            Self::Room => "room",
            Self::Load => "load",
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MigrationOutcome {
    /// It goes on at the target. `pause`: from its last token at the source to its first at the target.
    Moved {
        pause: Duration,
    },
    /// The sequence ended before it had gone.
    Ended,
    /// It gave up its blocks and is computed again.
    Preempted,
    /// The epoch of the source or the target ended.
    SourceLost,
    TargetLost,
    /// The target had no block for it; it stays.
    TargetFull(String),
    /// It stays at the source.
    Failed {
        fault: TransferFault,
        reason: String,
    },
}

impl MigrationOutcome {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Moved { .. } => "moved",
            Self::Ended => "ended",
            Self::Preempted => "preempted",
            Self::SourceLost => "source lost",
            Self::TargetLost => "target lost",
            Self::TargetFull(_) => "target full",
            Self::Failed { .. } => "failed",
        }
    }
}

impl fmt::Display for MigrationOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Moved { pause } => write!(f, "moved, pause {:.1} ms", pause.as_secs_f64() * 1e3),
            Self::Ended => f.write_str("the sequence ended before it had gone"),
            Self::Preempted => f.write_str("the sequence gave up its blocks before it had gone"),
            Self::SourceLost => f.write_str("the source group lost a rank"),
            Self::TargetLost => f.write_str("the target group lost a rank"),
            Self::TargetFull(reason) => write!(f, "the target group has no room: {reason}"),
            Self::Failed { fault, reason } => write!(f, "failed ({fault}): {reason}"),
        }
    }
}

/// How a group changed its ranks, or why not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReshardReport {
    pub group: GroupId,
    pub from_ranks: u32,
    pub ranks: u32,
    /// The new one.
    pub epoch: Epoch,
    pub outcome: ReshardOutcome,
    /// That have come, and their bytes.
    pub cells: u64,
    pub bytes: u64,
    pub rounds: u32,
    pub took: Duration,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReshardOutcome {
    /// `pause`: from the last token of the old epoch to the first of the new one.
    Switched { pause: Duration },
    /// The group lost a rank, and re-forms from those who are left.
    SourceLost,
    /// A rank of the new epoch is gone; the group goes on as it was.
    TargetLost,
    /// A request has come meanwhile that would not fit; the group goes on as it was.
    TooSmall(String),
    /// The group goes on as it was.
    Failed { fault: TransferFault, reason: String },
}

impl ReshardOutcome {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Switched { .. } => "switched",
            Self::SourceLost => "source lost",
            Self::TargetLost => "target lost",
            Self::TooSmall(_) => "too small",
            Self::Failed { .. } => "failed",
        }
    }
}

impl fmt::Display for ReshardOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switched { pause } => write!(f, "switched, pause {:.1} ms", pause.as_secs_f64() * 1e3),
            Self::SourceLost => f.write_str("the group lost a rank and re-forms"),
            Self::TooSmall(reason) => write!(f, "a request would not fit: {reason}; the group goes on as it was"),
            Self::TargetLost => f.write_str("a worker of the new epoch is gone; the group goes on as it was"),
            Self::Failed { fault, reason } => write!(f, "failed ({fault}): {reason}; the group goes on as it was"),
        }
    }
}

/// Why a reshard was not begun.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReshardError {
    #[error("there is no group {group}; groups are numbered from 0, and there are {groups}")]
    UnknownGroup { group: GroupId, groups: u32 },
    #[error("group {0} does not serve now")]
    NotServing(GroupId),
    #[error("a group of 0 ranks serves nothing; 1 or more are needed")]
    NoRanks,
    #[error("group {0} is being resharded already")]
    UnderWay(GroupId),
    #[error("{ranks} ranks are wanted; the group's own and the free workers are {available}")]
    TooFewWorkers { ranks: u32, available: u32 },
    #[error("group {group} has {ranks} ranks already")]
    AsItIs { group: GroupId, ranks: u32 },
    #[error("{0}")]
    Impossible(String),
    #[error("a request of the group would not fit: {0}")]
    TooSmall(String),
    #[error("worker {0} takes no cells from others")]
    NoTransfers(WorkerId),
}

/// Why a migration was not begun.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MigrationError {
    #[error("no request `{0}` is running or waiting; `kvasir status` lists those that are")]
    UnknownRequest(RequestId),
    #[error("no sequence {0} is running or waiting")]
    UnknownSequence(SequenceId),
    #[error("there is no group {group}; groups are numbered from 0, and there are {groups}")]
    UnknownGroup { group: GroupId, groups: u32 },
    #[error("group {0} does not serve now")]
    NotServing(GroupId),
    #[error("no other group serves")]
    NoOtherGroup,
    #[error("sequence {0} is being moved already")]
    UnderWay(SequenceId),
    #[error("group {0} is being resharded")]
    Resharding(GroupId),
    #[error("group {group} has no free place; it runs at most {sequences_max} sequences")]
    NoPlace { group: GroupId, sequences_max: u32 },
    #[error("the group cannot hold it: {0}")]
    TooSmall(String),
    #[error("worker {0} takes no cells from others")]
    NoTransfers(WorkerId),
}

/// How a rank was lost.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum LossCause {
    /// Its connection ended.
    Closed,
    /// It gave no sign of life or made no progress for too long, or missed a deadline of its epoch.
    Stalled,
    /// A peer missed it in a collective.
    Blamed,
    /// It reported a failure of its own, or spoke out of turn.
    Failed,
}

impl LossCause {
    pub(crate) const NAMES: [&'static str; 4] = ["closed", "stalled", "blamed", "failed"];

    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Stalled => "stalled",
            Self::Blamed => "blamed",
            Self::Failed => "failed",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    pub prompt_tokens: u32,
    /// Prompt tokens that the prefix cache had when the sequence was first admitted.
    pub cached_tokens: u32,
    /// Tokens of the answer, those that the client brought included.
    pub completion_tokens: u32,
    /// Positions that preemption or recovery had computed again.
    pub recomputed_tokens: u32,
    /// From its arrival to its first step.
    pub queued: Duration,
}

/// Why a sequence could not be completed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SequenceError {
    #[error(
        "no group can serve: {workers_live} of {workers_wanted} workers, waited {waited_ms} ms{}",
        cause.as_ref().map(|cause| format!(": {cause}")).unwrap_or_default()
    )]
    Unavailable {
        workers_live: u32,
        workers_wanted: u32,
        waited_ms: u64,
        /// Why the live workers cannot form a group, with its numbers.
        cause: Option<String>,
    },
    #[error("a sum left the range of the exact reduce at answer token {index}")]
    Numerical { index: u32 },
    #[error("{prompt_len} prompt tokens and {max_tokens} answer tokens exceed the context of {context_len}")]
    TooLong {
        prompt_len: u32,
        max_tokens: u32,
        context_len: u32,
    },
    #[error("{needed_blocks} blocks of {block_size} tokens needed alone, the group has {num_blocks}")]
    TooFewBlocks {
        needed_blocks: u32,
        num_blocks: u32,
        block_size: u32,
    },
    #[error("{waiting} requests wait, at most {queue_max} may{}", choices_too_many(*num_choices))]
    QueueFull {
        waiting: u32,
        queue_max: u32,
        /// Answers that were wanted together.
        num_choices: u32,
    },
    #[error("requests of {waiting_tokens} tokens wait; with {tokens} more they would exceed {queue_tokens_max}")]
    QueueTokens {
        waiting_tokens: u64,
        tokens: u64,
        queue_tokens_max: u64,
    },
    #[error("the request waited {waited_ms} ms for its turn; the longest wait is {queue_wait_ms_max} ms")]
    QueueWait { waited_ms: u64, queue_wait_ms_max: u64 },
    #[error("sequence {0} exists already")]
    Duplicate(SequenceId),
    #[error("a request needs a prompt and room for an answer: {prompt_len} prompt tokens, {max_tokens} answer tokens")]
    Empty { prompt_len: u32, max_tokens: u32 },
}

fn choices_too_many(num_choices: u32) -> String {
    match num_choices {
        0 | 1 => String::new(),
        _ => format!("; the {num_choices} choices of this one are taken together or not at all"),
    }
}
