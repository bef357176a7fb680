//! How long a call may go on waiting.

use std::time::{Duration, Instant};

use super::{Abort, CollectiveError};

/// The longest sleep between two looks at the abort handle.
const NAP_MAX: Duration = Duration::from_millis(10);

/// How long a call may go on waiting. The clock starts with the first wait that is worth a clock reading, so that
/// calls that meet at once never read it.
#[derive(Debug)]
pub(super) struct Patience<'a> {
    abort: &'a Abort,
    deadline: Duration,
    nap_max: Duration,
    started: Option<Instant>,
}

impl<'a> Patience<'a> {
    pub fn new(abort: &'a Abort, deadline: Duration) -> Self {
        Self {
            abort,
            deadline,
            nap_max: NAP_MAX,
            started: None,
        }
    }

    /// Naps until the deadline, so that a wake-up that is lost is not mistaken for a slow one.
    #[cfg(test)]
    pub fn of_a_sound_sleeper(abort: &'a Abort, deadline: Duration) -> Self {
        Self {
            nap_max: deadline,
            ..Self::new(abort, deadline)
        }
    }

    /// How long the caller may sleep before it asks again, or why it must stop waiting.
    pub fn nap(&mut self, missing: impl FnOnce() -> Vec<usize>) -> Result<Duration, CollectiveError> {
        self.check_abort()?;
        let waited = self.started.get_or_insert_with(Instant::now).elapsed();
        match self.deadline.checked_sub(waited) {
            Some(left) if !left.is_zero() => Ok(left.min(self.nap_max)),
            _ => Err(CollectiveError::DeadlineExceeded {
                missing: missing(),
                waited_ms: waited.as_millis() as u64,
            }),
        }
    }

    /// What to report of a peer that left: a group that is aborted as a whole sees its peers leave, and that is no news.
    pub fn peer_gone(&self, rank: usize) -> CollectiveError {
        match self.check_abort() {
            Ok(()) => CollectiveError::PeerGone { rank },
            Err(aborted) => aborted,
        }
    }

    fn check_abort(&self) -> Result<(), CollectiveError> {
        if self.abort.is_aborted() {
            Err(CollectiveError::Aborted)
        } else {
            Ok(())
        }
    }
}
