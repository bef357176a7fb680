//! What a process tells of itself: metrics and traces, by OpenTelemetry.
//!
//! Instruments and spans are taken from the library's global providers. Until [`Telemetry::start`] they do nothing and cost
//! next to nothing; so whoever measures need not know whether anybody listens. What cannot be sent is dropped: no buffer
//! grows without bound, and no answer waits for a collector.

mod aliases;
mod config;
mod exposition;
mod http_client;
mod metrics_door;
pub mod propagation;

use std::time::Duration;

use opentelemetry::{KeyValue, global, trace::TracerProvider as _};
use opentelemetry_otlp::{
    ExporterBuildError, MetricExporter, SpanExporter, WithExportConfig as _, WithHttpConfig as _,
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkError,
    metrics::SdkMeterProvider,
    propagation::TraceContextPropagator,
    trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider},
};
use prometheus::Registry;

pub use opentelemetry::global::BoxedSpan;

pub use config::{OtlpProtocol, OtlpTarget, TelemetryConfig, UnknownOtlpProtocol};
pub use exposition::{Exposition, Refresh};
pub use metrics_door::{CONTENT_TYPE, IsHealthy, serve};

/// The name of all instruments' and spans' scope.
pub const SCOPE: &str = "kvasir";
/// What waits to be sent; one span more is dropped.
const SPANS_WAITING_MAX: usize = 16_384;
const SPANS_SENT_MAX: usize = 1024;
const SPANS_EVERY: Duration = Duration::from_millis(500);
const SEND_DEADLINE: Duration = Duration::from_secs(5);
const END_DEADLINE: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("cannot send telemetry to {url}: {source}")]
    Otlp { url: String, source: ExporterBuildError },
    #[error("cannot keep metrics: {0}")]
    Metrics(#[from] OTelSdkError),
}

/// The providers of this process; none by default. To be ended, or the last spans are lost.
#[derive(Debug, Default)]
pub struct Telemetry {
    tracing: Option<SdkTracerProvider>,
    metering: Option<SdkMeterProvider>,
    exposition: Option<Exposition>,
}

impl Telemetry {
    /// Once per process, within a runtime. Errors if the collector's address makes no sense; one that is away is waited for.
    pub fn start(config: &TelemetryConfig) -> Result<Self, TelemetryError> {
        global::set_text_map_propagator(TraceContextPropagator::new());
        let resource = resource(config);
        let tracing = config
            .otlp
            .as_ref()
            .map(|target| tracing(target, config.trace_ratio, resource.clone()))
            .transpose()?;
        if let Some(provider) = &tracing {
            global::set_tracer_provider(provider.clone());
        }
        let (metering, exposition) = match config.exposed || config.otlp.is_some() {
            true => {
                let (provider, exposition) = metering(config, resource)?;
                global::set_meter_provider(provider.clone());
                (Some(provider), Some(exposition))
            }
            false => (None, None),
        };
        Ok(Self {
            tracing,
            metering,
            exposition,
        })
    }

    /// What `/metrics` shows, where metrics are kept.
    pub fn exposition(&self) -> Option<&Exposition> {
        self.exposition.as_ref()
    }

    /// A collector is told of metrics every now and then.
    pub fn sends(&self) -> bool {
        self.tracing.is_some()
    }

    /// Sends what waits, and ends. Takes a few seconds at most, also where no collector is.
    pub async fn end(self) {
        // The threads that send need this one's runtime meanwhile.
        let ending = tokio::task::spawn_blocking(move || {
            if let Some(provider) = self.tracing {
                // Whatever could not be sent is lost, and nobody can be told.
                let _ = provider.shutdown_with_timeout(END_DEADLINE);
            }
            if let Some(provider) = self.metering {
                let _ = provider.shutdown_with_timeout(END_DEADLINE);
            }
        });
        let _ = tokio::time::timeout(2 * END_DEADLINE, ending).await;
    }
}

fn resource(config: &TelemetryConfig) -> Resource {
    let named = std::env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.is_empty());
    let builder = Resource::builder().with_attributes([
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", config.instance.clone()),
        KeyValue::new("process.pid", i64::from(std::process::id())),
    ]);
    match named {
        true => builder.build(),
        false => builder.with_service_name(format!("kvasir-{}", config.role)).build(),
    }
}

/// The builders of both kinds have the same methods, and no trait that says so.
macro_rules! exporter {
    ($kind:ident, $target:expr, $path:literal) => {{
        let target: &OtlpTarget = $target;
        let exporter = match target.protocol {
            OtlpProtocol::Grpc => $kind::builder()
                .with_tonic()
                .with_endpoint(&target.url)
                .with_timeout(SEND_DEADLINE)
                .build(),
            OtlpProtocol::Http => $kind::builder()
                .with_http()
                .with_http_client(http_client::Blocking::new(SEND_DEADLINE))
                .with_endpoint(target.path($path))
                .with_timeout(SEND_DEADLINE)
                .build(),
        };
        exporter.map_err(|source| TelemetryError::Otlp {
            url: target.url.clone(),
            source,
        })
    }};
}

fn tracing(target: &OtlpTarget, ratio: f64, resource: Resource) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = exporter!(SpanExporter, target, "v1/traces")?;
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(SPANS_WAITING_MAX)
        .with_max_export_batch_size(SPANS_SENT_MAX)
        .with_scheduled_delay(SPANS_EVERY)
        .build();
    let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio)));
    Ok(SdkTracerProvider::builder()
        .with_span_processor(processor)
        .with_sampler(sampler)
        .with_resource(resource)
        .build())
}

fn metering(config: &TelemetryConfig, resource: Resource) -> Result<(SdkMeterProvider, Exposition), TelemetryError> {
    let registry = Registry::new();
    let exporter = opentelemetry_prometheus::exporter()
        .with_registry(registry.clone())
        .scope_info_enabled(false)
        .build()?;
    let mut builder = SdkMeterProvider::builder()
        .with_reader(exporter)
        .with_resource(resource);
    if let Some(target) = &config.otlp {
        let exporter = exporter!(MetricExporter, target, "v1/metrics")?;
        builder = builder.with_periodic_exporter(exporter);
    }
    Ok((builder.build(), Exposition::new(registry, config.vllm_names)))
}

/// Where spans begin.
pub fn tracer() -> global::BoxedTracer {
    global::tracer_provider().tracer(SCOPE)
}

/// Where instruments are made.
pub fn meter() -> opentelemetry::metrics::Meter {
    global::meter(SCOPE)
}
