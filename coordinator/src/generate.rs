//! Answers as a stream of messages: for each choice the descriptor, the prompt's logprobs if they are wanted, tokens with
//! their text, the end.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{Stream, StreamExt as _, stream::select_all};
use kvasir_kv::{FinishReason, Request, SampledToken};
use kvasir_model::Tokenizer;
use kvasir_proto::v1::{self, generate_response::Event};
use tonic::Status;

use crate::{
    Now, Usage,
    answer_text::AnswerText,
    driver::{ClusterHandle, ShuttingDown},
    grpc::status,
    intake::Accepted,
    running_requests::RunningChoice,
    spelling::Spelling,
    stop_strings::Scanned,
    telemetry::{AnswerMeter, RequestRecord},
    token_log::{Ending, Place, TokenLog},
};

/// Bounds a message when a slow client has let tokens, or logprobs of the prompt, pile up.
const CHUNK_TOKENS_MAX: usize = 256;

/// One answer on its way.
struct Answer {
    accepted: Accepted,
    text: AnswerText,
    spelling: Spelling,
    log: Arc<TokenLog>,
    /// Cancels the sequence when it is dropped.
    running: RunningChoice,
}

impl Answer {
    fn new(
        accepted: Accepted,
        tokenizer: &Arc<Tokenizer>,
        running: RunningChoice,
        record: &Arc<RequestRecord>,
    ) -> Self {
        let meter = AnswerMeter::new(Arc::clone(record));
        Self {
            text: AnswerText::new(tokenizer.clone(), accepted.stop.clone()),
            spelling: Spelling::new(accepted.token_bytes.then(|| tokenizer.clone())),
            log: Arc::new(TokenLog::new(place_of(&accepted.request)).with_meter(meter)),
            accepted,
            running,
        }
    }

    fn response(&self, event: Event) -> v1::GenerateResponse {
        response(self.choice(), event)
    }

    fn choice(&self) -> u32 {
        self.accepted.request.sampling.choice
    }

    /// Up to the token that completes a stop string, and whether there is one.
    fn take_chunk(&mut self, first_index: u32, tokens: Vec<SampledToken>) -> (v1::Chunk, bool) {
        let mut chunk = v1::Chunk::default();
        for (index, token) in (first_index..).zip(tokens) {
            let scanned = self.text.push(token.token);
            chunk.tokens.push(self.spelling.token(index, token));
            match scanned {
                Scanned::Text(part) => chunk.text += &part,
                Scanned::Stopped(part) => {
                    chunk.text += &part;
                    return (chunk, true);
                }
            }
        }
        (chunk, false)
    }
}

/// Submits the request and reads the logs of its choices. Dropping the stream drops `running`, which cancels them.
pub fn stream(
    accepted: Accepted,
    tokenizer: &Arc<Tokenizer>,
    cluster: ClusterHandle,
    running: Vec<RunningChoice>,
    record: &Arc<RequestRecord>,
) -> impl Stream<Item = Result<v1::GenerateResponse, Status>> + Send + 'static {
    let choices = (0..).zip(running);
    let mut answers: Vec<Answer> = choices
        .map(|(nth, running)| Answer::new(accepted.nth_choice(nth), tokenizer, running, record))
        .collect();
    async_stream::try_stream! {
        let mut over = None;
        for (nth, answer) in answers.iter_mut().enumerate() {
            yield started(answer, nth == 0);
            over = over.or(catch_up(&answer.accepted, &mut answer.text));
        }
        // Only one that is resumed, hence alone, can be over.
        if let Some((reason, index)) = over && let Some(answer) = answers.pop() {
            let (choice, usage) = (answer.choice(), usage_of(&answer.accepted, index));
            answer.log.end(Ending::Finished { reason, usage });
            yield response(choice, finished(reason, usage, answer.text.finish()));
            return;
        }
        let logs = answers.iter().map(|answer| (answer.running.sequence(), answer.log.clone())).collect();
        let deadline = accepted.deadline_unix_ms.map(|deadline| on_our_clock(&cluster, deadline));
        let submitted = cluster.submit(logs, accepted.request.clone(), deadline).await;
        submitted.map_err(status::shutting_down)?;
        let mut all = select_all(answers.into_iter().map(|answer| Box::pin(events(answer, cluster.clone()))));
        while let Some(response) = all.next().await {
            yield response?;
        }
    }
}

