//! The streams of answers behind one HTTP request: one for each prompt, merged.

use std::{pin::Pin, sync::Arc, time::Duration};

use axum::http::Extensions;
use futures::{Stream, StreamExt as _, stream::select_all};
use kvasir_proto::v1::{self, generate_response::Event, inference_server::Inference};
use kvasir_runtime::telemetry::propagation;
use opentelemetry::Context;
use tonic::Status;

use crate::ApiError;

/// How long an error may take to become the response's status, and not a piece of its stream.
const STATUS_WAIT_MAX: Duration = Duration::from_secs(2);

/// What the service behind the door streams.
pub type Responses = Pin<Box<dyn Stream<Item = Result<v1::GenerateResponse, Status>> + Send>>;

/// The service behind the door.
pub type Upstream = Arc<dyn Inference<GenerateStream = Responses>>;

/// A response and which prompt it belongs to.
type OfPrompt = Result<(u32, v1::GenerateResponse), Status>;

/// Ends with the last answer, or the first error.
pub struct Answers {
    /// Came while we waited for a first sign of life.
    early: std::vec::IntoIter<OfPrompt>,
    rest: Pin<Box<dyn Stream<Item = OfPrompt> + Send>>,
}

impl Answers {
    /// Asks for all of them. Errors with what the first of them that is refused is told.
    pub async fn begin(
        upstream: &Upstream,
        requests: Vec<v1::GenerateRequest>,
        extensions: &Extensions,
    ) -> Result<Self, ApiError> {
        let mut streams = Vec::with_capacity(requests.len());
        for (prompt, request) in (0..).zip(requests) {
            let mut request = tonic::Request::new(request);
            *request.extensions_mut() = extensions.clone();
            propagation::into_metadata(&Context::current(), request.metadata_mut());
            let responses = upstream.generate(request).await?.into_inner();
            streams.push(responses.map(move |response| response.map(|response| (prompt, response))));
        }
        Ok(Self {
            early: Vec::new().into_iter(),
            rest: Box::pin(select_all(streams)),
        })
    }

    /// Waits a little for more than that the answers begin, so that a request that is refused late, by a full queue, is
    /// still refused with a status.
    pub async fn look_ahead(mut self) -> Result<Self, ApiError> {
        let mut early = Vec::new();
        let first_sign = async {
            while let Some(next) = self.rest.next().await {
                let begins = matches!(&next, Ok((_, response)) if matches!(response.event, Some(Event::Started(_))));
                early.push(next);
                if !begins {
                    break;
                }
            }
        };
        // It is no failure to be slow.
        let _ = tokio::time::timeout(STATUS_WAIT_MAX, first_sign).await;
        if let Some(Err(status)) = early.last() {
            return Err(status.clone().into());
        }
        self.early = early.into_iter();
        Ok(self)
    }

    pub async fn next(&mut self) -> Option<OfPrompt> {
        match self.early.next() {
            Some(next) => Some(next),
            None => self.rest.next().await,
        }
    }
}
