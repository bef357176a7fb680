//! OTLP over HTTP by a client that blocks: the library's own threads send, and nothing else waits for them.

use std::time::Duration;

use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};

/// Of a collector's answer, which says what it did not take.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

#[derive(Clone, Debug)]
pub struct Blocking(ureq::Agent);

impl Blocking {
    pub fn new(deadline: Duration) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(deadline))
            .http_status_as_error(false)
            .build();
        Self(config.into())
    }
}

#[tonic::async_trait]
impl HttpClient for Blocking {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (head, body) = request.into_parts();
        let answer = self.0.run(Request::from_parts(head, body.as_ref()))?;
        let (head, mut body) = answer.into_parts();
        let body = body.with_config().limit(ANSWER_BYTES_MAX).read_to_vec()?;
        Ok(Response::from_parts(head, Bytes::from(body)))
    }
}
