//! The outcomes of a benchmark, summed up: a table for people, or one JSON object.

use std::time::Duration;

use serde::Serialize;

use super::{
    background::{BackgroundOptions, Counts},
    outcome::{Finished, Outcome},
    percentiles::Percentiles,
    spread::thousandths,
};

#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub finished: u32,
    pub refused: u32,
    /// Of refusals that said it.
    pub retry_after_ms: Option<Span>,
    pub failed: u32,
    /// In the order of the requests.
    pub first_error: Option<String>,
    pub cancelled: u32,
    /// From the first request's start to the last one's end.
    pub duration_s: f64,
    /// Tokens are those of finished requests.
    pub input_tokens: u64,
    pub cached_tokens: u64,
    pub output_tokens: u64,
    pub requests_per_s: f64,
    pub output_tokens_per_s: f64,
    /// From arrival to the first step, as the coordinator saw it.
    pub queue_ms: Option<Percentiles>,
    /// To the first token.
    pub ttft_ms: Option<Percentiles>,
    /// Between tokens.
    pub itl_ms: Option<Percentiles>,
    /// Whole requests.
    pub e2e_ms: Option<Percentiles>,
    /// BLAKE3 of all finished answers: equal seeds must give equal digests.
    pub digest: String,
    pub background: Vec<BackgroundReport>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Span {
    pub min: u64,
    pub max: u64,
}

/// Within the measured time.
#[derive(Debug, Serialize)]
pub struct BackgroundReport {
    pub tenant: String,
    pub priority: i32,
    pub concurrency: u16,
    pub finished: u64,
    pub refused: u64,
    pub failed: u64,
    pub first_error: Option<String>,
    /// Also of requests that did not finish.
    pub output_tokens: u64,
    pub output_tokens_per_s: f64,
}

impl Report {
    /// `outcomes` by the index of their requests.
    pub fn new(outcomes: &[Outcome], duration: Duration) -> Self {
        let mut report = Self::default();
        outcomes.iter().for_each(|outcome| report.count(outcome));
        let per_s = |count: f64| thousandths(count / duration.as_secs_f64());
        let samples = |of: fn(&Finished) -> &[Duration]| {
            let samples = finished(outcomes).flat_map(|(_, finished)| of(finished));
            Percentiles::of(samples.copied().collect())
        };
        Self {
            duration_s: thousandths(duration.as_secs_f64()),
            requests_per_s: per_s(f64::from(report.finished)),
            output_tokens_per_s: per_s(report.output_tokens as f64),
            queue_ms: samples(|finished| std::slice::from_ref(&finished.queued)),
            ttft_ms: samples(|finished| finished.times.first.as_slice()),
            itl_ms: samples(|finished| &finished.times.gaps),
            e2e_ms: samples(|finished| std::slice::from_ref(&finished.whole)),
            digest: digest(outcomes),
            ..report
        }
    }

    fn count(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Finished(finished) => {
                self.finished += 1;
                self.input_tokens += u64::from(finished.usage.prompt_tokens);
                self.cached_tokens += u64::from(finished.usage.cached_tokens);
                self.output_tokens += finished.token_ids.len() as u64;
            }
            Outcome::Cancelled => self.cancelled += 1,
            Outcome::Refused { retry_after_ms } => {
                self.refused += 1;
                retry_after_ms.iter().for_each(|ms| self.widen_retry_after(*ms));
            }
            Outcome::Failed { message } => {
                self.failed += 1;
                self.first_error.get_or_insert_with(|| message.clone());
            }
        }
    }

    fn widen_retry_after(&mut self, ms: u64) {
        let span = self.retry_after_ms.get_or_insert(Span { min: ms, max: ms });
        *span = Span {
            min: span.min.min(ms),
            max: span.max.max(ms),
        };
    }

    pub fn print(&self) {
        let retry_after = self.retry_after_ms.map_or_else(String::new, |Span { min, max }| {
            format!(" (retry after {min} to {max} ms)")
        });
        println!(
            "{} finished, {} refused{retry_after}, {} failed, {} cancelled in {:.2} s",
            self.finished, self.refused, self.failed, self.cancelled, self.duration_s
        );
        if let Some(error) = &self.first_error {
            println!("  first error  {error}");
        }
        println!(
            "  tokens       {} in ({} cached), {} out",
            self.input_tokens, self.cached_tokens, self.output_tokens
        );
        println!(
            "  throughput   {:.2} requests/s, {:.1} output tokens/s",
            self.requests_per_s, self.output_tokens_per_s
        );
        println!(
            "  ms       {}",
            row(["mean", "p50", "p90", "p99", "max"].map(str::to_owned))
        );
        let rows = [
            ("queue", self.queue_ms),
            ("ttft", self.ttft_ms),
            ("itl", self.itl_ms),
            ("e2e", self.e2e_ms),
        ];
        for (name, percentiles) in rows {
            println!("  {name:<9}{}", row(cells(percentiles)));
        }
        println!("  digest       {}", self.digest);
        for background in &self.background {
            background.print();
        }
    }
}

