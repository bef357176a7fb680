//! What a coordinator and a worker say to each other about groups and epochs, as domain types.
//!
//! The order of an epoch's life: `FormEpoch` to every rank, `EndpointReady` from every rank, `ConnectEpoch` to every
//! rank, `EpochReady` from every rank, then steps. `AbortEpoch` may come at any time.

use std::fmt;

use crate::{
    BlockId, CellsIn, CellsOut, Epoch, GroupId, KvDtype, NumericsId, Rank, RankShare, SequenceId, StepId, StepOutput,
    StepPlan, TaggedBlock, TransferFault, TransferId, WorkerId,
};

/// How the ranks of an epoch reduce.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Transport {
    /// One rank: nothing to exchange.
    #[default]
    Solo,
    /// All ranks on one host.
    SharedMemory,
    Tcp,
}

impl Transport {
    pub fn name(self) -> &'static str {
        match self {
            Self::Solo => "solo",
            Self::SharedMemory => "shm",
            Self::Tcp => "tcp",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a worker says of itself when it joins.
#[derive(Clone, PartialEq, Debug)]
pub struct WorkerInfo {
    pub id: WorkerId,
    pub pid: u32,
    /// The address that peers of other hosts reach it by.
    pub address: String,
    /// Equal for workers that can share memory.
    pub host: String,
    pub numerics_id: NumericsId,
    /// Highest term that it has seen: a new coordinator starts above it.
    pub term_max: u64,
    /// Relative speed for the plan's balance.
    pub weight: f64,
    pub threads: u32,
    pub backend: String,
    /// Memory for KV cells, bytes.
    pub kv_memory_bytes: u64,
    /// Positions per block that it was started with.
    pub block_size: u32,
    /// Element type of its cells.
    pub kv_dtype: KvDtype,
    /// Where it takes cells from other workers, `host:port`; empty if it takes none.
    pub transfer_address: String,
}

/// One rank's part in a new epoch.
#[derive(Clone, PartialEq, Debug)]
pub struct EpochSpec {
    pub group: GroupId,
    pub epoch: Epoch,
    pub rank: Rank,
    pub transport: Transport,
    /// Keeps foreign and stale connections out; drawn anew for each epoch.
    pub nonce: u64,
    /// The whole plan, in rank order; its length is the world size.
    pub shares: Vec<RankShare>,
    /// Ids that blocks may have. There are as many blocks, or fewer.
    pub num_blocks: u32,
    pub block_size: u32,
    /// Most tokens of one step.
    pub step_tokens_max: u32,
}

/// In what a worker differs from the cluster that refuses it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RefusalKind {
    BlockSize,
    KvDtype,
    /// Another model, weight mode, backend or version of the arithmetic.
    Numerics,
}

impl RefusalKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::BlockSize => "block size",
            Self::KvDtype => "KV dtype",
            Self::Numerics => "numerics",
        }
    }
}

#[derive(Clone, PartialEq, Debug)]
pub enum ToWorker {
    FormEpoch(EpochSpec),
    /// Get ready for an epoch while the present one goes on: load its units, make room for its cells. `EndpointReady`,
    /// `ConnectEpoch` and `EpochReady` follow as for `FormEpoch`.
    PrepareEpoch(EpochSpec),
    /// The epoch that was prepared begins, and the present one is over. `held` are the blocks whose cells live on.
    SwitchEpoch {
        epoch: Epoch,
        held: Vec<BlockId>,
    },
    /// The epoch that was prepared does not begin.
    DropEpoch {
        epoch: Epoch,
    },
    /// Endpoints in rank order.
    ConnectEpoch {
        epoch: Epoch,
        endpoints: Vec<String>,
    },
    Step(StepPlan),
    AbortEpoch {
        epoch: Epoch,
    },
    /// Send cells, as they are after the steps before this message.
    SendCells(CellsOut),
    /// Take cells that come with this ticket.
    ReceiveCells(CellsIn),
    /// Neither send nor take any more cells of this transfer. What has come and is named by no plan is forgotten.
    EndTransfer {
        transfer: TransferId,
    },
    /// Whoever wants to leave may: it is no rank any more.
    Released,
    /// The worker cannot be part of this cluster; it exits with this message.
    Refuse {
        kind: RefusalKind,
        reason: String,
    },
}

