//! The tokens of one answer, written by the driver and read by index: a slow reader never holds up a step.
//!
//! It holds at most `max_tokens` tokens and goes away with its reader.

use std::sync::{Mutex, MutexGuard, PoisonError};

use kvasir_kv::{FinishReason, SampledToken};
use tokio::sync::Notify;

use crate::{SequenceError, Usage};

/// How an answer ended.
#[derive(Clone, PartialEq, Debug)]
pub enum Ending {
    Finished {
        reason: FinishReason,
        usage: Usage,
    },
    Failed(SequenceError),
    /// The coordinator goes away; any other can go on with the answer.
    Shutdown,
}

/// For one reader.
#[derive(Debug)]
pub struct TokenLog {
    first_index: u32,
    written: Mutex<Written>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Written {
    tokens: Vec<SampledToken>,
    ending: Option<Ending>,
}

impl TokenLog {
    /// A log whose first token has `first_index` in the answer: a resumed answer does not begin at 0.
    pub fn new(first_index: u32) -> Self {
        Self {
            first_index,
            written: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Panics unless `index` is the next.
    pub fn append(&self, index: u32, token: SampledToken) {
        let mut written = self.lock();
        let next = self.first_index + written.tokens.len() as u32;
        assert_eq!(index, next, "an answer has no gap and no repetition");
        written.tokens.push(token);
        drop(written);
        self.changed.notify_one();
    }

    /// The first ending counts.
    pub fn end(&self, ending: Ending) {
        self.lock().ending.get_or_insert(ending);
        self.changed.notify_one();
    }

    /// Up to `count_max` tokens from `index` on; the ending once there are no more. Waits until there is one or the
    /// other; the deadline is the sequence's own, which ends the log.
    pub async fn read(&self, index: u32, count_max: usize) -> (Vec<SampledToken>, Option<Ending>) {
        loop {
            let notified = self.changed.notified();
            if let Some(found) = self.try_read(index, count_max) {
                return found;
            }
            notified.await;
        }
    }

    fn try_read(&self, index: u32, count_max: usize) -> Option<(Vec<SampledToken>, Option<Ending>)> {
        let written = self.lock();
        let from = index.saturating_sub(self.first_index) as usize;
        let rest = written.tokens.get(from..).unwrap_or_default();
        let tokens = rest[..rest.len().min(count_max)].to_vec();
        if tokens.len() < rest.len() {
            return Some((tokens, None));
        }
        match &written.ending {
            None if tokens.is_empty() => None,
            ending => Some((tokens, ending.clone())),
        }
    }

    /// Waits until the log has ended, whatever has not been read.
    pub async fn ended(&self) -> Ending {
        loop {
            let notified = self.changed.notified();
            if let Some(ending) = self.lock().ending.clone() {
                return ending;
            }
            notified.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        // Nothing panics between the writes of one change.
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use kvasir_kv::{SequenceId, TokenId};

    use super::*;

    fn token(id: u32) -> SampledToken {
        SampledToken {
            sequence: SequenceId(1),
            token: TokenId(id),
            logprob: 0.0,
            top_logprobs: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_reader_gets_every_token_once_and_then_the_ending() {
        let log = TokenLog::new(5);
        for index in 5..9 {
            log.append(index, token(index));
        }
        log.end(Ending::Shutdown);
        log.end(Ending::Failed(SequenceError::Numerical { index: 0 }));
        let (tokens, ending) = log.read(5, 3).await;
        assert_eq!((tokens.len(), ending), (3, None));
        assert_eq!(log.read(8, 3).await, (vec![token(8)], Some(Ending::Shutdown)));
        assert_eq!(log.read(9, 3).await, (Vec::new(), Some(Ending::Shutdown)));
        assert_eq!(log.ended().await, Ending::Shutdown);
    }

    #[tokio::test]
    async fn a_waiting_reader_is_woken() {
        let log = std::sync::Arc::new(TokenLog::new(0));
        let reader = tokio::spawn({
            let log = log.clone();
            async move { log.read(0, 9).await.0 }
        });
        tokio::task::yield_now().await;
        log.append(0, token(7));
        assert_eq!(reader.await.unwrap(), vec![token(7)]);
    }

    #[test]
    #[should_panic(expected = "no gap")]
    fn a_gap_is_not_accepted() {
        TokenLog::new(0).append(1, token(7));
    }
}
