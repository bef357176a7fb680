//! What is measured of requests: OpenTelemetry's names for servers of generative models, and ours.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use kvasir_kv::Request;
use kvasir_runtime::telemetry;
use opentelemetry::{
    Context, KeyValue,
    metrics::{BoundHistogram, Counter, Histogram, Meter},
    trace::{Status as SpanStatus, TraceContextExt as _},
};

use super::Recent;

/// Bucket bounds as OpenTelemetry's conventions for generative models give them, in seconds and tokens.
const DURATION_BOUNDS: [f64; 14] = [
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
];
const FIRST_TOKEN_BOUNDS: [f64; 16] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
const PER_TOKEN_BOUNDS: [f64; 13] = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];
const TOKEN_BOUNDS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
/// Ours begin lower: a small model on a quick machine takes a millisecond a token.
const LATENCY_BOUNDS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
const PHASE_BOUNDS: [f64; 17] = [
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];

const FINISH_REASONS: [&str; 7] = [
    "stop",
    "length",
    "cancelled",
    "numerical",
    "deadline",
    "failed",
    "rejected",
];
const OUTCOMES: [&str; 5] = [
    "Dispatched",
    "RejectedCapacity",
    "RejectedNoEndpoints",
    "EvictedTTL",
    "EvictedContextCancelled",
];

/// The instruments, once a coordinator.
#[derive(Debug)]
pub struct RequestMeters {
    model: String,
    duration: Histogram<f64>,
    first_token: Histogram<f64>,
    per_token: Histogram<f64>,
    tokens: Histogram<u64>,
    pub(super) inter_token: BoundHistogram<f64>,
    pub(super) queue: BoundHistogram<f64>,
    pub(super) prefill: BoundHistogram<f64>,
    pub(super) decode: BoundHistogram<f64>,
    pub(super) finished: Counter<u64>,
    pub(super) outcomes: Counter<u64>,
    pub(super) recent: Arc<Recent>,
}

impl RequestMeters {
    pub fn new(model: &str, recent: Arc<Recent>) -> Self {
        let meter = telemetry::meter();
        let seconds = |name, description, bounds: &[f64]| seconds(&meter, name, description, bounds);
        let ours = |name, description, bounds: &[f64]| seconds(name, description, bounds).bind(&[]);
        let counter = |name, description| meter.u64_counter(name).with_description(description).build();
        let finished = counter("kvasir.requests", "Answers that have ended, by reason");
        let outcomes = counter("kvasir.request.outcomes", "What became of answers in the queue");
        // So that a series is there before its first event, and rates begin at nothing.
        let zero = |counter: &Counter<u64>, label: &'static str, values: &[&'static str]| {
            values
                .iter()
                .for_each(|value| counter.add(0, &[KeyValue::new(label, *value)]));
        };
        zero(&finished, "finish_reason", &FINISH_REASONS);
        zero(&outcomes, "outcome", &OUTCOMES);
        let tokens = meter.u64_histogram("gen_ai.client.token.usage");
        let tokens = tokens.with_unit("{token}").with_boundaries(TOKEN_BOUNDS.to_vec());
        Self {
            model: model.to_owned(),
            duration: seconds(
                "gen_ai.server.request.duration",
                "From a request's arrival to the end of its answer",
                &DURATION_BOUNDS,
            ),
            first_token: seconds(
                "gen_ai.server.time_to_first_token",
                "From a request's arrival to its first token",
                &FIRST_TOKEN_BOUNDS,
            ),
            per_token: seconds(
                "gen_ai.server.time_per_output_token",
                "After the first token: time by tokens of the answer",
                &PER_TOKEN_BOUNDS,
            ),
            tokens: tokens.with_description("Tokens of prompts and answers").build(),
            inter_token: ours(
                "kvasir.inter_token_latency",
                "From one token of an answer to the next",
                &LATENCY_BOUNDS,
            ),
            queue: ours(
                "kvasir.request.queue.duration",
                "From an answer's arrival to its first step",
                &PHASE_BOUNDS,
            ),
            prefill: ours(
                "kvasir.request.prefill.duration",
                "From an answer's first step to its first token",
                &PHASE_BOUNDS,
            ),
            decode: ours(
                "kvasir.request.decode.duration",
                "From an answer's first token to its last",
                &PHASE_BOUNDS,
            ),
            finished,
            outcomes,
            recent,
        }
    }

    /// A request that was refused before it had any answer. `code`: of gRPC.
    pub fn refused(&self, operation: &'static str, began: Instant, code: &'static str) {
        let mut attributes = self.attributes(operation);
        attributes.push(KeyValue::new("error.type", code));
        self.duration.record(began.elapsed().as_secs_f64(), &attributes);
    }

    fn attributes(&self, operation: &'static str) -> Vec<KeyValue> {
        vec![
            KeyValue::new("gen_ai.operation.name", operation),
            KeyValue::new("gen_ai.provider.name", "kvasir"),
            KeyValue::new("gen_ai.request.model", self.model.clone()),
        ]
    }
}

