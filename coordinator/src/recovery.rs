//! What a loss costs: which sequences it interrupted, how long they stood still, how much was computed again.
//!
//! Recovery itself is nothing special: interrupted sequences wait, oldest first, and `num_computed_tokens` catches up.

use std::{collections::BTreeSet, time::Duration};

use kvasir_kv::{Epoch, GroupId, SequenceId};

use crate::{Effect, Now, SequenceError};

/// A group does not serve: since when, and why.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Outage {
    pub since: Now,
    pub wait_max: Duration,
    pub workers_live: u32,
    pub workers_wanted: u32,
    pub cause: Option<String>,
}

impl Outage {
    pub fn error(&self, waited: Duration) -> SequenceError {
        SequenceError::Unavailable {
            workers_live: self.workers_live,
            workers_wanted: self.workers_wanted,
            waited_ms: waited.as_millis() as u64,
            cause: self.cause.clone(),
        }
    }
}

/// Open from a loss until every interrupted sequence has gone on or ended, in whichever group. A further loss of the same
/// group joins it.
#[derive(Debug)]
pub(crate) struct Recovery {
    since: Now,
    waiting: BTreeSet<SequenceId>,
    sequences: u32,
    tokens_recomputed: u64,
}

impl Recovery {
    pub fn begin(since: Now) -> Self {
        Self {
            since,
            waiting: BTreeSet::new(),
            sequences: 0,
            tokens_recomputed: 0,
        }
    }

    pub fn interrupt(&mut self, sequences: Vec<SequenceId>) {
        for sequence in sequences {
            if self.waiting.insert(sequence) {
                self.sequences += 1;
            }
        }
    }

    /// The sequence has got its next token, or ended; `recomputed` positions were computed again for it.
    pub fn went_on(&mut self, sequence: SequenceId, recomputed: u32) {
        if self.waiting.remove(&sequence) {
            self.tokens_recomputed += u64::from(recomputed);
        }
    }

    /// Nobody waits any more; where nobody was interrupted, the group `serves` again.
    pub fn is_over(&self, serves: bool) -> bool {
        self.waiting.is_empty() && (serves || self.sequences > 0)
    }

    pub fn report(&self, group: GroupId, epoch: Epoch, now: Now) -> Effect {
        Effect::Recovered {
            group,
            epoch,
            stall_ms: now.since(self.since).as_millis() as u64,
            tokens_recomputed: self.tokens_recomputed,
            sequences: self.sequences,
        }
    }
}
