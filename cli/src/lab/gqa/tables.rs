//! The experiment's tables in Markdown, for documents.

use kvasir_runtime::ByteSize;

use super::{
    measured::Times,
    report::{Report, Row},
};
use crate::lab::table::{Table, or_dash};

pub fn text(report: &Report) -> String {
    let mut text = attention(report).markdown();
    // One point is in the first table.
    if report.groups().any(|rows| rows.len() > 1) {
        text = format!("{text}\n{}", sizes(report).markdown());
    }
    text
}

fn sentence(report: &Report) -> String {
    let mut title = report.title();
    title[..1].make_ascii_uppercase();
    let rate = report.memory_gb_per_s.as_ref().map(|rate| {
        format!(
            "; as many threads read memory at {:.1} GB/s ({:.1} to {:.1})",
            rate.median, rate.min, rate.max
        )
    });
    format!(
        "{title}; medians of {} tokens at each point{}",
        report.tokens * report.rounds,
        rate.unwrap_or_default()
    )
}

/// At the longest context: the time of attention against 1/G, and what it consists of.
fn attention(report: &Report) -> Table {
    let context = report.longest().map(|row| row.context).next().unwrap_or(0);
    let heads = [
        "G",
        "KV heads",
        &format!("cache at {context}"),
        "attention, us",
        "to G = 1",
        "1/G",
        "reading K and V, us",
        "out of caches, us",
        "block, us",
    ];
    let mut table = Table::new(sentence(report), heads.map(str::to_owned));
    let Some(first) = report.longest().next() else {
        return table;
    };
    let median = |times: Option<Times>| times.map(|times| times.median_us);
    let us = |value: Option<f64>| or_dash(value.map(|value| format!("{value:.0}")));
    for row in report.longest() {
        let ratio = median(row.attention)
            .zip(median(first.attention))
            .map(|(this, first)| format!("{:.3}", this / first));
        let read = report.memory_gb_per_s.as_ref();
        table.row([
            row.group_size.to_string(),
            row.kv_heads.to_string(),
            or_dash(row.cache_bytes.map(ByteSize)),
            us(median(row.attention)),
            or_dash(ratio),
            format!("{:.3}", f64::from(first.group_size) / f64::from(row.group_size)),
            us(read.map(|rate| row.formula_bytes as f64 / rate.median / 1e3)),
            us(median(row.attention_cached)),
            us(median(row.step)),
        ]);
    }
    table
}

/// The cache at every point.
fn sizes(report: &Report) -> Table {
    let points = report.groups().next().unwrap_or_default().iter();
    let points = points.map(|row| format!("{} tokens", row.context));
    let mut table = Table::new("", std::iter::once("G".to_owned()).chain(points));
    for rows in report.groups() {
        let bytes = |row: &Row| or_dash(row.cache_bytes.map(ByteSize));
        table.row(std::iter::once(rows[0].group_size.to_string()).chain(rows.iter().map(bytes)));
    }
    table
}
