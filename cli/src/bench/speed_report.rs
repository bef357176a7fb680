//! The speeds of a cluster: a table for people, or one JSON object.

use serde::Serialize;

use super::{
    prober::Sample,
    spread::Spread,
    trial::{Trial, TrialKind},
};

#[derive(Serialize)]
pub struct Report {
    kvasir_version: &'static str,
    model: String,
    rows: Vec<Row>,
}

#[derive(Serialize)]
pub struct Row {
    test: TrialKind,
    /// Of the prompt, or of each answer.
    tokens: u32,
    depth: u32,
    streams: u32,
    /// Of all streams together.
    tokens_per_s: Spread,
    /// Of a prompt alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_token_ms: Option<Spread>,
    /// Streams for which the cluster had no place beside the others, in the worst run; they are in no rate.
    #[serde(skip_serializing_if = "is_zero")]
    waited: u32,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl Report {
    pub fn new(model: String, rows: Vec<Row>) -> Self {
        Self {
            kvasir_version: env!("CARGO_PKG_VERSION"),
            model,
            rows,
        }
    }

    pub fn print(&self) {
        println!("{}, kvasir {}", self.model, self.kvasir_version);
        println!(
            "{:<8}{:>8}{:>8}{:>9}  {:<30}  ms per token",
            "test", "tokens", "depth", "streams", "tokens/s median (min-max)"
        );
        for row in &self.rows {
            println!("{}", row.line());
        }
    }
}

impl Row {
    /// `None` without samples.
    pub fn new(trial: &Trial, samples: &[Sample]) -> Option<Self> {
        let spread = |of: fn(&Sample) -> f64| Spread::of(&samples.iter().map(of).collect::<Vec<_>>());
        let first_token_ms = spread(|sample| sample.first_token.as_secs_f64() * 1e3);
        Some(Self {
            test: trial.kind,
            tokens: trial.tokens(),
            depth: trial.depth,
            streams: trial.streams,
            tokens_per_s: spread(|sample| sample.tokens_per_s)?,
            first_token_ms: first_token_ms.filter(|_| trial.kind == TrialKind::Prefill),
            waited: samples.iter().map(|sample| sample.waited).max()?,
        })
    }

    fn line(&self) -> String {
        let Spread { median, min, max, .. } = self.tokens_per_s;
        let rate = format!("{median:.1} ({min:.1}-{max:.1})");
        let mut line = format!(
            "{:<8}{:>8}{:>8}{:>9}  {rate:<30}  {:.3}",
            self.test.name(),
            self.tokens,
            self.depth,
            self.streams,
            1e3 / median
        );
        if self.waited > 0 {
            line += &format!("  {} of {} had to wait and are not counted", self.waited, self.streams);
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sample(tokens_per_s: f64, waited: u32) -> Sample {
        Sample {
            tokens_per_s,
            first_token: Duration::from_millis(20),
            waited,
        }
    }

    #[test]
    fn a_row_says_who_waited_in_the_worst_run() {
        let trial = Trial::decode_together(8, 128);
        let row = Row::new(&trial, &[sample(100.0, 0), sample(200.0, 3)]).unwrap();
        assert!(row.line().ends_with("3 of 8 had to wait and are not counted"));
        let json = serde_json::to_value(&row).unwrap();
        assert_eq!(json["waited"], 3);
        assert_eq!(json["tokens_per_s"]["samples"][1], 200.0);
        assert!(json.get("first_token_ms").is_none());
    }

    #[test]
    fn a_row_without_waiting_does_not_speak_of_it() {
        let trial = Trial::decode_together(2, 128);
        let row = Row::new(&trial, &[sample(250.0, 0)]).unwrap();
        let expected = "decode       128       0        2  250.0 (250.0-250.0)";
        assert!(row.line().starts_with(expected), "{}", row.line());
        assert!(row.line().ends_with("  4.000"), "{}", row.line());
        assert!(serde_json::to_value(&row).unwrap().get("waited").is_none());
    }
}
