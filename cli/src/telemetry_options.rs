//! What a process tells of itself, and where: the flags that all roles share.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use clap::Args;
use kvasir_runtime::{
    parse_address, parse_endpoint,
    telemetry::{self, Exposition, IsHealthy, OtlpProtocol, OtlpTarget, Telemetry, TelemetryConfig},
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::coordinator::process_name;

/// Traces and metrics for a collector.
#[derive(Args, Clone, Debug)]
pub struct OtlpOptions {
    /// An OpenTelemetry collector to send traces and metrics to
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    otlp: Option<String>,
    /// How it is spoken to: grpc or http
    #[arg(long, env = "OTEL_EXPORTER_OTLP_PROTOCOL", default_value_t = OtlpProtocol::Grpc, value_name = "PROTOCOL")]
    otlp_protocol: OtlpProtocol,
    /// The part of requests that are traced, 0 to 1; those that come with a trace context are traced if that says so
    #[arg(long, env = "OTEL_TRACES_SAMPLER_ARG", default_value_t = 0.01, value_name = "RATIO", value_parser = ratio)]
    trace_ratio: f64,
}

/// And metrics for whoever asks.
#[derive(Args, Clone, Debug)]
pub struct TelemetryOptions {
    #[command(flatten)]
    otlp: OtlpOptions,
    /// A further address, in the open, for /metrics, /health and /live alone; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<String>,
    /// Metrics by vLLM's names as well
    #[arg(long)]
    vllm_metrics: bool,
}

fn ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err("expected a number from 0 to 1".to_owned()),
    }
}

impl OtlpOptions {
    fn target(&self) -> Result<Option<OtlpTarget>> {
        let Some(url) = self.otlp.as_deref().filter(|url| !url.is_empty()) else {
            return Ok(None);
        };
        let url = parse_endpoint(url).context("--otlp")?;
        Ok(Some(OtlpTarget {
            url,
            protocol: self.otlp_protocol,
        }))
    }

    /// Of a client: traces alone. Within a runtime.
    pub fn start(&self) -> Result<Telemetry> {
        let config = TelemetryConfig {
            role: "client",
            instance: process_name(),
            exposed: false,
            vllm_names: false,
            otlp: self.target()?,
            trace_ratio: self.trace_ratio,
        };
        Ok(Telemetry::start(&config)?)
    }
}

impl TelemetryOptions {
    /// Within a runtime. `exposed`: another door shows metrics, too.
    pub fn start(&self, role: &'static str, exposed: bool) -> Result<Telemetry> {
        let exposed = exposed || self.metrics.is_some();
        ensure!(
            exposed || !self.vllm_metrics,
            "--vllm-metrics is for those who read /metrics: give --metrics HOST:PORT too"
        );
        let config = TelemetryConfig {
            role,
            instance: process_name(),
            exposed,
            vllm_names: self.vllm_metrics,
            otlp: self.otlp.target()?,
            trace_ratio: self.otlp.trace_ratio,
        };
        Ok(Telemetry::start(&config)?)
    }

    pub async fn bind(&self) -> Result<Option<MetricsDoor>> {
        let Some(address) = &self.metrics else {
            return Ok(None);
        };
        let address = parse_address(address).context("--metrics")?;
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("cannot listen on {address} for --metrics"))?;
        let url = format!("http://{}", listener.local_addr()?);
        Ok(Some(MetricsDoor { listener, url }))
    }

    /// For a worker process of `up`: the same collector.
    pub fn to_worker_args(&self) -> Result<Vec<String>> {
        let Some(target) = self.otlp.target()? else {
            return Ok(Vec::new());
        };
        let (protocol, ratio) = (target.protocol.to_string(), self.otlp.trace_ratio.to_string());
        let flags = [
            ("--otlp", target.url),
            ("--otlp-protocol", protocol),
            ("--trace-ratio", ratio),
        ];
        Ok(flags
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect())
    }
}

/// Bound, and not served yet.
#[derive(Debug)]
pub struct MetricsDoor {
    listener: TcpListener,
    pub url: String,
}

impl MetricsDoor {
    pub fn serve(
        self,
        exposition: Option<Exposition>,
        is_healthy: impl Fn() -> bool + Send + Sync + 'static,
        shutdown: CancellationToken,
    ) -> JoinHandle<()> {
        let is_healthy: IsHealthy = Arc::new(is_healthy);
        tokio::spawn(telemetry::serve(self.listener, exposition, is_healthy, shutdown))
    }
}
