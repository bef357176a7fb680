//! Ranks with a coordinator and without: a table for people, or one JSON object.

use serde::Serialize;

use super::{
    all_reduce::Latency,
    spread::{Spread, thousandths},
};

#[derive(Serialize)]
pub struct Report {
    pub kvasir_version: &'static str,
    pub model: String,
    pub ranks: u32,
    /// On both sides.
    pub ranks_are: &'static str,
    /// Of each rank.
    pub threads: u32,
    /// Of each stream.
    pub tokens: u32,
    pub rows: Vec<Row>,
    /// Between ranks that are threads of one process; empty for one rank.
    pub all_reduce: Vec<Latency>,
}

/// Tokens of all streams together; steps are those of the median rate.
#[derive(Serialize)]
pub struct Row {
    streams: u32,
    ranks_alone_tokens_per_s: Spread,
    cluster_tokens_per_s: Spread,
    /// Of the ranks' median rate, what reaches the client.
    cluster_share: f64,
    ranks_alone_step_us: f64,
    cluster_step_us: f64,
    /// What a step takes longer with client, gRPC and coordinator.
    overhead_us: f64,
}

impl Row {
    /// Tokens a second, one for each run. `None` without runs.
    pub fn new(streams: u32, alone: &[f64], cluster: &[f64]) -> Option<Self> {
        let (alone, cluster) = (Spread::of(alone)?, Spread::of(cluster)?);
        let step_us = |rate: &Spread| f64::from(streams) / rate.median * 1e6;
        Some(Self {
            streams,
            cluster_share: thousandths(cluster.median / alone.median),
            ranks_alone_step_us: thousandths(step_us(&alone)),
            cluster_step_us: thousandths(step_us(&cluster)),
            overhead_us: thousandths(step_us(&cluster) - step_us(&alone)),
            ranks_alone_tokens_per_s: alone,
            cluster_tokens_per_s: cluster,
        })
    }

    fn line(&self) -> String {
        let rate = |Spread { median, min, max, .. }: &Spread| format!("{median:.1} ({min:.1}-{max:.1})");
        format!(
            "{:>7}  {:<28}{:<28}{:>6.1} %{:>13.1}{:>13.1}{:>13.1}",
            self.streams,
            rate(&self.ranks_alone_tokens_per_s),
            rate(&self.cluster_tokens_per_s),
            100.0 * self.cluster_share,
            self.ranks_alone_step_us,
            self.cluster_step_us,
            self.overhead_us
        )
    }
}

impl Report {
    pub fn print(&self) {
        println!("{}, kvasir {}", self.model, self.kvasir_version);
        println!(
            "ranks: {}, threads of each: {}, {} on both sides; {} tokens a stream; tokens/s: median (min-max)",
            self.ranks, self.threads, self.ranks_are, self.tokens
        );
        println!(
            "{:>7}  {:<28}{:<28}{:>8}{:>13}{:>13}{:>13}",
            "streams", "ranks alone", "client to cluster", "share", "step us", "cluster us", "overhead us"
        );
        for row in &self.rows {
            println!("{}", row.line());
        }
        for latency in &self.all_reduce {
            println!(
                "all-reduce of {} sums, {} calls, ranks as threads, {}: median {:.2} us, p99 {:.2} us",
                latency.sums, latency.calls, latency.transport, latency.median_us, latency.p99_us
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overhead_is_the_difference_of_the_median_steps() {
        let row = Row::new(64, &[6400.0, 3200.0, 12_800.0], &[3200.0, 6400.0, 1600.0]).unwrap();
        assert_eq!(row.ranks_alone_step_us, 10_000.0);
        assert_eq!(row.cluster_step_us, 20_000.0);
        assert_eq!(row.overhead_us, 10_000.0);
        assert_eq!(row.cluster_share, 0.5);
        assert!(Row::new(1, &[], &[]).is_none());
    }
}
