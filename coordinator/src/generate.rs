//! One answer as a stream of messages: the descriptor, tokens with their text, the end.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::Stream;
use kvasir_kv::{FinishReason, SampledToken, TokenId};
use kvasir_proto::v1::{self, generate_response::Event};
use tonic::Status;

use crate::{
    Now, Usage,
    answer_text::AnswerText,
    driver::ClusterHandle,
    grpc::status,
    intake::Accepted,
    running_requests::RunningRequest,
    stop_strings::Scanned,
    token_log::{Ending, TokenLog},
};

/// Bounds a message when a slow client has let tokens pile up.
const CHUNK_TOKENS_MAX: usize = 256;

/// Submits the request and reads its log. Dropping the stream drops `running`, which cancels the sequence.
pub fn stream(
    accepted: Accepted,
    mut text: AnswerText,
    cluster: ClusterHandle,
    running: RunningRequest,
) -> impl Stream<Item = Result<v1::GenerateResponse, Status>> + Send + 'static {
    async_stream::try_stream! {
        let sequence = running.sequence();
        yield started(&accepted);
        let mut index = accepted.request.generated.len() as u32;
        if let Some((reason, index)) = catch_up(&accepted, &mut text) {
            yield finished(reason, usage_of(&accepted, index), text.finish());
            return;
        }
        let log = Arc::new(TokenLog::new(index));
        let deadline = accepted.deadline_unix_ms.map(|deadline| on_our_clock(&cluster, deadline));
        let submitted = cluster.submit(sequence, accepted.request.clone(), deadline, log.clone()).await;
        submitted.map_err(status::shutting_down)?;
        loop {
            let (tokens, ending) = log.read(index, CHUNK_TOKENS_MAX).await;
            let (chunk, stopped) = take_chunk(&mut text, index, tokens);
            index += chunk.tokens.len() as u32;
            if !chunk.tokens.is_empty() {
                yield response(Event::Chunk(chunk));
            }
            if stopped {
                cluster.stop(sequence, index - 1).await.map_err(status::shutting_down)?;
                let usage = match log.ended().await {
                    Ending::Finished { usage, .. } => Usage { completion_tokens: index, ..usage },
                    // The answer was complete before whatever happened.
                    Ending::Failed(_) | Ending::Shutdown => usage_of(&accepted, index),
                };
                yield finished(FinishReason::Stop, usage, String::new());
                return;
            }
            match ending {
                None => {}
                Some(Ending::Finished { reason, usage }) => {
                    status::check_finished(reason)?;
                    yield finished(reason, usage, text.finish());
                    return;
                }
                Some(Ending::Failed(error)) => Err(status::sequence_error(&error))?,
                Some(Ending::Shutdown) => Err(status::shutting_down(crate::driver::ShuttingDown))?,
            }
        }
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
    (received >= request.max_tokens).then_some((FinishReason::Length, received))
}

/// Up to the token that completes a stop string, and whether there is one.
fn take_chunk(text: &mut AnswerText, first_index: u32, tokens: Vec<SampledToken>) -> (v1::Chunk, bool) {
    let mut chunk = v1::Chunk::default();
    for (index, token) in (first_index..).zip(tokens) {
        let scanned = text.push(token.token);
        chunk.tokens.push(wire_token(index, token));
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

fn wire_token(index: u32, token: SampledToken) -> v1::Token {
    let top = |(TokenId(id), logprob)| v1::TopLogprob { id, logprob };
    v1::Token {
        index,
        id: token.token.0,
        logprob: token.logprob,
        top_logprobs: token.top_logprobs.into_iter().map(top).collect(),
    }
}

fn started(accepted: &Accepted) -> v1::GenerateResponse {
    response(Event::Started(v1::Started {
        descriptor: Some(accepted.descriptor()),
    }))
}

fn finished(reason: FinishReason, usage: Usage, text: String) -> v1::GenerateResponse {
    let reason = match reason {
        FinishReason::Stop => v1::FinishReason::Stop,
        FinishReason::Length => v1::FinishReason::Length,
        FinishReason::Cancelled => v1::FinishReason::Cancelled,
        // `status::check_finished` has made errors of these.
        FinishReason::Numerical | FinishReason::Deadline => v1::FinishReason::Unspecified,
    };
    response(Event::Finished(v1::Finished {
        reason: reason.into(),
        usage: Some(v1::Usage {
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
            completion_tokens: usage.completion_tokens,
        }),
        text,
    }))
}

fn response(event: Event) -> v1::GenerateResponse {
    v1::GenerateResponse { event: Some(event) }
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
