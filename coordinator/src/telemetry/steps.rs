//! Steps, from their plan to their output: where their time went, and their spans.
//!
//! A step serves many requests. Its span is a child of the first of them that is traced, and links all that are.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use kvasir_kv::{Epoch, GroupId, SequenceId, StepId, StepPlan, StepTimes};
use kvasir_runtime::{telemetry, telemetry::propagation};
use opentelemetry::{
    Context, KeyValue,
    metrics::{BoundHistogram, Histogram},
    trace::{Link, Span as _, SpanContext, SpanKind, TraceContextExt as _, Tracer as _},
};

use super::requests::seconds;

const STEP_BOUNDS: [f64; 18] = [
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 5.0,
];
const COUNT_BOUNDS: [f64; 14] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0,
];
/// More steps than any group has on the way; what is beyond belongs to epochs that are over.
const OUT_MAX: usize = 1024;

#[derive(Debug)]
pub struct StepMeter {
    duration: Histogram<f64>,
    tokens: Histogram<u64>,
    sequences: Histogram<u64>,
    groups: BTreeMap<GroupId, OfGroup>,
    /// By the number of the epoch, which names the group.
    epochs: BTreeMap<u64, GroupId>,
    /// Sent, and not done yet.
    out: BTreeMap<(Epoch, StepId), OutStep>,
}

#[derive(Debug)]
struct OfGroup {
    compute: BoundHistogram<f64>,
    reduce: BoundHistogram<f64>,
    wait: BoundHistogram<f64>,
    schedule: BoundHistogram<f64>,
    total: BoundHistogram<f64>,
    tokens: BoundHistogram<u64>,
    sequences: BoundHistogram<u64>,
    last: StepTimes,
}

#[derive(Debug)]
struct OutStep {
    sent: Instant,
    scheduling: Duration,
    tokens: u32,
    sequences: u32,
    /// Of the step, and of its execution.
    spans: Option<(Context, Context)>,
}

impl Default for StepMeter {
    fn default() -> Self {
        let meter = telemetry::meter();
        let counts = |name, description| {
            let histogram = meter.u64_histogram(name).with_description(description);
            histogram.with_boundaries(COUNT_BOUNDS.to_vec()).build()
        };
        Self {
            duration: seconds(
                &meter,
                "kvasir.step.duration",
                "Steps by part: on the first rank computing and reducing, waiting for the way and for the rank, planning",
                &STEP_BOUNDS,
            ),
            tokens: counts("kvasir.step.tokens", "Tokens that a step computes"),
            sequences: counts("kvasir.step.sequences", "Sequences of a step"),
            groups: BTreeMap::new(),
            epochs: BTreeMap::new(),
            out: BTreeMap::new(),
        }
    }
}

impl StepMeter {
    pub fn begin_epoch(&mut self, group: GroupId, epoch: Epoch) {
        self.epochs.retain(|_, known| *known != group);
        self.epochs.insert(epoch.number, group);
        self.out.retain(|(of, _), _| self.epochs.contains_key(&of.number));
    }

    /// A plan is about to be sent, to one rank or the next. Planning took `scheduling`. Returns what is to travel with it.
    /// `traced` tells where a sequence's request is in a trace.
    pub fn sent(
        &mut self,
        plan: &StepPlan,
        scheduling: Duration,
        traced: impl Fn(SequenceId) -> Option<SpanContext>,
    ) -> String {
        let key = (plan.epoch, plan.step);
        let step = self.out.entry(key).or_insert_with(|| OutStep {
            sent: Instant::now(),
            scheduling,
            tokens: plan.num_tokens(),
            sequences: plan.work.len() as u32,
            spans: begin_spans(plan, scheduling, traced),
        });
        let execution = step.spans.as_ref().map(|(_, execution)| execution.clone());
        if self.out.len() > OUT_MAX {
            self.out.pop_first();
        }
        execution.map_or_else(String::new, |execution| {
            propagation::to_text(execution.span().span_context())
        })
    }

