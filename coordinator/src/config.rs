//! What a coordinator is told once, at its start: limits, deadlines and the shape of the group.

use std::time::Duration;

use kvasir_kv::{CellLayout, NumericsId};

use crate::{GroupRole, PrefixCopying};

/// Plain data. `Cluster::new` brings limits that contradict each other into line and documents how.
#[derive(Clone, PartialEq, Debug)]
pub struct ClusterConfig {
    /// For each group, by its id, the ranks that it is to have. It forms when so many workers are free; it re-forms from
    /// whoever is left.
    pub group_sizes: Vec<u32>,
    /// For each group, by its id, what it is for; both where none is said.
    pub group_roles: Vec<GroupRole>,
    /// Running sequences move where another group has room and theirs has none for one that waits, or for what they need next.
    pub rebalance: bool,
    /// Running sequences move from a group with much to do to one with little.
    pub even_load: bool,
    /// Whether a sequence that comes to one group starts from blocks that another group has.
    pub prefix_copying: PrefixCopying,
    /// What every worker's engine must be; with `None` the first worker that joins decides.
    pub numerics_id: Option<NumericsId>,
    /// Geometry of a cell; every worker must have been started with its block size.
    pub cell: CellLayout,
    /// Blocks of the pool at most; `None` means as many as the workers' memory holds.
    pub num_blocks_max: Option<u32>,
    /// Keep full blocks of sequences that are done, and start new ones with the same tokens from them.
    pub prefix_cache: bool,
    /// Groups with fewer ranks than they are to have take in workers that are free.
    pub grow: bool,
    /// Groups are to have more ranks than `group_sizes` says, where there are more workers.
    pub elastic: bool,
    /// Reduce over TCP also where all ranks share a host.
    pub force_tcp: bool,
    /// No epoch's term is lower: that of whoever leads, where several coordinators could.
    pub term_min: u64,
    /// A group that never formed waits for all its ranks, but so long at most; without it, as long as it takes.
    pub gather_max: Option<Duration>,
    /// Keys the nonces of epochs. Drawn at random by the driver, once.
    pub nonce_seed: u64,

    /// Tokens of one step, all sequences together.
    pub step_tokens_max: u32,
    /// Tokens that one sequence may add to a step: a long prompt is computed in chunks.
    pub chunk_tokens_max: u32,
    /// Tokens of prompts, all sequences together, in a step in which others decode, or as many as those decode if that is
    /// more: so long do they wait for theirs.
    pub mixed_prefill_tokens_max: u32,
    /// Sequences of a group that hold blocks at a time; at most `step_tokens_max`, so that each may decode in every step.
    pub sequences_max: u32,
    /// Sequences that wait, in all groups together, beyond those for whom a place is free; one more is refused.
    pub queue_max: u32,
    /// Tokens of the sequences that wait. Whoever comes first waits, however long it is.
    pub queue_tokens_max: u64,
    /// A sequence that waits so long for its first step is refused.
    pub queue_wait_max: Duration,
    /// Steps sent before the output of the one before them is back.
    pub look_ahead: u32,
    /// No step is sent while steps of so many tokens are out: they take longer than any message, and whoever comes
    /// meanwhile shall be in the next one.
    pub look_ahead_tokens_max: u32,

    /// How often the driver sends `Event::Tick`. A gap of more than twice this is a pause of our own and is held
    /// against nobody.
    pub tick_interval: Duration,
    /// A rank may stand still so long, or 20 usual steps if that is longer.
    pub stall_min: Duration,
    /// From `FormEpoch` to `EndpointReady`, and from `ConnectEpoch` to `EpochReady` (which includes loading weights).
    pub endpoint_deadline: Duration,
    pub ready_deadline: Duration,
    /// A request waits so long for a group that can serve it, unless its own deadline is sooner.
    pub unavailable_wait_max: Duration,
}

impl ClusterConfig {
    /// Defaults for one group of `num_ranks` ranks.
    pub fn new(num_ranks: u32, cell: CellLayout) -> Self {
        Self {
            group_sizes: vec![num_ranks],
            group_roles: Vec::new(),
            rebalance: true,
            even_load: true,
            prefix_copying: PrefixCopying::Auto,
            numerics_id: None,
            cell,
            num_blocks_max: None,
            prefix_cache: true,
            grow: true,
            elastic: false,
            force_tcp: false,
            term_min: 1,
            gather_max: None,
            nonce_seed: 0,
            step_tokens_max: 512,
            chunk_tokens_max: 256,
            mixed_prefill_tokens_max: 64,
            sequences_max: 64,
            queue_max: 256,
            queue_tokens_max: 1 << 20,
            queue_wait_max: Duration::from_secs(300),
            look_ahead: 1,
            look_ahead_tokens_max: 32,
            tick_interval: Duration::from_millis(100),
            stall_min: Duration::from_secs(2),
            endpoint_deadline: Duration::from_secs(10),
            ready_deadline: Duration::from_secs(120),
            unavailable_wait_max: Duration::from_secs(60),
        }
    }

    /// Ranks of all groups.
    pub fn workers_wanted(&self) -> u32 {
        self.group_sizes.iter().sum()
    }
}
