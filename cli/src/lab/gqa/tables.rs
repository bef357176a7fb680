//! The experiment's tables in Markdown, for documents: gqa.md.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use kvasir_runtime::ByteSize;

use super::{
    measured::Times,
    report::{Report, Row},
};
use crate::lab::markdown::MarkdownTable;

pub fn write(report: &Report, folder: &Path) -> Result<()> {
    let path = folder.join("gqa.md");
    let mut text = format!("{}.\n\n{}", sentence(report), attention(report).to_text());
    // One point is in the first table.
    if report.groups().any(|rows| rows.len() > 1) {
        text = format!("{text}\n{}", sizes(report).to_text());
    }
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
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
fn attention(report: &Report) -> MarkdownTable {
    let context = report.longest().map(|row| row.context).next().unwrap_or(0);
    let mut table = MarkdownTable::new(&[
        "G",
        "KV heads",
        &format!("cache at {context}"),
        "attention, us",
        "to G = 1",
        "1/G",
        "reading K and V, us",
        "out of caches, us",
        "block, us",
    ]);
    let Some(first) = report.longest().next() else {
        return table;
    };
    let median = |times: Option<Times>| times.map(|times| times.median_us);
    let us = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"));
    for row in report.longest() {
        let ratio = median(row.attention)
            .zip(median(first.attention))
            .map(|(this, first)| this / first);
        let read = report.memory_gb_per_s.as_ref();
        table.add([
            row.group_size.to_string(),
            row.kv_heads.to_string(),
            row.cache_bytes
                .map_or_else(|| "-".to_owned(), |bytes| ByteSize(bytes).to_string()),
            us(median(row.attention)),
            ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}")),
            format!("{:.3}", f64::from(first.group_size) / f64::from(row.group_size)),
            us(read.map(|rate| row.formula_bytes as f64 / rate.median / 1e3)),
            us(median(row.attention_cached)),
            us(median(row.step)),
        ]);
    }
    table
}

/// The cache at every point.
fn sizes(report: &Report) -> MarkdownTable {
    let of_first: Vec<&Row> = report.groups().next().unwrap_or_default().iter().collect();
    let heads: Vec<String> = of_first.iter().map(|row| format!("{} tokens", row.context)).collect();
    let heads: Vec<&str> = std::iter::once("G").chain(heads.iter().map(String::as_str)).collect();
    let mut table = MarkdownTable::new(&heads);
    for rows in report.groups() {
        let bytes = |row: &Row| {
            row.cache_bytes
                .map_or_else(|| "-".to_owned(), |bytes| ByteSize(bytes).to_string())
        };
        let cells = std::iter::once(rows[0].group_size.to_string()).chain(rows.iter().map(bytes));
        table.add_row(cells.collect());
    }
    table
}
