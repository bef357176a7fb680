//! What a loss costs: which sequences it interrupted, how long they stood still, how much was computed again.
//!
//! Recovery itself is nothing special: interrupted sequences wait, oldest first, and `num_computed_tokens` catches up.

use std::{collections::BTreeSet, time::Duration};

use kvasir_kv::{Epoch, SequenceId};

use crate::{Effect, Now, SequenceError};

/// No group serves, since when, and why.
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

/// Open from a loss until every interrupted sequence has gone on or ended. A further loss joins it.
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

    pub fn interrupt(&mut self, sequences: impl Iterator<Item = SequenceId>) {
        for sequence in sequences {
            if self.waiting.insert(sequence) {
                self.sequences += 1;
            }
        }
    }

    pub fn count_recomputed(&mut self, sequence: SequenceId, tokens: u32) {
        if self.waiting.contains(&sequence) {
            self.tokens_recomputed += u64::from(tokens);
        }
    }

    /// The sequence has got its next token, or ended.
    pub fn went_on(&mut self, sequence: SequenceId) {
        self.waiting.remove(&sequence);
    }

    /// The report, once nobody waits.
    pub fn finished(&self, epoch: Epoch, now: Now) -> Option<Effect> {
        self.waiting.is_empty().then(|| Effect::Recovered {
            epoch,
            stall_ms: now.since(self.since).as_millis() as u64,
            tokens_recomputed: self.tokens_recomputed,
            sequences: self.sequences,
        })
    }
}
