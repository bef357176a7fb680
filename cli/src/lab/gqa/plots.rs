//! The experiment's pictures: cache size and time per token against the number of tokens, one line for each G; and
//! attention's time against G, beside the ideal 1/G.

use std::path::Path;

use anyhow::Result;

use super::report::{Report, Row};
use crate::lab::chart::{Axis, Chart, Line, Scale};

const MIB: f64 = 1024.0 * 1024.0;

pub fn write(report: &Report, folder: &Path) -> Result<()> {
    let charts = [
        ("cache-size", cache_size(report)),
        ("time-per-token", time_per_token(report)),
        ("attention-time", attention_time(report)),
        ("attention-by-g", attention_by_g(report)),
    ];
    // A backend that does not tell of something has no picture of it.
    let told = |chart: &Chart| {
        chart
            .lines
            .iter()
            .any(|line| line.is_measured && !line.points.is_empty())
    };
    let charts = charts.into_iter().filter(|(_, chart)| told(chart));
    for (stem, chart) in charts {
        chart.write(folder, stem)?;
    }
    Ok(())
}

fn cache_size(report: &Report) -> Chart {
    let mib = |row: &Row| Some(row.cache_bytes? as f64 / MIB);
    by_context(report, "KV cache by tokens", ("cache, MiB", Scale::Powers), mib)
}

fn time_per_token(report: &Report) -> Chart {
    let us = |row: &Row| Some(row.step?.median_us / 1e3);
    by_context(
        report,
        "Time per token by tokens in the cache",
        ("time per token, ms", Scale::Even),
        us,
    )
}

fn attention_time(report: &Report) -> Chart {
    let us = |row: &Row| Some(row.attention?.median_us / 1e3);
    let title = "Of it, attention by tokens in the cache";
    by_context(report, title, ("attention per token, ms", Scale::Even), us)
}

/// A line for each G.
fn by_context(report: &Report, title: &str, (y, scale): (&str, Scale), value: impl Fn(&Row) -> Option<f64>) -> Chart {
    let line = |rows: &[Row]| {
        let points = rows
            .iter()
            .filter_map(|row| Some((f64::from(row.context), value(row)?)));
        Line::measured(name(&rows[0], report), points.collect())
    };
    let even = scale == Scale::Even;
    Chart {
        title: title.to_owned(),
        subtitle: report.title(),
        x: Axis {
            name: "tokens in the cache".to_owned(),
            scale: if even { Scale::Even } else { Scale::Powers },
        },
        y: Axis {
            name: y.to_owned(),
            scale,
        },
        lines: report.groups().map(line).collect(),
    }
}

fn name(row: &Row, report: &Report) -> String {
    match row.group_size {
        1 => "G = 1 (MHA)".to_owned(),
        group_size if group_size == report.q_heads => format!("G = {group_size} (MQA)"),
        group_size => format!("G = {group_size}"),
    }
}

fn attention_by_g(report: &Report) -> Chart {
    let points = |us: fn(&Row) -> Option<f64>| {
        let point = move |row: &Row| Some((f64::from(row.group_size), us(row)? / 1e3));
        report.longest().filter_map(point).collect::<Vec<_>>()
    };
    let measured = points(|row| Some(row.attention?.median_us));
    let ideal = measured.first().map(|first| {
        let of = |(group_size, _): &(f64, f64)| (*group_size, first.1 * first.0 / group_size);
        measured.iter().map(of).collect()
    });
    let read = report.memory_gb_per_s.as_ref().map(|rate| {
        let of = |row: &Row| (f64::from(row.group_size), row.formula_bytes as f64 / rate.median / 1e6);
        report.longest().map(of).collect()
    });
    let context = report.longest().map(|row| row.context).next().unwrap_or(0);
    Chart {
        title: format!("Attention per token by G, {context} tokens in the cache"),
        subtitle: report.title(),
        x: Axis {
            name: "G, query heads per KV head".to_owned(),
            scale: Scale::Powers,
        },
        y: Axis {
            name: "attention per token, ms".to_owned(),
            scale: Scale::Powers,
        },
        lines: vec![
            Line::measured("measured", measured),
            Line::measured("K and V in caches", points(|row| Some(row.attention_cached?.median_us))),
            Line::computed("ideal: 1/G of G = 1", ideal.unwrap_or_default()),
            Line::computed("reading K and V", read.unwrap_or_default()),
        ],
    }
}
