//! The same metrics by the names that vLLM's dashboards, routers and autoscalers read.
//!
//! An alias has the values of the metric that it is of, with vLLM's two labels in place of ours. A dot or a colon in a name is
//! nothing that OpenTelemetry would take, so they are made here, of what is exposed.

use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};

/// Ours, vLLM's, and the labels that change their names.
type Alias = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const ALIASES: &[Alias] = &[
    ("kvasir_requests_waiting", "vllm:num_requests_waiting", &[]),
    ("kvasir_requests_running", "vllm:num_requests_running", &[]),
    ("kvasir_kv_cache_usage_ratio", "vllm:kv_cache_usage_perc", &[]),
    (
        "kvasir_cache_config_info",
        "vllm:cache_config_info",
        &[("block_size", "block_size"), ("num_blocks", "num_gpu_blocks")],
    ),
    (
        "kvasir_prefix_cache_queries_total",
        "vllm:prefix_cache_queries_total",
        &[],
    ),
    ("kvasir_prefix_cache_hits_total", "vllm:prefix_cache_hits_total", &[]),
    ("kvasir_prompt_tokens_total", "vllm:prompt_tokens_total", &[]),
    ("kvasir_generation_tokens_total", "vllm:generation_tokens_total", &[]),
    (
        "kvasir_requests_total",
        "vllm:request_success_total",
        &[("finish_reason", "finished_reason")],
    ),
    (
        "gen_ai_server_time_to_first_token_seconds",
        "vllm:time_to_first_token_seconds",
        &[],
    ),
    (
        "kvasir_inter_token_latency_seconds",
        "vllm:inter_token_latency_seconds",
        &[],
    ),
    (
        "gen_ai_server_request_duration_seconds",
        "vllm:e2e_request_latency_seconds",
        &[],
    ),
    (
        "kvasir_request_queue_duration_seconds",
        "vllm:request_queue_time_seconds",
        &[],
    ),
    (
        "kvasir_request_prefill_duration_seconds",
        "vllm:request_prefill_time_seconds",
        &[],
    ),
    (
        "kvasir_request_decode_duration_seconds",
        "vllm:request_decode_time_seconds",
        &[],
    ),
    ("kvasir_preemptions_total", "vllm:num_preemptions_total", &[]),
];

/// What vLLM counts as a success.
const SUCCESSES: [&str; 2] = ["stop", "length"];

pub fn of(families: &[MetricFamily]) -> Vec<MetricFamily> {
    let model = model_name(families);
    let named = |name: &str| families.iter().find(|family| family.name() == name);
    ALIASES
        .iter()
        .filter_map(|alias| Some(renamed(named(alias.0)?, alias, &model)))
        .collect()
}

/// As `kvasir_build_info` tells it.
fn model_name(families: &[MetricFamily]) -> String {
    let info = families.iter().find(|family| family.name() == "kvasir_build_info");
    let labels = info
        .and_then(|family| family.get_metric().first())
        .map(Metric::get_label);
    let model = labels.unwrap_or_default().iter().find(|label| label.name() == "model");
    model.map_or_else(String::new, |label| label.value().to_owned())
}

fn renamed(family: &MetricFamily, (_, name, labels): &Alias, model: &str) -> MetricFamily {
    let mut alias = family.clone();
    alias.set_name((*name).to_owned());
    let metrics = family.get_metric().iter();
    // One that failed is not among the latencies of vLLM, which are of requests that ended well.
    let metrics = metrics.filter(|metric| !metric.get_label().iter().any(|label| label.name() == "error_type"));
    let metrics = metrics.filter(|metric| {
        let reason = metric.get_label().iter().find(|label| label.name() == "finish_reason");
        reason.is_none_or(|reason| SUCCESSES.contains(&reason.value()))
    });
    let mut metrics: Vec<Metric> = metrics.cloned().collect();
    for metric in &mut metrics {
        let kept = metric.get_label().iter().filter_map(|label| {
            let (_, renamed) = labels.iter().find(|(ours, _)| *ours == label.name())?;
            Some(pair(renamed, label.value()))
        });
        let mut kept: Vec<LabelPair> = kept.collect();
        kept.extend([pair("engine", "0"), pair("model_name", model)]);
        metric.set_label(kept);
    }
    alias.set_metric(merged(metrics, family.get_field_type()));
    alias
}

/// Series that differ by labels which are gone are one.
fn merged(metrics: Vec<Metric>, kind: MetricType) -> Vec<Metric> {
    let mut all: Vec<Metric> = Vec::new();
    for metric in metrics {
        match all.iter_mut().find(|other| other.get_label() == metric.get_label()) {
            Some(other) => add(other, &metric, kind),
            None => all.push(metric),
        }
    }
    all
}

fn add(sum: &mut Metric, other: &Metric, kind: MetricType) {
    match kind {
        MetricType::COUNTER => {
            let mut counter = sum.get_counter().clone();
            counter.set_value(counter.get_value() + other.get_counter().get_value());
            sum.set_counter(counter);
        }
        MetricType::HISTOGRAM => {
            let (mut histogram, more) = (sum.get_histogram().clone(), other.get_histogram());
            histogram.set_sample_count(histogram.get_sample_count() + more.get_sample_count());
            histogram.set_sample_sum(histogram.get_sample_sum() + more.get_sample_sum());
            let mut buckets = histogram.get_bucket().to_vec();
            for (bucket, more) in buckets.iter_mut().zip(more.get_bucket()) {
                bucket.set_cumulative_count(bucket.cumulative_count() + more.cumulative_count());
            }
            histogram.set_bucket(buckets);
            sum.set_histogram(histogram);
        }
        // What gauges stand for cannot be told from here, and none of them has labels that go.
        _ => {}
    }
}

fn pair(name: &str, value: &str) -> LabelPair {
    let mut label = LabelPair::default();
    label.set_name(name.to_owned());
    label.set_value(value.to_owned());
    label
}