/// What comes of one answer after its start.
fn events(
    mut answer: Answer,
    cluster: ClusterHandle,
) -> impl Stream<Item = Result<v1::GenerateResponse, Status>> + Send + 'static {
    async_stream::try_stream! {
        let mut next = place_of(&answer.accepted.request);
        loop {
            let read = answer.log.read(next, CHUNK_TOKENS_MAX).await;
            if !read.scores.is_empty() {
                let scores = answer.spelling.prompt_scores(&answer.accepted.request, next.position, read.scores);
                next.position += scores.tokens.len() as u32;
                yield answer.response(Event::PromptScores(scores));
            }
            let (chunk, stopped) = answer.take_chunk(next.index, read.tokens);
            next.index += chunk.tokens.len() as u32;
            if !chunk.tokens.is_empty() {
                yield answer.response(Event::Chunk(chunk));
            }
            if stopped {
                let usage = stop(&answer, next.index, &cluster).await?;
                yield answer.response(finished(FinishReason::Stop, usage, String::new()));
                return;
            }
            match read.ending {
                None => {}
                Some(Ending::Finished { reason, usage }) => {
                    status::check_finished(reason)?;
                    let choice = answer.choice();
                    yield response(choice, finished(reason, usage, answer.text.finish()));
                    return;
                }
                Some(Ending::Failed(error)) => Err(status::sequence_error(&error))?,
                Some(Ending::Shutdown) => Err(status::shutting_down(ShuttingDown))?,
            }
        }
    }
}

/// Ends the sequence after a stop string that `num_tokens` tokens complete.
async fn stop(answer: &Answer, num_tokens: u32, cluster: &ClusterHandle) -> Result<Usage, Status> {
    let stopped = cluster.stop(answer.running.sequence(), num_tokens - 1).await;
    stopped.map_err(status::shutting_down)?;
    Ok(match answer.log.ended().await {
        Ending::Finished { usage, .. } => Usage {
            completion_tokens: num_tokens,
            ..usage
        },
        // The answer was complete before whatever happened.
        Ending::Failed(_) | Ending::Shutdown => usage_of(&answer.accepted, num_tokens),
    })
}

/// Where a stream begins: after what the client has.
fn place_of(request: &Request) -> Place {
    Place {
        position: 1 + request.prompt_logprobs.map_or(0, |wanted| wanted.received),
        index: request.generated.len() as u32,
    }
}

/// Feeds the tokens that the client has, silently. Returns why and after how many tokens the answer was over, if the
/// client missed only its end.
fn catch_up(accepted: &Accepted, text: &mut AnswerText) -> Option<(FinishReason, u32)> {
    let request = &accepted.request;
    for (index, &token) in request.generated.iter().enumerate() {
        let stopped = matches!(text.push(token), Scanned::Stopped(_));
        if stopped || request.stop_tokens.contains(&token) {
            return Some((FinishReason::Stop, index as u32 + 1));
        }
    }
    let received = request.generated.len() as u32;
    let has_scores = place_of(request).position >= request.prompt.len() as u32;
    let wants_scores = request.prompt_logprobs.is_some() && !has_scores;
    (received >= request.max_tokens && !wants_scores).then_some((FinishReason::Length, received))
}

/// The prompt's bytes are told once.
fn started(answer: &Answer, is_first: bool) -> v1::GenerateResponse {
    let prompt = match is_first {
        true => answer.accepted.request.prompt.as_slice(),
        false => &[],
    };
    answer.response(Event::Started(v1::Started {
        descriptor: Some(answer.accepted.descriptor()),
        prompt_token_bytes: answer.spelling.all(prompt),
    }))
}

fn finished(reason: FinishReason, usage: Usage, text: String) -> Event {
    let reason = match reason {
        FinishReason::Stop => v1::FinishReason::Stop,
        FinishReason::Length => v1::FinishReason::Length,
        FinishReason::Cancelled => v1::FinishReason::Cancelled,
        // `status::check_finished` has made errors of these.
        FinishReason::Numerical | FinishReason::Deadline => v1::FinishReason::Unspecified,
    };
    Event::Finished(v1::Finished {
        reason: reason.into(),
        usage: Some(v1::Usage {
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
            completion_tokens: usage.completion_tokens,
            queue_us: usage.queued.as_micros() as u64,
        }),
        text,
    })
}

fn response(choice: u32, event: Event) -> v1::GenerateResponse {
    v1::GenerateResponse {
        choice,
        event: Some(event),
    }
}

fn usage_of(accepted: &Accepted, completion_tokens: u32) -> Usage {
    Usage {
        prompt_tokens: accepted.request.prompt.len() as u32,
        completion_tokens,
        ..Usage::default()
    }
}

/// Deadlines travel as wall-clock time; the machine runs on a clock that nobody sets.
fn on_our_clock(cluster: &ClusterHandle, deadline_unix_ms: u64) -> Now {
    cluster
        .now()
        .after(Duration::from_millis(deadline_unix_ms.saturating_sub(unix_ms())))
}

pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}
