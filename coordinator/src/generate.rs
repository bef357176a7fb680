//! One answer as a stream of messages: the descriptor, tokens with their text, the end.

use std::sync::Arc;

use futures::Stream;
use kvasir_kv::{FinishReason, SampledToken};
use kvasir_proto::v1::{self, generate_response::Event};
use tonic::Status;

use crate::{
    Usage,
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

type Response = Result<v1::GenerateResponse, Status>;

/// Reads the log of a submitted sequence. Dropping the stream drops `running`, which cancels the sequence.
pub fn stream(
    accepted: Accepted,
    mut text: AnswerText,
    log: Arc<TokenLog>,
    cluster: ClusterHandle,
    running: RunningRequest,
) -> impl Stream<Item = Response> + Send + 'static {
    async_stream::stream! {
        let sequence = running.sequence();
        yield started(&accepted);
        if let Some(finished) = catch_up(&accepted, &mut text) {
            yield finished.into_response(text);
            return;
        }
        if let Err(error) = cluster.submit(sequence, accepted.request.clone(), deadline(&accepted, &cluster), log.clone()).await {
            yield Err(status::shutting_down(error));
            return;
        }
        let mut index = accepted.request.generated.len() as u32;
        loop {
            let (tokens, ending) = log.read(index, CHUNK_TOKENS_MAX).await;
            let (chunk, stopped) = take_chunk(&mut text, &mut index, tokens);
            if !chunk.tokens.is_empty() {
                yield Ok(response(Event::Chunk(chunk)));
            }
            if stopped {
                yield finish_at_stop(&cluster, &running, &log, index).await;
                return;
            }
            if let Some(ending) = ending {
                yield end(ending, text);
                return;
            }
        }
    }
}