pub(super) fn seconds(meter: &Meter, name: &'static str, description: &'static str, bounds: &[f64]) -> Histogram<f64> {
    let histogram = meter.f64_histogram(name).with_unit("s");
    histogram
        .with_description(description)
        .with_boundaries(bounds.to_vec())
        .build()
}

/// One request, all its answers together.
#[derive(Debug)]
pub struct RequestRecord {
    pub(super) meters: Arc<RequestMeters>,
    operation: &'static str,
    pub(super) began: Instant,
    /// Its span.
    context: Context,
    prompt_tokens: u32,
    first_token: Mutex<Option<Duration>>,
    answers_left: AtomicU32,
    output_tokens: AtomicU64,
    error: Mutex<Option<&'static str>>,
}

impl RequestRecord {
    pub fn new(
        meters: Arc<RequestMeters>,
        operation: &'static str,
        began: Instant,
        context: Context,
        request: &Request,
        answers: u32,
    ) -> Arc<Self> {
        Arc::new(Self {
            meters,
            operation,
            began,
            context,
            prompt_tokens: request.prompt.len() as u32,
            first_token: Mutex::default(),
            answers_left: AtomicU32::new(answers),
            output_tokens: AtomicU64::default(),
            error: Mutex::default(),
        })
    }

    pub fn context(&self) -> &Context {
        &self.context
    }

    pub(super) fn first_token(&self, now: Instant) {
        let mut first = self.first_token.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            let took = now.saturating_duration_since(self.began);
            *first = Some(took);
            let attributes = self.meters.attributes(self.operation);
            self.meters.first_token.record(took.as_secs_f64(), &attributes);
            self.meters.recent.first_token(now, took);
        }
    }

    /// One of its answers has ended. With the last one the request has.
    pub(super) fn answer_ended(&self, tokens: u64, error: Option<&'static str>) {
        self.output_tokens.fetch_add(tokens, Ordering::Relaxed);
        if let Some(error) = error {
            self.error
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert(error);
        }
        if self.answers_left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.ended();
        }
    }

    fn ended(&self) {
        let took = self.began.elapsed();
        let error = *self.error.lock().unwrap_or_else(PoisonError::into_inner);
        let output = self.output_tokens.load(Ordering::Relaxed);
        let mut attributes = self.meters.attributes(self.operation);
        self.count_tokens(&attributes, output);
        let first = *self.first_token.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = first.filter(|_| output > 1) {
            let each = took.saturating_sub(first).as_secs_f64() / (output - 1) as f64;
            self.meters.per_token.record(each, &attributes);
        }
        if let Some(error) = error {
            attributes.push(KeyValue::new("error.type", error));
        }
        self.meters.duration.record(took.as_secs_f64(), &attributes);
        let span = self.context.span();
        span.set_attribute(KeyValue::new(
            "gen_ai.usage.input_tokens",
            i64::from(self.prompt_tokens),
        ));
        span.set_attribute(KeyValue::new("gen_ai.usage.output_tokens", output as i64));
        if let Some(error) = error {
            span.set_attribute(KeyValue::new("error.type", error));
            span.set_status(SpanStatus::error(error));
        }
    }

    fn count_tokens(&self, attributes: &[KeyValue], output: u64) {
        for (kind, count) in [("input", u64::from(self.prompt_tokens)), ("output", output)] {
            let mut attributes = attributes.to_vec();
            attributes.push(KeyValue::new("gen_ai.token.type", kind));
            self.meters.tokens.record(count, &attributes);
        }
    }
}
