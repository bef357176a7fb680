//! What an operator decides of telemetry.

use std::{fmt, str::FromStr};

/// How a collector is spoken to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OtlpProtocol {
    #[default]
    Grpc,
    /// Protobuf over HTTP/1.1.
    Http,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown protocol `{0}`; supported: grpc, http (or http/protobuf)")]
pub struct UnknownOtlpProtocol(pub String);

impl FromStr for OtlpProtocol {
    type Err = UnknownOtlpProtocol;

    fn from_str(text: &str) -> Result<Self, UnknownOtlpProtocol> {
        match text {
            "grpc" => Ok(Self::Grpc),
            "http" | "http/protobuf" => Ok(Self::Http),
            _ => Err(UnknownOtlpProtocol(text.to_owned())),
        }
    }
}

impl fmt::Display for OtlpProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
        })
    }
}

/// A collector.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OtlpTarget {
    /// `http://host:port` or `https://host:port`
    pub url: String,
    pub protocol: OtlpProtocol,
}

impl OtlpTarget {
    pub(super) fn path(&self, path: &str) -> String {
        format!("{}/{path}", self.url.trim_end_matches('/'))
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct TelemetryConfig {
    /// coordinator, worker, gateway or client: part of the service's name.
    pub role: &'static str,
    /// Which of them.
    pub instance: String,
    /// Somebody may ask for `/metrics`.
    pub exposed: bool,
    /// vLLM's names as well.
    pub vllm_names: bool,
    pub otlp: Option<OtlpTarget>,
    /// The part of requests that are traced, 0 to 1, of those that come without a trace. Others are traced if their trace is.
    pub trace_ratio: f64,
}