impl BackgroundReport {
    pub fn new(options: &BackgroundOptions, counts: Counts, duration: Duration) -> Self {
        Self {
            tenant: options.tenant.clone(),
            priority: options.priority,
            concurrency: options.concurrency.get(),
            finished: counts.finished,
            refused: counts.refused,
            failed: counts.failed,
            first_error: counts.first_error,
            output_tokens: counts.output_tokens,
            output_tokens_per_s: thousandths(counts.output_tokens as f64 / duration.as_secs_f64()),
        }
    }

    fn print(&self) {
        println!(
            "  background   tenant `{}`, priority {}, {} at a time: {} finished, {} refused, {} failed, {} tokens out \
             ({:.1}/s)",
            self.tenant,
            self.priority,
            self.concurrency,
            self.finished,
            self.refused,
            self.failed,
            self.output_tokens,
            self.output_tokens_per_s
        );
        if let Some(error) = &self.first_error {
            println!("    first error  {error}");
        }
    }
}

fn finished(outcomes: &[Outcome]) -> impl Iterator<Item = (u32, &Finished)> {
    (0..).zip(outcomes).filter_map(|(index, outcome)| match outcome {
        Outcome::Finished(finished) => Some((index, finished)),
        _ => None,
    })
}

/// Lengths are part of it: two answers never look like one.
fn digest(outcomes: &[Outcome]) -> String {
    let mut hasher = blake3::Hasher::new();
    for (index, finished) in finished(outcomes) {
        let len = finished.token_ids.len() as u32;
        for number in [index, len].iter().chain(&finished.token_ids) {
            hasher.update(&number.to_le_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}

fn cells(percentiles: Option<Percentiles>) -> [String; 5] {
    let cell = |of: fn(&Percentiles) -> f64| {
        percentiles
            .as_ref()
            .map_or_else(|| "-".to_owned(), |percentiles| format!("{:.2}", of(percentiles)))
    };
    [
        cell(|ms| ms.mean),
        cell(|ms| ms.p50),
        cell(|ms| ms.p90),
        cell(|ms| ms.p99),
        cell(|ms| ms.max),
    ]
}

fn row(cells: [String; 5]) -> String {
    cells.map(|cell| format!("{cell:>11}")).concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(token_ids: &[u32]) -> Outcome {
        Outcome::Finished(Finished {
            token_ids: token_ids.to_vec(),
            usage: Default::default(),
            queued: Default::default(),
            times: Default::default(),
            whole: Duration::from_millis(5),
        })
    }

    fn refused(retry_after_ms: u64) -> Outcome {
        Outcome::Refused {
            retry_after_ms: Some(retry_after_ms),
        }
    }

    #[test]
    fn every_outcome_is_counted_as_what_it_is() {
        let failed = |message: &str| Outcome::Failed {
            message: message.to_owned(),
        };
        let outcomes = [
            refused(900),
            answered(&[1, 2]),
            refused(200),
            Outcome::Refused { retry_after_ms: None },
            failed("first"),
            failed("second"),
            Outcome::Cancelled,
        ];
        let report = Report::new(&outcomes, Duration::from_secs(2));
        assert_eq!(
            (report.finished, report.refused, report.failed, report.cancelled),
            (1, 3, 2, 1)
        );
        assert_eq!(report.retry_after_ms, Some(Span { min: 200, max: 900 }));
        assert_eq!(report.first_error.as_deref(), Some("first"));
        assert_eq!((report.output_tokens, report.output_tokens_per_s), (2, 1.0));
        assert_eq!(report.e2e_ms.unwrap().max, 5.0);
        assert_eq!(report.ttft_ms, None);
    }

    #[test]
    fn the_digest_tells_which_request_got_which_tokens() {
        let outcomes = [
            vec![answered(&[1, 2]), answered(&[3])],
            vec![answered(&[1]), answered(&[2, 3])],
            vec![answered(&[3]), answered(&[1, 2])],
            vec![refused(1), answered(&[1, 2])],
            vec![answered(&[1, 2]), refused(1)],
        ];
        let digests: std::collections::BTreeSet<String> = outcomes.iter().map(|outcomes| digest(outcomes)).collect();
        assert_eq!(digests.len(), outcomes.len());
    }
}
