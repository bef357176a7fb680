//! One answer as it is written: when it had its turn, its tokens, its end. Whoever reads it late changes nothing here.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use kvasir_kv::FinishReason;
use kvasir_runtime::telemetry;
use opentelemetry::{
    Context, KeyValue,
    trace::{Span as _, SpanContext, TraceContextExt as _, Tracer as _},
};

use super::RequestRecord;
use crate::{MigrationOutcome, MigrationReport, SequenceError, Usage, token_log::Ending};

/// Does nothing where no request is recorded.
#[derive(Debug, Default)]
pub struct AnswerMeter(Option<Measured>);

#[derive(Debug)]
struct Measured {
    request: Arc<RequestRecord>,
    began: SystemTime,
    times: Mutex<Times>,
}

#[derive(Debug, Default)]
struct Times {
    dispatched: bool,
    first: Option<Instant>,
    last: Option<Instant>,
    tokens: u64,
    ended: bool,
}

impl AnswerMeter {
    pub fn new(request: Arc<RequestRecord>) -> Self {
        Self(Some(Measured {
            request,
            began: SystemTime::now(),
            times: Mutex::default(),
        }))
    }

    /// Where its request is in a trace, if that is recorded.
    pub fn traced(&self) -> Option<SpanContext> {
        let measured = self.0.as_ref()?;
        let span = measured.request.context().span();
        let span = span.span_context();
        (span.is_valid() && span.is_sampled()).then(|| span.clone())
    }

    /// Of its request's span, for log lines and spans that belong to it.
    pub fn context(&self) -> Option<&Context> {
        self.0.as_ref().map(|measured| measured.request.context())
    }

    /// It has a place in a step.
    pub fn dispatched(&self) {
        let Some(measured) = &self.0 else { return };
        let mut times = measured.lock();
        if std::mem::replace(&mut times.dispatched, true) {
            return;
        }
        drop(times);
        measured.outcome("Dispatched");
        if self.traced().is_some() {
            let tracer = telemetry::tracer();
            let span = tracer.span_builder("queue").with_start_time(measured.began);
            span.start_with_context(&tracer, measured.request.context()).end();
        }
    }

    /// It went to another group, or did not.
    pub fn moved(&self, report: &MigrationReport) {
        if self.traced().is_none() {
            return;
        }
        let Some(context) = self.context() else { return };
        let (tracer, now) = (telemetry::tracer(), SystemTime::now());
        let mut span = tracer
            .span_builder("transfer")
            .with_start_time(now.checked_sub(report.took).unwrap_or(now))
            .with_attributes([
                KeyValue::new("kvasir.source_group", i64::from(report.source.0)),
                KeyValue::new("kvasir.target_group", i64::from(report.target.0)),
                KeyValue::new("kvasir.reason", report.reason.name()),
                KeyValue::new("kvasir.outcome", report.outcome.name()),
                KeyValue::new("kvasir.cells", report.cells as i64),
                KeyValue::new("kvasir.bytes", report.bytes as i64),
            ])
            .start_with_context(&tracer, context);
        if let MigrationOutcome::Moved { pause } = report.outcome {
            span.set_attribute(KeyValue::new("kvasir.pause_us", pause.as_micros() as i64));
        }
        span.end_with_timestamp(now);
    }

    pub fn token(&self) {
        let Some(measured) = &self.0 else { return };
        let now = Instant::now();
        let mut times = measured.lock();
        let before = times.last.replace(now);
        times.first.get_or_insert(now);
        times.tokens += 1;
        drop(times);
        let meters = &measured.request.meters;
        let took = before.map(|before| now.saturating_duration_since(before));
        meters.recent.token(now, took);
        match took {
            Some(took) => meters.inter_token.record(took.as_secs_f64()),
            None => measured.request.first_token(now),
        }
    }

    /// The first end counts.
    pub fn ended(&self, ending: &Ending) {
        let Some(measured) = &self.0 else { return };
        let mut times = measured.lock();
        if std::mem::replace(&mut times.ended, true) {
            return;
        }
        let (first, last, tokens, dispatched) = (times.first, times.last, times.tokens, times.dispatched);
        drop(times);
        let (reason, error) = told(ending);
        let meters = &measured.request.meters;
        meters.finished.add(1, &[KeyValue::new("finish_reason", reason)]);
        if !dispatched && let Some(outcome) = evicted(ending) {
            measured.outcome(outcome);
        }
        // Of one that never had its turn nobody knows how long it would have waited.
        if let Ending::Finished {
            usage: Usage { queued, .. },
            ..
        } = ending
            && dispatched
        {
            meters.queue.record(queued.as_secs_f64());
            if let (Some(first), Some(last)) = (first, last) {
                let before_first = first.saturating_duration_since(measured.request.began);
                meters.prefill.record(seconds(before_first.saturating_sub(*queued)));
                meters.decode.record(seconds(last.saturating_duration_since(first)));
            }
        }
        measured.request.answer_ended(tokens, error);
    }
}

impl Drop for AnswerMeter {
    fn drop(&mut self) {
        // The client went away before it was submitted.
        self.ended(&Ending::Finished {
            reason: FinishReason::Cancelled,
            usage: Usage::default(),
        });
    }
}

impl Measured {
    fn outcome(&self, outcome: &'static str) {
        let outcomes = &self.request.meters.outcomes;
        outcomes.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    fn lock(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

/// The reason as it is counted, and what kind of error that is.
fn told(ending: &Ending) -> (&'static str, Option<&'static str>) {
    match ending {
        Ending::Finished { reason, .. } => match reason {
            FinishReason::Stop => ("stop", None),
            FinishReason::Length => ("length", None),
            FinishReason::Cancelled => ("cancelled", Some("cancelled")),
            FinishReason::Numerical => ("numerical", Some("numerical")),
            FinishReason::Deadline => ("deadline", Some("deadline_exceeded")),
        },
        Ending::Failed(
            SequenceError::QueueFull { .. } | SequenceError::QueueTokens { .. } | SequenceError::QueueWait { .. },
        ) => ("rejected", Some("resource_exhausted")),
        Ending::Failed(SequenceError::Unavailable { .. }) | Ending::Shutdown => ("failed", Some("unavailable")),
        Ending::Failed(SequenceError::Numerical { .. }) => ("numerical", Some("numerical")),
        Ending::Failed(_) => ("failed", Some("invalid_argument")),
    }
}

/// In the words of endpoint pickers.
fn evicted(ending: &Ending) -> Option<&'static str> {
    match ending {
        Ending::Finished { reason, .. } => match reason {
            FinishReason::Cancelled => Some("EvictedContextCancelled"),
            FinishReason::Deadline => Some("EvictedTTL"),
            _ => None,
        },
        Ending::Failed(SequenceError::QueueFull { .. } | SequenceError::QueueTokens { .. }) => Some("RejectedCapacity"),
        Ending::Failed(SequenceError::QueueWait { .. }) => Some("EvictedTTL"),
        Ending::Failed(SequenceError::Unavailable { .. }) => Some("RejectedNoEndpoints"),
        Ending::Failed(_) | Ending::Shutdown => None,
    }
}
