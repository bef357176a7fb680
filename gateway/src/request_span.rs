//! The span of an HTTP request: a child of wherever its sender is, until the last byte of the response.

use std::{
    pin::Pin,
    task::{self, Poll},
};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    middleware::Next,
    response::Response,
};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use kvasir_runtime::{telemetry, telemetry::propagation};
use opentelemetry::{
    Context, KeyValue,
    trace::{FutureExt as _, SpanKind, Status as SpanStatus, TraceContextExt as _, Tracer as _},
};

pub async fn trace(request: Request, next: Next) -> Response {
    let parent = propagation::of_headers(request.headers());
    let tracer = telemetry::tracer();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    // Paths of answers alone: whoever watches the cluster is no part of its work.
    if !path.starts_with("/v1/") {
        return next.run(request).await;
    }
    let span = tracer
        .span_builder(format!("{method} {path}"))
        .with_kind(SpanKind::Server);
    let attributes = [
        KeyValue::new("http.request.method", method.to_string()),
        KeyValue::new("url.path", path),
    ];
    let span = span.with_attributes(attributes).start_with_context(&tracer, &parent);
    let context = Context::new().with_span(span);
    let response = next.run(request).with_context(context.clone()).await;
    if !context.span().span_context().is_valid() {
        return response;
    }
    let status = response.status();
    {
        let span = context.span();
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
        if status.is_server_error() {
            span.set_status(SpanStatus::error(status.to_string()));
        }
    }
    response.map(|body| Body::new(SpannedBody { body, context }))
}

/// The span ends with it.
struct SpannedBody {
    body: Body,
    context: Context,
}

impl HttpBody for SpannedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        polled: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for SpannedBody {
    fn drop(&mut self) {
        self.context.span().end();
    }
}
