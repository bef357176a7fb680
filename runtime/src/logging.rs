//! Where log lines go: standard error, as text or as JSON, filtered by `KVASIR_LOG` or `RUST_LOG`, and by what an operator says
//! later.

use std::{
    io::{IsTerminal, stderr},
    str::FromStr,
    sync::OnceLock,
};

use opentelemetry::{Context, trace::TraceContextExt as _};
use serde_json::{Map, Value};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter, Registry,
    filter::ParseError,
    fmt::{
        self, FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime as _, SystemTime},
    },
    layer::SubscriberExt as _,
    registry,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt as _,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown log format `{0}`; supported: text, json")]
pub struct UnknownLogFormat(pub String);

impl FromStr for LogFormat {
    type Err = UnknownLogFormat;

    fn from_str(text: &str) -> Result<Self, UnknownLogFormat> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(UnknownLogFormat(text.to_owned())),
        }
    }
}

impl std::fmt::Display for LogFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    #[error(
        "`{filter}` is no log filter: {source}; expected levels by target, as in `debug` or `info,kvasir_coordinator=debug`"
    )]
    Filter { filter: String, source: ParseError },
    #[error("this process does not log by itself")]
    NotStarted,
}

type Filter = reload::Handle<EnvFilter, Registry>;

/// Of this process, once it logs.
static FILTER: OnceLock<Filter> = OnceLock::new();
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Of this process' lines.
pub fn format() -> LogFormat {
    FORMAT.get().copied().unwrap_or_default()
}

/// Starts logging, once per process; a second call changes nothing. `default` holds where neither variable is set.
pub fn start(format: LogFormat, default: &str) {
    let filter = ["KVASIR_LOG", "RUST_LOG"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .unwrap_or_else(|| default.to_owned());
    let (filter, handle) = reload::Layer::new(EnvFilter::new(filter));
    let lines = fmt::layer().with_writer(stderr);
    let subscriber = registry().with(filter);
    // An embedding program may have a subscriber of its own: that one stays.
    let started = match format {
        LogFormat::Text => {
            let lines = lines.with_ansi(stderr().is_terminal()).with_target(false);
            subscriber.with(lines).try_init()
        }
        LogFormat::Json => subscriber.with(lines.event_format(JsonLines)).try_init(),
    };
    if started.is_ok() {
        let _ = FILTER.set(handle);
        let _ = FORMAT.set(format);
    }
}

/// From now on these lines are written. Errors if it is no filter; then nothing changes.
pub fn set_filter(filter: &str) -> Result<(), FilterError> {
    let parsed = EnvFilter::builder()
        .parse(filter)
        .map_err(|source| FilterError::Filter {
            filter: filter.to_owned(),
            source,
        })?;
    let handle = FILTER.get().ok_or(FilterError::NotStarted)?;
    handle.reload(parsed).map_err(|_| FilterError::NotStarted)
}

/// A line an object: time, level, target and fields, and where in a trace it was written.
struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> std::fmt::Result {
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut line = Map::new();
        line.insert("timestamp".to_owned(), timestamp.into());
        line.insert("level".to_owned(), metadata.level().as_str().into());
        line.insert("fields".to_owned(), Value::Object(fields.0));
        line.insert("target".to_owned(), metadata.target().into());
        let context = Context::current();
        let span = context.span();
        let span = span.span_context();
        if span.is_valid() {
            line.insert("trace_id".to_owned(), span.trace_id().to_string().into());
            line.insert("span_id".to_owned(), span.span_id().to_string().into());
        }
        writeln!(writer, "{}", Value::Object(line))
    }
}

#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn insert(&mut self, field: &Field, value: Value) {
        self.0.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.insert(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value.into());
    }
}
