//! What a rank tells of its steps and of what it holds, as metrics, and as a span of each step that is traced.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Instant, SystemTime},
};

use kvasir_kv::{EpochSpec, LoadReport, NumericsId, Rank, StepPlan, StepTimes};
use kvasir_runtime::telemetry;
use opentelemetry::{
    Context, KeyValue,
    metrics::{BoundCounter, BoundHistogram, Meter},
    trace::{Span as _, SpanKind, Tracer as _},
};

/// Seconds: of a step, from a small model's to a long prompt's.
pub const STEP_BOUNDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Does nothing by default.
#[derive(Debug, Default)]
pub struct RankMeter {
    instruments: Option<Instruments>,
    holdings: Arc<Holdings>,
    cell_bytes: u64,
    traced: Option<Context>,
}

#[derive(Debug)]
struct Instruments {
    steps: BoundCounter<u64>,
    compute: BoundHistogram<f64>,
    reduce: BoundHistogram<f64>,
    total: BoundHistogram<f64>,
}

/// Read at a scrape.
#[derive(Debug, Default)]
struct Holdings {
    rank: AtomicU64,
    term: AtomicU64,
    epoch: AtomicU64,
    weight_bytes: AtomicU64,
    kv_bytes: AtomicU64,
}

impl RankMeter {
    /// `model`: what clients call it unless they are told otherwise.
    pub fn new(cell_bytes: u64, numerics_id: NumericsId, model: String) -> Self {
        let meter = telemetry::meter();
        let info = [
            KeyValue::new("version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("numerics_id", numerics_id.to_string()),
            KeyValue::new("model", model),
        ];
        meter
            .u64_observable_gauge("kvasir.build_info")
            .with_description("What this is; always 1")
            .with_callback(move |observer| observer.observe(1, &info))
            .build();
        let holdings = Arc::new(Holdings::default());
        holdings.show(&meter);
        let seconds = meter
            .f64_histogram("kvasir.worker.step.duration")
            .with_unit("s")
            .with_description("Steps of this rank, by part")
            .with_boundaries(STEP_BOUNDS.to_vec())
            .build();
        let part = |name: &'static str| seconds.bind(&[KeyValue::new("part", name)]);
        let steps = meter
            .u64_counter("kvasir.worker.steps")
            .with_description("Steps that this rank has computed");
        let steps = steps.build();
        steps.add(0, &[]);
        let instruments = Instruments {
            steps: steps.bind(&[]),
            compute: part("compute"),
            reduce: part("reduce"),
            total: part("total"),
        };
        Self {
            instruments: Some(instruments),
            holdings,
            cell_bytes,
            traced: None,
        }
    }

    /// The next step is recorded as a child of this.
    pub fn trace_next(&mut self, context: Context) {
        self.traced = Some(context);
    }

    pub fn begin_epoch(&mut self, spec: &EpochSpec, load: &LoadReport) {
        let heads = &spec.shares[spec.rank.0 as usize].attention;
        let cells = u64::from(spec.num_blocks) * u64::from(heads.end - heads.start);
        let holdings = &self.holdings;
        let set = |value: &AtomicU64, now: u64| value.store(now, Ordering::Relaxed);
        set(&holdings.rank, u64::from(spec.rank.0));
        set(&holdings.term, spec.epoch.term);
        set(&holdings.epoch, spec.epoch.number);
        set(&holdings.weight_bytes, load.weight_bytes);
        set(&holdings.kv_bytes, cells * self.cell_bytes);
    }

    pub fn note_step(&mut self, plan: &StepPlan, rank: Rank, begun: Instant, times: StepTimes) {
        if let Some(instruments) = &self.instruments {
            let seconds = |us: u32| f64::from(us) / 1e6;
            instruments.steps.add(1);
            instruments.compute.record(seconds(times.compute_us));
            instruments.reduce.record(seconds(times.reduce_us));
            instruments.total.record(seconds(times.total_us));
        }
        if let Some(parent) = self.traced.take() {
            record(&parent, plan, rank, begun, times);
        }
    }
}

fn record(parent: &Context, plan: &StepPlan, rank: Rank, begun: Instant, times: StepTimes) {
    let now = SystemTime::now();
    let tokens: u32 = plan.work.iter().map(|work| work.num_tokens).sum();
    let mut span = telemetry::tracer()
        .span_builder("forward")
        .with_kind(SpanKind::Server)
        .with_start_time(now.checked_sub(begun.elapsed()).unwrap_or(now))
        .with_attributes([
            KeyValue::new("kvasir.rank", i64::from(rank.0)),
            KeyValue::new("kvasir.epoch", plan.epoch.to_string()),
            KeyValue::new("kvasir.step", plan.step.0 as i64),
            KeyValue::new("kvasir.tokens", i64::from(tokens)),
            KeyValue::new("kvasir.compute_us", i64::from(times.compute_us)),
            KeyValue::new("kvasir.reduce_us", i64::from(times.reduce_us)),
        ])
        .start_with_context(&telemetry::tracer(), parent);
    span.end_with_timestamp(now);
}

impl Holdings {
    fn show(self: &Arc<Self>, meter: &Meter) {
        type Read = fn(&Holdings) -> &AtomicU64;
        let gauges: [(&str, &str, &str, Read); 5] = [
            ("kvasir.worker.rank", "", "Place in its group", |held| &held.rank),
            ("kvasir.worker.term", "", "Term of its epoch", |held| &held.term),
            ("kvasir.worker.epoch", "", "Number of its epoch", |held| &held.epoch),
            ("kvasir.worker.weight", "By", "Weights that it holds", |held| {
                &held.weight_bytes
            }),
            ("kvasir.worker.kv", "By", "KV cells that it has room for", |held| {
                &held.kv_bytes
            }),
        ];
        for (name, unit, description, read) in gauges {
            let holdings = Arc::clone(self);
            meter
                .u64_observable_gauge(name)
                .with_unit(unit)
                .with_description(description)
                .with_callback(move |observer| observer.observe(read(&holdings).load(Ordering::Relaxed), &[]))
                .build();
        }
    }
}
