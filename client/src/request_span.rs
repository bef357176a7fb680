//! The span of a request at its client, a child of the current one. It ends with the last of its streams.

use std::sync::Arc;

use kvasir_runtime::{telemetry, telemetry::propagation};
use opentelemetry::{
    Context, KeyValue,
    trace::{SpanKind, Status as SpanStatus, TraceContextExt as _, Tracer as _},
};
use tonic::Request;

use crate::ClientError;

#[derive(Clone)]
pub(crate) struct RequestSpan(Arc<Ended>);

/// Ends when it is dropped.
struct Ended(Context);

impl RequestSpan {
    pub fn begin() -> Self {
        let tracer = telemetry::tracer();
        let span = tracer.span_builder("generate").with_kind(SpanKind::Client);
        let parent = Context::current();
        let span = span.start_with_context(&tracer, &parent);
        Self(Arc::new(Ended(Context::new().with_span(span))))
    }

    /// Takes the trace along.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        propagation::into_metadata(&self.0.0, request.metadata_mut());
        request
    }

    pub fn resuming(&self) {
        self.0.0.span().add_event("resuming", Vec::<KeyValue>::new());
    }

    pub fn failed(&self, error: &ClientError) {
        self.0.0.span().set_status(SpanStatus::error(error.to_string()));
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.span().end();
    }
}
