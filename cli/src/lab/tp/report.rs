//! What `lab tp` found: for people, as JSON and CSV, as Markdown and as pictures.

use anyhow::Result;
use kvasir_runtime::ByteSize;
use serde::Serialize;

use crate::{
    bench::spread::Spread,
    lab::{
        chart::{Axis, Chart, Line, Scale},
        results_folder::ResultsFolder,
        table::Table,
    },
};

const MIB: f64 = 1024.0 * 1024.0;

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub kvasir_version: &'static str,
    pub model: String,
    pub q_heads: u32,
    pub kv_heads: u32,
    pub kv_dtype: String,
    pub weights_dtype: String,
    pub backend: &'static str,
    /// Of each rank.
    pub threads: u32,
    /// Of this machine: with more threads than these, ranks take turns.
    pub cores: u32,
    pub streams: u32,
    pub tokens: u32,
    /// That KV bytes are told for.
    pub context: u32,
    pub link_gbps: f64,
    pub rows: Vec<Row>,
}

/// One number of ranks.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub ranks: u32,
    /// In rank order.
    pub each: Vec<RankRow>,
    /// What ranks wait for each other, by bytes read: 1.0 when every phase is even.
    pub imbalance: f64,
    /// That each rank sends.
    pub wire_bytes_per_token: u64,
    pub wire_us_per_token: f64,
    /// Measured, of one token of all streams together.
    pub us_per_token: Spread,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct RankRow {
    pub kv_heads: u32,
    /// By the worker's own word.
    pub weight_bytes: u64,
    /// Of one request.
    pub kv_bytes: u64,
}

impl Row {
    fn most(&self, bytes: impl Fn(&RankRow) -> u64) -> u64 {
        self.each.iter().map(bytes).max().unwrap_or(0)
    }

    fn heads(&self) -> String {
        let heads = self.each.iter().map(|rank| rank.kv_heads.to_string());
        heads.collect::<Vec<_>>().join("+")
    }

    /// What a table says of it, up to what a rank sends.
    fn cells(&self) -> [String; 6] {
        [
            self.ranks.to_string(),
            self.heads(),
            ByteSize(self.most(|rank| rank.weight_bytes)).to_string(),
            ByteSize(self.most(|rank| rank.kv_bytes)).to_string(),
            format!("{:.1} %", (self.imbalance - 1.0) * 100.0),
            ByteSize(self.wire_bytes_per_token).to_string(),
        ]
    }
}

impl Report {
    fn title(&self) -> String {
        let threads = match self.threads {
            1 => "one thread".to_owned(),
            threads => format!("{threads} threads"),
        };
        format!(
            "{}, {} query and {} KV heads, {} weights, {} cache, {}, {threads} a rank on {} cores",
            self.model, self.q_heads, self.kv_heads, self.weights_dtype, self.kv_dtype, self.backend, self.cores
        )
    }

    pub fn print(&self) {
        let heads = [
            "ranks",
            "KV heads",
            "most weights",
            "most KV",
            "imbalance",
            "sent a token",
            "on a link, us",
            "token, us",
        ];
        let mut table = Table::new(self.title(), heads.map(str::to_owned));
        for row in &self.rows {
            let Spread { median, min, max, .. } = &row.us_per_token;
            let [ranks, heads, weights, kv, waits, sent] = row.cells();
            let on_link = format!("{:.0}", row.wire_us_per_token);
            let measured = format!("{median:.0} ({min:.0}-{max:.0})");
            table.row([ranks, heads, weights, kv, waits, sent, on_link, measured]);
        }
        print!("{}", table.text());
        println!(
            "KV of one request of {} tokens; a link of {} Gbit/s, latency apart; measured over shared memory",
            self.context, self.link_gbps
        );
    }

    /// tp.json, tp.csv, tp.md and the plots.
    pub fn write(&self, folder: &ResultsFolder) -> Result<()> {
        folder.write("tp.json", &(serde_json::to_string_pretty(self)? + "\n"))?;
        folder.write("tp.csv", &self.csv())?;
        folder.write("tp.md", &self.markdown())?;
        self.bytes_chart().write(folder.path(), "bytes-by-ranks")?;
        self.time_chart().write(folder.path(), "time-by-ranks")
    }

    fn csv(&self) -> String {
        let mut csv = "ranks,rank,kv_heads,weight_bytes,kv_bytes,imbalance,wire_bytes_per_token,wire_us_per_token,\
                       median_us_per_token\n"
            .to_owned();
        for row in &self.rows {
            for (rank, of_rank) in row.each.iter().enumerate() {
                let cells = [
                    row.ranks.to_string(),
                    rank.to_string(),
                    of_rank.kv_heads.to_string(),
                    of_rank.weight_bytes.to_string(),
                    of_rank.kv_bytes.to_string(),
                    row.imbalance.to_string(),
                    row.wire_bytes_per_token.to_string(),
                    row.wire_us_per_token.to_string(),
                    row.us_per_token.median.to_string(),
                ];
                csv.push_str(&cells.join(","));
                csv.push('\n');
            }
        }
        csv
    }

    fn markdown(&self) -> String {
        let title = format!(
            "{}; KV of one request of {} tokens; medians of {} runs of {} tokens",
            self.title(),
            self.context,
            self.rows.first().map_or(0, |row| row.us_per_token.samples.len()),
            self.tokens,
        );
        let heads = [
            "ranks",
            "KV heads",
            "most weights",
            "most KV",
            "ranks wait",
            "sent a token",
            "token, us",
        ];
        let mut table = Table::new(title, heads.map(str::to_owned));
        for row in &self.rows {
            let [ranks, heads, weights, kv, waits, sent] = row.cells();
            let measured = format!("{:.0}", row.us_per_token.median);
            table.row([ranks, heads, weights, kv, waits, sent, measured]);
        }
        table.markdown()
    }

    fn bytes_chart(&self) -> Chart {
        let points = |bytes: fn(&RankRow) -> u64| {
            let point = |row: &Row| (f64::from(row.ranks), row.most(bytes) as f64 / MIB);
            self.rows.iter().map(point).collect::<Vec<_>>()
        };
        let weights = points(|rank| rank.weight_bytes);
        self.by_ranks(
            "Bytes of the rank that holds most",
            "MiB",
            vec![
                Line::computed("weights, even", even(&weights)),
                Line::measured("weights", weights),
                Line::measured("KV of a request", points(|rank| rank.kv_bytes)),
            ],
        )
    }

    fn time_chart(&self) -> Chart {
        let point = |row: &Row| (f64::from(row.ranks), row.us_per_token.median / 1e3);
        let measured: Vec<(f64, f64)> = self.rows.iter().map(point).collect();
        let ideal = Line::computed("ideal: 1/ranks", even(&measured));
        self.by_ranks(
            "Time per token",
            "time per token, ms",
            vec![ideal, Line::measured("measured", measured)],
        )
    }

    fn by_ranks(&self, title: &str, y: &str, lines: Vec<Line>) -> Chart {
        Chart {
            title: title.to_owned(),
            subtitle: self.title(),
            x: Axis {
                name: "ranks".to_owned(),
                scale: Scale::Even,
            },
            y: Axis {
                name: y.to_owned(),
                scale: Scale::Even,
            },
            lines,
        }
    }
}

/// What the first point would give, divided evenly.
fn even(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let Some((ranks, value)) = points.first().copied() else {
        return Vec::new();
    };
    points.iter().map(|point| (point.0, value * ranks / point.0)).collect()
}