#[derive(Clone, PartialEq, Debug)]
pub enum FromWorker {
    EndpointReady {
        epoch: Epoch,
        endpoint: String,
    },
    EpochReady {
        epoch: Epoch,
        load: LoadReport,
    },
    /// A step and all before it. Rank 0 tells of each and brings its output; others may tell of several at once.
    StepDone {
        epoch: Epoch,
        step: StepId,
        output: Option<StepOutput>,
    },
    EpochFailed {
        epoch: Epoch,
        reason: String,
        missing: Vec<Rank>,
    },
    /// All cells that one source rank was to send in one round are in their place.
    CellsArrived {
        epoch: Epoch,
        transfer: TransferId,
        round: u32,
        source_rank: Rank,
        cells: u32,
        bytes: u64,
        /// Of these, those that came through shared memory.
        shared_bytes: u64,
    },
    /// The transfer cannot be completed; nothing of it will be used.
    TransferFailed {
        epoch: Epoch,
        transfer: TransferId,
        fault: TransferFault,
        reason: String,
    },
    /// The worker wants to leave, and works on until it is released.
    Leaving,
    Heartbeat(Progress),
}

impl FromWorker {
    /// The epoch that it speaks of.
    pub fn epoch(&self) -> Epoch {
        match self {
            Self::EndpointReady { epoch, .. }
            | Self::EpochReady { epoch, .. }
            | Self::StepDone { epoch, .. }
            | Self::CellsArrived { epoch, .. }
            | Self::TransferFailed { epoch, .. }
            | Self::EpochFailed { epoch, .. } => *epoch,
            Self::Heartbeat(progress) => progress.epoch,
            Self::Leaving => Epoch::default(),
        }
    }
}

/// How far a rank has come; grows while it works.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    pub epoch: Epoch,
    /// Steps finished in this epoch.
    pub steps_done: u64,
    /// Collectives entered in this epoch. Whoever has fewest keeps the others waiting.
    pub collectives_entered: u64,
}

/// What a rank loaded to take its part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LoadReport {
    pub units_loaded: u32,
    pub units_kept: u32,
    pub weight_bytes: u64,
    pub load_ms: u32,
}

/// How the reason of an `EpochFailed` begins where a cell was not any more what a step had left in it: the coordinator
/// counts these.
pub const CORRUPT_CELL: &str = "corrupt cell";

/// Why a rank refuses a step. Nothing of the step has been done.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StepRefused {
    #[error("step of epoch {found} in epoch {expected}")]
    WrongEpoch { expected: Epoch, found: Epoch },
    #[error("step {found} where {expected} is next")]
    WrongStep { expected: StepId, found: StepId },
    #[error("sequence {0} is not held")]
    UnknownSequence(SequenceId),
    #[error("sequence {0} is admitted twice")]
    AlreadyHeld(SequenceId),
    #[error("sequence {sequence}: work starts at {found}, {expected} tokens are computed")]
    WrongStart {
        sequence: SequenceId,
        expected: u32,
        found: u32,
    },
    #[error("sequence {sequence}: {end} tokens to compute, {known} known")]
    UnknownTokens { sequence: SequenceId, end: u32, known: u32 },
    #[error("sequence {0} has two work entries")]
    WorkedTwice(SequenceId),
    #[error("sequence {0} has a work entry without tokens")]
    NoTokens(SequenceId),
    #[error("sequence {sequence}: sampling is wanted ({samples}) after {end} of {known} known tokens")]
    WrongSamples {
        sequence: SequenceId,
        samples: bool,
        end: u32,
        known: u32,
    },
    #[error(
        "sequence {sequence}: logprobs of positions {begin} to {end} are wanted from the rows {start} to {start} + \
         {num_tokens}, of a prompt of {prompt_len}"
    )]
    WrongScores {
        sequence: SequenceId,
        begin: u32,
        end: u32,
        start: u32,
        num_tokens: u32,
        prompt_len: u32,
    },
    #[error("sequence {sequence}: {blocks} blocks do not hold {end} tokens")]
    TooFewBlocks {
        sequence: SequenceId,
        blocks: u32,
        end: u32,
    },
    #[error("block {} with tag {} is out of range or older than tag {newest}", block.id, block.tag)]
    StaleBlock { block: TaggedBlock, newest: u32 },
    #[error("sequence {sequence} starts after block {} with tag {}, of which {written} positions are written", block.id, block.tag)]
    UnwrittenBlock {
        sequence: SequenceId,
        block: TaggedBlock,
        written: u32,
    },
    #[error("sequence {sequence} writes block {} with tag {} from {offset} on, of which {written} positions are written", block.id, block.tag)]
    WrittenBlock {
        sequence: SequenceId,
        block: TaggedBlock,
        offset: u32,
        written: u32,
    },
    #[error("block {} with tag {} is adopted with {written} positions; {cells} of {expected} cells have come", block.id, block.tag)]
    NotArrived {
        block: TaggedBlock,
        written: u32,
        cells: u32,
        expected: u32,
    },
    #[error("block {} with tag {} is adopted, and no admitted sequence has it", block.id, block.tag)]
    AdoptedByNobody { block: TaggedBlock },
    #[error("{found} tokens in a step of at most {max}")]
    TooManyTokens { max: u32, found: u32 },
}
