//! What others may do to a rank while it works: end its epoch, and see how far it has come.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use kvasir_kv::{Epoch, Progress};

use crate::collective::Abort;

/// What others may do to a rank while it works.
#[derive(Debug, Default)]
pub struct RankControl {
    state: Mutex<ControlState>,
    steps_done: AtomicU64,
}

#[derive(Debug, Default)]
struct ControlState {
    epoch: Epoch,
    abort: Option<Abort>,
    /// No epoch up to this one may begin or go on.
    aborted: Option<Epoch>,
    term_max: u64,
    /// Collectives entered in the running epoch.
    entered: Arc<AtomicU64>,
}

impl RankControl {
    /// Ends `epoch` and all before it, also if the rank has not heard of it yet. Waiting collectives return soon.
    pub fn abort(&self, epoch: Epoch) {
        let mut state = self.lock();
        state.aborted = state.aborted.max(Some(epoch));
        if state.epoch <= epoch
            && let Some(abort) = &state.abort
        {
            abort.abort();
        }
    }

    pub fn progress(&self) -> Progress {
        let state = self.lock();
        Progress {
            epoch: state.epoch,
            steps_done: self.steps_done.load(Ordering::Relaxed),
            collectives_entered: state.entered.load(Ordering::Relaxed),
        }
    }

    /// Highest term that this worker has obeyed.
    pub fn term_max(&self) -> u64 {
        self.lock().term_max
    }

    /// What ends an epoch that begins, or is prepared, and what counts its collectives. None if the epoch was aborted
    /// already.
    pub(crate) fn terms_of(&self, epoch: Epoch) -> Option<(Abort, Arc<AtomicU64>)> {
        let is_aborted = self.lock().aborted.is_some_and(|aborted| epoch <= aborted);
        (!is_aborted).then(|| (Abort::new(), Arc::default()))
    }

    /// From here on this is the epoch that works.
    pub(crate) fn begin(&self, epoch: Epoch, abort: Abort, entered: Arc<AtomicU64>) {
        let mut state = self.lock();
        if state.aborted.is_some_and(|aborted| epoch <= aborted) {
            abort.abort();
        }
        state.epoch = epoch;
        state.term_max = state.term_max.max(epoch.term);
        state.abort = Some(abort);
        state.entered = entered;
        self.steps_done.store(0, Ordering::Relaxed);
    }

    pub(crate) fn note_step(&self) {
        self.steps_done.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends all epochs older than `epoch`.
    pub(crate) fn abort_before(&self, epoch: Epoch) {
        let running = self.progress().epoch;
        if running < epoch {
            self.abort(running);
        }
    }

    fn lock(&self) -> MutexGuard<'_, ControlState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
