//! The tokens of one answer, and the logprobs of its prompt where they are wanted, written by the driver and read by index:
//! a slow reader never holds up a step.
//!
//! It holds at most `max_tokens` tokens, and logprobs for the prompt's length, and goes away with its reader.

use std::sync::{Mutex, MutexGuard, PoisonError};

use kvasir_kv::{FinishReason, PromptLogprob, SampledToken};
use tokio::sync::Notify;

use crate::{SequenceError, Usage, telemetry::AnswerMeter};

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

/// What comes next of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Place {
    /// Of the prompt's logprobs.
    pub position: u32,
    /// Of the answer's tokens.
    pub index: u32,
}

/// Logprobs of the prompt come alone, before all tokens.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Read {
    pub scores: Vec<PromptLogprob>,
    pub tokens: Vec<SampledToken>,
    pub ending: Option<Ending>,
}

/// For one reader.
#[derive(Debug)]
pub struct TokenLog {
    first: Place,
    written: Mutex<Written>,
    changed: Notify,
    meter: AnswerMeter,
}

#[derive(Debug, Default)]
struct Written {
    scores: Vec<PromptLogprob>,
    tokens: Vec<SampledToken>,
    ending: Option<Ending>,
}

impl TokenLog {
    /// A log that begins there: a resumed answer does not begin at its first token.
    pub fn new(first: Place) -> Self {
        Self {
            first,
            written: Mutex::default(),
            changed: Notify::new(),
            meter: AnswerMeter::default(),
        }
    }

    /// Measures the answer as it is written.
    pub fn with_meter(mut self, meter: AnswerMeter) -> Self {
        self.meter = meter;
        self
    }

    pub fn meter(&self) -> &AnswerMeter {
        &self.meter
    }

    /// Panics unless `index` is the next.
    pub fn append(&self, index: u32, token: SampledToken) {
        let mut written = self.lock();
        let next = self.first.index + written.tokens.len() as u32;
        assert_eq!(index, next, "an answer has no gap and no repetition");
        written.tokens.push(token);
        drop(written);
        self.meter.token();
        self.changed.notify_one();
    }

    /// Panics unless `position` is the next.
    pub fn append_scores(&self, position: u32, scores: Vec<PromptLogprob>) {
        let mut written = self.lock();
        let next = self.first.position + written.scores.len() as u32;
        assert_eq!(position, next, "a prompt is scored without gap and repetition");
        written.scores.extend(scores);
        drop(written);
        self.changed.notify_one();
    }

    /// The first ending counts.
    pub fn end(&self, ending: Ending) {
        self.meter.ended(&ending);
        self.lock().ending.get_or_insert(ending);
        self.changed.notify_one();
    }

    /// Up to `count_max` tokens, or logprobs of the prompt, from `next` on; the ending once there are no more. Waits until
    /// there is something; the deadline is the sequence's own, which ends the log.
    pub async fn read(&self, next: Place, count_max: usize) -> Read {
        loop {
            let notified = self.changed.notified();
            if let Some(found) = self.try_read(next, count_max) {
                return found;
            }
            notified.await;
        }
    }

    fn try_read(&self, next: Place, count_max: usize) -> Option<Read> {
        let written = self.lock();
        let scores = rest(&written.scores, self.first.position, next.position);
        if !scores.is_empty() {
            let scores = scores[..scores.len().min(count_max)].to_vec();
            return Some(Read {
                scores,
                ..Read::default()
            });
        }
        let rest = rest(&written.tokens, self.first.index, next.index);
        let tokens = rest[..rest.len().min(count_max)].to_vec();
        let ending = match &written.ending {
            _ if tokens.len() < rest.len() => None,
            None if tokens.is_empty() => return None,
            ending => ending.clone(),
        };
        Some(Read {
            tokens,
            ending,
            ..Read::default()
        })
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

/// What is there from `next` on, of what begins with `first`.
fn rest<T>(written: &[T], first: u32, next: u32) -> &[T] {
    written.get(next.saturating_sub(first) as usize..).unwrap_or_default()
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
        let at = |index| Place { position: 0, index };
        let log = TokenLog::new(at(5));
        for index in 5..9 {
            log.append(index, token(index));
        }
        log.end(Ending::Shutdown);
        log.end(Ending::Failed(SequenceError::Numerical { index: 0 }));
        let read = |tokens: Vec<SampledToken>, ending| Read {
            tokens,
            ending,
            ..Read::default()
        };
        let first_three = (5..8).map(token).collect();
        assert_eq!(log.read(at(5), 3).await, read(first_three, None));
        assert_eq!(log.read(at(8), 3).await, read(vec![token(8)], Some(Ending::Shutdown)));
        assert_eq!(log.read(at(9), 3).await, read(Vec::new(), Some(Ending::Shutdown)));
        assert_eq!(log.ended().await, Ending::Shutdown);
    }

    #[tokio::test]
    async fn what_the_prompt_scored_comes_before_the_tokens_in_pieces() {
        let scores = |from: u32, to: u32| {
            let score = |position| PromptLogprob {
                logprob: position as f32,
                top_logprobs: Vec::new(),
            };
            (from..to).map(score).collect::<Vec<_>>()
        };
        let at = |position| Place { position, index: 0 };
        let log = TokenLog::new(at(3));
        log.append_scores(3, scores(3, 5));
        log.append(0, token(7));
        log.append_scores(5, scores(5, 8));
        log.end(Ending::Shutdown);
        for (position, end) in [(3, 6), (6, 8)] {
            let read = log.read(at(position), 3).await;
            assert_eq!((read.scores, read.ending), (scores(position, end), None));
            assert!(read.tokens.is_empty());
        }
        let read = log.read(at(8), 3).await;
        assert_eq!((read.tokens, read.ending), (vec![token(7)], Some(Ending::Shutdown)));
    }

    #[tokio::test]
    async fn a_waiting_reader_is_woken() {
        let log = std::sync::Arc::new(TokenLog::new(Place::default()));
        let reader = tokio::spawn({
            let log = log.clone();
            async move { log.read(Place::default(), 9).await.tokens }
        });
        tokio::task::yield_now().await;
        log.append(0, token(7));
        assert_eq!(reader.await.unwrap(), vec![token(7)]);
    }

    #[test]
    #[should_panic(expected = "no gap")]
    fn a_gap_is_not_accepted() {
        TokenLog::new(Place::default()).append(1, token(7));
    }
}
