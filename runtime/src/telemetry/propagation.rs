//! W3C trace context, from and to what travels: headers of HTTP, metadata of gRPC, a field of a message.

use std::collections::HashMap;

use http::HeaderMap;
use opentelemetry::{
    Context, global,
    propagation::{Extractor, Injector},
    trace::{SpanContext, TraceContextExt as _},
};
use opentelemetry_http::HeaderExtractor;
use tonic::metadata::{AsciiMetadataKey, KeyRef, MetadataMap};

const TRACEPARENT: &str = "traceparent";

/// Where the sender of these headers is in its trace.
pub fn of_headers(headers: &HeaderMap) -> Context {
    global::get_text_map_propagator(|propagator| {
        propagator.extract_with_context(&Context::new(), &HeaderExtractor(headers))
    })
}

pub fn of_metadata(metadata: &MetadataMap) -> Context {
    global::get_text_map_propagator(|propagator| propagator.extract_with_context(&Context::new(), &Metadata(metadata)))
}

pub fn into_metadata(context: &Context, metadata: &mut MetadataMap) {
    global::get_text_map_propagator(|propagator| propagator.inject_context(context, &mut MetadataMut(metadata)));
}

/// As the header `traceparent` has it; empty for a span that nobody records.
pub fn to_text(span: &SpanContext) -> String {
    if !span.is_sampled() {
        return String::new();
    }
    let mut carrier = HashMap::new();
    let context = Context::new().with_remote_span_context(span.clone());
    global::get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut carrier));
    carrier.remove(TRACEPARENT).unwrap_or_default()
}

/// What `to_text` made; `None` if there is nothing to be recorded.
pub fn of_text(text: &str) -> Option<Context> {
    if text.is_empty() {
        return None;
    }
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), text.to_owned())]);
    let context =
        global::get_text_map_propagator(|propagator| propagator.extract_with_context(&Context::new(), &carrier));
    context.span().span_context().is_sampled().then_some(context)
}

struct Metadata<'a>(&'a MetadataMap);

impl Extractor for Metadata<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        let keys = self.0.keys().filter_map(|key| match key {
            KeyRef::Ascii(key) => Some(key.as_str()),
            KeyRef::Binary(_) => None,
        });
        keys.collect()
    }
}

struct MetadataMut<'a>(&'a mut MetadataMap);

impl Injector for MetadataMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (AsciiMetadataKey::from_bytes(key.as_bytes()), value.parse()) {
            self.0.insert(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use opentelemetry_sdk::propagation::TraceContextPropagator;

    use super::*;

    const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_context_survives_every_carrier() {
        global::set_text_map_propagator(TraceContextPropagator::new());
        let context = of_text(SAMPLED).unwrap();
        let (mut headers, mut metadata) = (HeaderMap::new(), MetadataMap::new());
        headers.insert(TRACEPARENT, HeaderValue::from_static(SAMPLED));
        into_metadata(&context, &mut metadata);
        for found in [of_headers(&headers), of_metadata(&metadata)] {
            assert_eq!(to_text(found.span().span_context()), SAMPLED);
        }
    }

    #[test]
    fn what_is_not_recorded_or_not_a_context_is_nothing() {
        global::set_text_map_propagator(TraceContextPropagator::new());
        let unsampled = SAMPLED.replace("-01", "-00");
        for text in ["", "nonsense", "00-zz-b7ad6b7169203331-01", unsampled.as_str()] {
            assert!(of_text(text).is_none(), "{text}");
        }
    }
}
