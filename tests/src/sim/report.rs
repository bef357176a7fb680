//! What a run did, to see that it did enough.

use kvasir_coordinator::status::Counters;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Of all coordinators of the run.
    pub counters: Counters,
    /// Tokens that clients received.
    pub tokens: u64,
    /// Logprobs of prompts that clients received.
    pub scores: u64,
    pub kills: u64,
    pub pauses: u64,
    /// Steps of ended epochs that ranks refused.
    pub stale_steps: u64,
    /// Blocks in plans that another sequence had filled.
    pub blocks_shared: u64,
    /// Cells that went from one worker to another.
    pub cells_moved: u64,
    /// Workers that were let go.
    pub leaves: u64,
}

impl Report {
    pub fn add(&mut self, other: &Self) {
        self.counters.add(&other.counters);
        self.tokens += other.tokens;
        self.scores += other.scores;
        self.kills += other.kills;
        self.pauses += other.pauses;
        self.stale_steps += other.stale_steps;
        self.blocks_shared += other.blocks_shared;
        self.cells_moved += other.cells_moved;
        self.leaves += other.leaves;
    }
}
