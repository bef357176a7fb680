//! The span of a request at this coordinator, a child of wherever its sender is, and that of its stream.

use std::{
    pin::Pin,
    task::{self, Poll},
};

use futures::Stream;
use kvasir_proto::v1::{self, generate_request::Prompt, generate_response::Event};
use kvasir_runtime::telemetry;
use opentelemetry::{
    Context, KeyValue,
    trace::{Span as _, SpanKind, Status as SpanStatus, TraceContextExt as _, Tracer as _},
};
use tonic::{Code, Status};

use crate::grpc::Responses;

/// In OpenTelemetry's words.
pub fn operation(request: &v1::GenerateRequest) -> &'static str {
    match &request.prompt {
        Some(Prompt::Chat(_)) => "chat",
        _ => "text_completion",
    }
}

/// To be ended by `refused`, or with the stream of `within`.
pub fn begin(parent: &Context, model: &str, request: &v1::GenerateRequest) -> Context {
    let (tracer, operation) = (telemetry::tracer(), operation(request));
    let span = tracer
        .span_builder(format!("{operation} {model}"))
        .with_kind(SpanKind::Server);
    let span = span.start_with_context(&tracer, parent);
    if span.is_recording() {
        return Context::new().with_span(described(span, operation, model, request));
    }
    Context::new().with_span(span)
}

fn described<S: opentelemetry::trace::Span>(
    mut span: S,
    operation: &'static str,
    model: &str,
    request: &v1::GenerateRequest,
) -> S {
    span.set_attribute(KeyValue::new("gen_ai.operation.name", operation));
    span.set_attribute(KeyValue::new("gen_ai.provider.name", "kvasir"));
    span.set_attribute(KeyValue::new("gen_ai.request.model", model.to_owned()));
    span.set_attribute(KeyValue::new("kvasir.request_id", request.request_id.clone()));
    if let Some(max_tokens) = request.max_tokens {
        span.set_attribute(KeyValue::new("gen_ai.request.max_tokens", i64::from(max_tokens)));
    }
    let Some(sampling) = &request.sampling else {
        return span;
    };
    if let Some(temperature) = sampling.temperature {
        span.set_attribute(KeyValue::new("gen_ai.request.temperature", f64::from(temperature)));
    }
    if let Some(top_p) = sampling.top_p {
        span.set_attribute(KeyValue::new("gen_ai.request.top_p", f64::from(top_p)));
    }
    if let Some(seed) = sampling.seed {
        span.set_attribute(KeyValue::new("gen_ai.request.seed", seed as i64));
    }
    span
}

/// Nothing comes of it.
pub fn refused(context: &Context, status: &Status) {
    let span = context.span();
    span.set_attribute(KeyValue::new("error.type", code_name(status.code())));
    span.set_status(SpanStatus::error(status.message().to_owned()));
    span.end();
}

/// The same stream; its polls are within the span, which ends with it.
pub fn within(context: Context, responses: Responses) -> Responses {
    if !context.span().span_context().is_valid() {
        return responses;
    }
    Box::pin(InSpan {
        context,
        responses,
        streaming: None,
    })
}

struct InSpan {
    context: Context,
    responses: Responses,
    /// Since the first token.
    streaming: Option<telemetry::BoxedSpan>,
}

impl Stream for InSpan {
    type Item = Result<v1::GenerateResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, polled: &mut task::Context<'_>) -> Poll<Option<Self::Item>> {
        let attached = self.context.clone().attach();
        let next = self.responses.as_mut().poll_next(polled);
        drop(attached);
        match &next {
            Poll::Ready(Some(Ok(response))) if self.streaming.is_none() => {
                if matches!(response.event, Some(Event::Chunk(_))) {
                    let tracer = telemetry::tracer();
                    self.streaming = Some(tracer.start_with_context("stream", &self.context));
                }
            }
            Poll::Ready(Some(Err(status))) => {
                let span = self.context.span();
                span.set_status(SpanStatus::error(status.message().to_owned()));
            }
            _ => {}
        }
        next
    }
}

impl Drop for InSpan {
    fn drop(&mut self) {
        if let Some(mut streaming) = self.streaming.take() {
            streaming.end();
        }
        self.context.span().end();
    }
}

/// The codes as OpenTelemetry writes them.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}