    /// The first rank has told what came of it.
    pub fn done(&mut self, epoch: Epoch, step: StepId, times: StepTimes) {
        let (Some(out), Some(group)) = (self.out.remove(&(epoch, step)), self.epochs.get(&epoch.number)) else {
            return;
        };
        let took = out.sent.elapsed();
        let group = *group;
        let of_group = self.of_group(group);
        of_group.last = times;
        let us = |us: u32| f64::from(us) / 1e6;
        of_group.compute.record(us(times.compute_us));
        of_group.reduce.record(us(times.reduce_us));
        of_group.total.record(took.as_secs_f64());
        of_group.wait.record((took.as_secs_f64() - us(times.total_us)).max(0.0));
        of_group.schedule.record(out.scheduling.as_secs_f64());
        of_group.tokens.record(u64::from(out.tokens));
        of_group.sequences.record(u64::from(out.sequences));
        if let Some((step, execution)) = out.spans {
            step.span()
                .set_attribute(KeyValue::new("kvasir.group", i64::from(group.0)));
            execution
                .span()
                .set_attribute(KeyValue::new("kvasir.compute_us", i64::from(times.compute_us)));
            execution
                .span()
                .set_attribute(KeyValue::new("kvasir.reduce_us", i64::from(times.reduce_us)));
            execution.span().end();
            step.span().end();
        }
    }

    /// Of a group's last step.
    pub fn last_times(&self) -> BTreeMap<GroupId, StepTimes> {
        self.groups.iter().map(|(group, of)| (*group, of.last)).collect()
    }

    fn of_group(&mut self, group: GroupId) -> &mut OfGroup {
        let (duration, tokens, sequences) = (&self.duration, &self.tokens, &self.sequences);
        self.groups.entry(group).or_insert_with(|| {
            let named = KeyValue::new("group", group.0.to_string());
            let part = |name: &'static str| duration.bind(&[named.clone(), KeyValue::new("part", name)]);
            OfGroup {
                compute: part("compute"),
                reduce: part("reduce"),
                wait: part("wait"),
                schedule: part("schedule"),
                total: part("total"),
                tokens: tokens.bind(std::slice::from_ref(&named)),
                sequences: sequences.bind(std::slice::from_ref(&named)),
                last: StepTimes::default(),
            }
        })
    }
}

/// `None` unless a request of the step is traced.
fn begin_spans(
    plan: &StepPlan,
    scheduling: Duration,
    traced: impl Fn(SequenceId) -> Option<SpanContext>,
) -> Option<(Context, Context)> {
    let served: Vec<SpanContext> = plan.work.iter().filter_map(|work| traced(work.sequence)).collect();
    let first = served.first()?.clone();
    let (tracer, now) = (telemetry::tracer(), SystemTime::now());
    let planned_from = now.checked_sub(scheduling).unwrap_or(now);
    let step = tracer
        .span_builder("step")
        .with_start_time(planned_from)
        .with_links(served.into_iter().map(Link::with_context).collect())
        .with_attributes([
            KeyValue::new("kvasir.epoch", plan.epoch.to_string()),
            KeyValue::new("kvasir.step", plan.step.0 as i64),
            KeyValue::new("kvasir.tokens", i64::from(plan.num_tokens())),
            KeyValue::new("kvasir.sequences", plan.work.len() as i64),
        ])
        .start_with_context(&tracer, &Context::new().with_remote_span_context(first));
    let step = Context::new().with_span(step);
    let mut schedule = tracer
        .span_builder("schedule")
        .with_start_time(planned_from)
        .start_with_context(&tracer, &step);
    schedule.end_with_timestamp(now);
    let execution = tracer
        .span_builder("execute")
        .with_kind(SpanKind::Client)
        .with_start_time(now);
    let execution = execution.start_with_context(&tracer, &step);
    Some((step, Context::new().with_span(execution)))
}
