//! What came of one request, and when its tokens came.
//!
//! Nothing is tried again or resumed: a benchmark counts what it sees.

use std::time::{Duration, Instant};

use kvasir_client::Channel;
use kvasir_proto::v1::{self, generate_response::Event, inference_client::InferenceClient};
use tonic::{Code, Status};

use crate::{answer::Answer, client};

#[derive(Debug)]
pub enum Outcome {
    Finished(Finished),
    /// By someone's Abort.
    Cancelled,
    /// No room.
    Refused {
        retry_after_ms: Option<u64>,
    },
    Failed {
        message: String,
    },
}

#[derive(Debug)]
pub struct Finished {
    pub token_ids: Vec<u32>,
    pub usage: v1::Usage,
    /// From its arrival to its first step.
    pub queued: Duration,
    pub times: TokenTimes,
    /// From sending to the last message.
    pub whole: Duration,
}

/// When the tokens of one answer came, since it was asked.
#[derive(Clone, Debug, Default)]
pub struct TokenTimes {
    pub first: Option<Duration>,
    /// Between tokens: one for each token after the first message.
    pub gaps: Vec<Duration>,
    last: Duration,
}

impl TokenTimes {
    /// Tokens of one message share the time since the message before.
    fn add(&mut self, at: Duration, tokens: usize) {
        if tokens == 0 {
            return;
        }
        match self.first {
            None => self.first = Some(at),
            Some(_) => {
                let gap = (at - self.last) / tokens as u32;
                self.gaps.extend(std::iter::repeat_n(gap, tokens));
            }
        }
        self.last = at;
    }
}

impl Outcome {
    /// Asks and waits for the end; `on_tokens` is told of each message's number of tokens.
    pub async fn of(channel: Channel, request: v1::GenerateRequest, on_tokens: impl FnMut(usize)) -> Self {
        match stream(channel, request, on_tokens).await {
            Ok(Some(finished)) => Self::Finished(finished),
            Ok(None) => Self::Cancelled,
            Err(status) => Self::from(&status),
        }
    }
}

impl From<&Status> for Outcome {
    fn from(status: &Status) -> Self {
        if status.code() == Code::ResourceExhausted {
            let retry_after = client::retry_after(status);
            return Self::Refused {
                retry_after_ms: retry_after.map(|wait| wait.as_millis() as u64),
            };
        }
        Self::Failed {
            message: client::refused(status).to_string(),
        }
    }
}

/// `None` if it was cancelled.
async fn stream(
    channel: Channel,
    request: v1::GenerateRequest,
    mut on_tokens: impl FnMut(usize),
) -> Result<Option<Finished>, Status> {
    let (mut answer, mut times) = (Answer::default(), TokenTimes::default());
    let start = Instant::now();
    let mut responses = InferenceClient::new(channel).generate(request).await?.into_inner();
    while let Some(response) = responses.message().await? {
        match response.event {
            Some(Event::Chunk(chunk)) => {
                let tokens = chunk.tokens.len();
                times.add(start.elapsed(), tokens);
                on_tokens(tokens);
                answer.add(chunk);
            }
            Some(Event::Finished(finished)) => {
                let is_cancelled = finished.reason() == v1::FinishReason::Cancelled;
                let usage = finished.usage.unwrap_or_default();
                return Ok((!is_cancelled).then(|| Finished {
                    token_ids: answer.token_ids,
                    usage,
                    queued: Duration::from_micros(usage.queue_us),
                    times,
                    whole: start.elapsed(),
                }));
            }
            Some(Event::Started(_) | Event::PromptScores(_)) | None => {}
        }
    }
    Err(Status::unavailable("the stream ended before the answer did"))
}

#[cfg(test)]
mod tests {
    use kvasir_runtime::status_metadata::RETRY_AFTER_MS;

    use super::*;

    #[test]
    fn tokens_of_one_message_share_its_gap() {
        let ms = Duration::from_millis;
        let mut times = TokenTimes::default();
        for (at, tokens) in [(30, 2), (40, 1), (45, 0), (70, 3)] {
            times.add(ms(at), tokens);
        }
        assert_eq!(times.first, Some(ms(30)));
        assert_eq!(times.gaps, [ms(10), ms(10), ms(10), ms(10)]);
    }

    #[test]
    fn no_room_is_refused_and_all_else_has_failed() {
        let mut full = Status::resource_exhausted("the queue is full");
        full.metadata_mut().insert(RETRY_AFTER_MS, 750.into());
        let refused = Outcome::from(&full);
        assert!(
            matches!(
                refused,
                Outcome::Refused {
                    retry_after_ms: Some(750)
                }
            ),
            "{refused:?}"
        );
        let failed = Outcome::from(&Status::invalid_argument("too long"));
        assert!(matches!(failed, Outcome::Failed { message } if message == "refused: too long"));
    }
}
