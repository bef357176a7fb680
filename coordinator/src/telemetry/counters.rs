//! The machine's counters and the door's, as metrics: which of them are one metric with a label, and what others are called.

use opentelemetry::KeyValue;

use super::gauges::{Labels, Show, label};
use crate::status::Counters;

/// Those that are told apart by a label, then all others by their names.
pub fn show(show: &Show) {
    for (name, unit, description, key, labelled) in LABELLED {
        show.counter(*name, unit, *description, move |now| {
            let values = labelled
                .iter()
                .map(|(value, read)| (read(&now.status.counters), vec![KeyValue::new(*key, *value)]));
            values.collect()
        });
    }
    show.counter(
        "kvasir.connections.refused",
        "",
        "Whom the door turned away, by reason",
        |now| {
            let reasons = now.refusals.iter();
            reasons
                .map(|(name, count)| {
                    let reason = name.strip_prefix("refused_").unwrap_or(name);
                    (*count, vec![label("reason", reason)])
                })
                .collect()
        },
    );
    for (place, (name, _)) in Counters::default().named().into_iter().enumerate() {
        let name = RENAMED
            .iter()
            .find(|(ours, _)| *ours == name)
            .map_or(name, |(_, shown)| shown);
        let (shown, unit) = match name.strip_suffix("_us") {
            // Sums of microseconds are told by histograms.
            Some(_) => continue,
            None => match name.strip_suffix("_bytes") {
                Some(name) => (name, "By"),
                None => (name, ""),
            },
        };
        if LABELLED.iter().any(|(name, ..)| *name == format!("kvasir.{shown}")) {
            continue;
        }
        let description = format!("Count of {} since the coordinator's start", name.replace('_', " "));
        show.counter(format!("kvasir.{shown}"), unit, description, move |now| {
            let value = now.status.counters.named()[place].1;
            vec![(value, Labels::new())]
        });
    }
}

type ReadCounter = fn(&Counters) -> u64;

/// Name, unit, description, the label's name, its values.
type Labelled = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static [(&'static str, ReadCounter)],
);

const LABELLED: &[Labelled] = &[
    (
        "kvasir.migrations",
        "",
        "Migrations that are over, by outcome",
        "outcome",
        &[
            ("moved", |counters| counters.migrations_moved),
            ("ended", |counters| counters.migrations_ended),
            ("failed", |counters| counters.migrations_failed),
        ],
    ),
    (
        "kvasir.reshards",
        "",
        "Reshards that are over, by outcome",
        "outcome",
        &[
            ("switched", |counters| counters.reshards_switched),
            ("failed", |counters| counters.reshards_failed),
        ],
    ),
    (
        "kvasir.prefix_copies",
        "",
        "Copies of cached prefixes that are over, by outcome",
        "outcome",
        &[
            ("adopted", |counters| counters.prefix_copies_adopted),
            ("failed", |counters| counters.prefix_copies_failed),
        ],
    ),
    (
        "kvasir.transfer",
        "By",
        "KV cells that went from worker to worker, by their way",
        "path",
        &[
            ("shared_memory", |counters| counters.transfer_shared_bytes),
            ("connection", |counters| {
                counters.transfer_bytes.saturating_sub(counters.transfer_shared_bytes)
            }),
        ],
    ),
    (
        "kvasir.cells",
        "",
        "Cells of completed transfers: those planned are those adopted",
        "state",
        &[
            ("planned", |counters| counters.cells_planned),
            ("adopted", |counters| counters.cells_adopted),
        ],
    ),
    (
        "kvasir.cells_refused",
        "",
        "Transfers that a rank refused, by reason",
        "reason",
        &[
            ("ticket", |counters| counters.cells_refused_ticket),
            ("epoch", |counters| counters.cells_refused_epoch),
            ("tag", |counters| counters.cells_refused_tag),
            ("cell", |counters| counters.cells_refused_cell),
            ("numerics", |counters| counters.cells_refused_numerics),
            ("checksum", |counters| counters.cells_refused_checksum),
            ("frame", |counters| counters.cells_refused_frame),
        ],
    ),
];

/// Counters whose names say something else to whoever reads metrics.
const RENAMED: &[(&str, &str)] = &[
    ("prefix_queries_tokens", "prefix_cache_queries"),
    ("prefix_hits_tokens", "prefix_cache_hits"),
    ("finished", "answers_finished"),
    ("failed", "answers_failed"),
    ("cancelled", "answers_cancelled"),
    ("rejected", "answers_rejected"),
    ("submitted", "answers_submitted"),
];
