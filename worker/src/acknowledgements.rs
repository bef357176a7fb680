//! What a rank without an output has to tell of its steps: of several at once where they are short.
//!
//! Each message costs both ends time on the cores that compute. One for every step is the most that the coordinator can
//! use; it needs to know soon, and not at once, which blocks are free and which can be found.

use std::time::{Duration, Instant};

use kvasir_kv::{Epoch, FromWorker, StepId, StepPlan};

/// How long the first step may have been done that nobody was told of.
const WAIT_MAX: Duration = Duration::from_millis(10);
/// A step of more tokens takes long itself: nothing waits for it.
const STEP_TOKENS_MAX: u32 = 16;

/// Steps done that the coordinator has not been told of; they are of one epoch, and told of by the last one.
#[derive(Debug, Default)]
pub(crate) struct Acknowledgements {
    held_back: Option<HeldBack>,
}

#[derive(Debug)]
struct HeldBack {
    epoch: Epoch,
    last: StepId,
    /// When the first of them was done.
    since: Instant,
}

impl Acknowledgements {
    /// A step is done, the one behind those that are held back.
    pub fn note_done(&mut self, epoch: Epoch, step: StepId) {
        let since = self.held_back.as_ref().map_or_else(Instant::now, |held| held.since);
        self.held_back = Some(HeldBack {
            epoch,
            last: step,
            since,
        });
    }

    /// Whether what is held back may wait until `next` is done too.
    pub fn may_wait_for(&self, next: &StepPlan) -> bool {
        let tokens: u32 = next.work.iter().map(|work| work.num_tokens).sum();
        let is_fresh = |held: &HeldBack| held.epoch == next.epoch && held.since.elapsed() < WAIT_MAX;
        tokens <= STEP_TOKENS_MAX && self.held_back.as_ref().is_some_and(is_fresh)
    }

    pub fn take(&mut self) -> Option<FromWorker> {
        let HeldBack { epoch, last, .. } = self.held_back.take()?;
        Some(FromWorker::StepDone {
            epoch,
            step: last,
            output: None,
        })
    }
}
