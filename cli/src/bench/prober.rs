//! The client that measures: sends the requests of one trial, alone or together, and takes the time of their tokens.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use kvasir_client::Target;
use tokio::task::JoinSet;

use super::{
    channels::Channels,
    outcome::{Finished, Outcome},
    token_range::TokenRange,
    token_window::{Receipts, Window},
    trial::{Trial, TrialKind},
    workload::Workload,
};
use crate::client;

#[derive(Debug)]
pub struct Prober {
    channels: Channels,
    pub model: String,
    pub context_len: u32,
    vocab_size: u32,
    seed: u64,
    /// Requests so far: no two have the same prompt.
    asked: u32,
}

/// What one run of a trial came to.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sample {
    pub tokens_per_s: f64,
    pub first_token: Duration,
    /// Streams that had no place beside the others.
    pub waited: u32,
}

impl Prober {
    /// Opens the connections that so many streams need.
    pub async fn connect(target: &Target, streams: u32) -> Result<Self> {
        let status = client::status(target).await?;
        ensure!(
            status.vocab_size >= Workload::VOCAB_SIZE_MIN,
            "the coordinator names a vocabulary of {} tokens; prompts need {} or more, and a coordinator of this version",
            status.vocab_size,
            Workload::VOCAB_SIZE_MIN
        );
        Ok(Self {
            channels: Channels::connect(target, streams as usize).await?,
            model: status.model,
            context_len: status.context_len,
            vocab_size: status.vocab_size,
            seed: fresh_seed(),
            asked: 0,
        })
    }

    /// Runs a trial once. Errors if a request does not come to its end, or had been asked before.
    pub async fn measure(&mut self, trial: &Trial) -> Result<Sample> {
        let (answers, receipts) = self.ask(trial).await?;
        for answer in &answers {
            check(answer, trial)?;
        }
        let firsts = answers.iter().filter_map(|answer| answer.times.first);
        let first_token = firsts.max().context("no token came")?;
        match trial.kind {
            TrialKind::Prefill => Ok(Sample {
                tokens_per_s: f64::from(trial.prompt_tokens) / first_token.as_secs_f64(),
                first_token,
                waited: 0,
            }),
            TrialKind::Decode => {
                let window = Window::of(&receipts).with_context(|| all_at_once(trial))?;
                Ok(Sample {
                    tokens_per_s: window.tokens_per_s,
                    first_token,
                    waited: window.waited,
                })
            }
        }
    }

    /// All streams at once; returns what came of each, and when.
    async fn ask(&mut self, trial: &Trial) -> Result<(Vec<Finished>, Vec<Receipts>)> {
        let workload = self.workload(trial);
        let mut prepared = Vec::new();
        for _ in 0..trial.streams {
            prepared.push((self.channels.lease().await?, workload.request(self.asked)));
            self.asked += 1;
        }
        let mut streams = JoinSet::new();
        let start = Instant::now();
        for (lease, request) in prepared {
            streams.spawn(async move {
                let mut receipts = Receipts::default();
                let on_tokens = |tokens| receipts.add(start.elapsed(), tokens);
                let outcome = Outcome::of(lease.channel.clone(), request, on_tokens).await;
                (outcome, receipts)
            });
        }
        let mut answers = (Vec::new(), Vec::new());
        while let Some(ended) = streams.join_next().await {
            let (outcome, receipts) = ended?;
            answers.0.push(finished(outcome, trial)?);
            answers.1.push(receipts);
        }
        Ok(answers)
    }

    fn workload(&self, trial: &Trial) -> Workload {
        Workload {
            seed: self.seed,
            place: 0,
            prompt_tokens: TokenRange::exactly(trial.prompt_tokens),
            prefix_tokens: 0,
            max_tokens: TokenRange::exactly(trial.answer_tokens),
            vocab_size: self.vocab_size,
            tenant: String::new(),
            priority: 0,
            timeout: None,
        }
    }
}

/// Whoever asked before has left nothing in a cache that would be found again.
fn fresh_seed() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

fn finished(outcome: Outcome, trial: &Trial) -> Result<Finished> {
    match outcome {
        Outcome::Finished(finished) => Ok(finished),
        Outcome::Cancelled => bail!("a request of the {} was aborted by someone", name(trial)),
        Outcome::Refused { .. } => bail!(
            "a request of the {} found no room; fewer streams, or a coordinator with a longer --queue, would work",
            name(trial)
        ),
        Outcome::Failed { message } => {
            Err(anyhow!(message)).with_context(|| format!("a request of the {}", name(trial)))
        }
    }
}

/// A speed is one of computing, and of so many tokens.
fn check(answer: &Finished, trial: &Trial) -> Result<()> {
    ensure!(
        answer.usage.cached_tokens == 0,
        "{} of {} prompt tokens were cached, which measures no computing; a cluster with --no-prefix-cache would work",
        answer.usage.cached_tokens,
        answer.usage.prompt_tokens
    );
    ensure!(
        answer.token_ids.len() == trial.answer_tokens as usize,
        "{} tokens came where {} were asked for",
        answer.token_ids.len(),
        trial.answer_tokens
    );
    Ok(())
}

fn name(trial: &Trial) -> String {
    format!(
        "{} test (depth {}, {} streams)",
        trial.kind.name(),
        trial.depth,
        trial.streams
    )
}

fn all_at_once(trial: &Trial) -> String {
    format!(
        "the {} tokens of an answer came all at once; more of them (--decode) would work",
        trial.answer_tokens
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(tokens: usize, cached_tokens: u32) -> Finished {
        Finished {
            token_ids: vec![7; tokens],
            usage: kvasir_proto::v1::Usage {
                prompt_tokens: 16,
                cached_tokens,
                ..Default::default()
            },
            queued: Duration::ZERO,
            times: Default::default(),
            whole: Duration::ZERO,
        }
    }

    #[test]
    fn cached_prompts_and_short_answers_are_no_measurement() {
        let trial = Trial::decode_together(8, 4);
        assert!(check(&answer(4, 0), &trial).is_ok());
        let cached = check(&answer(4, 16), &trial).unwrap_err().to_string();
        assert!(cached.starts_with("16 of 16 prompt tokens were cached"), "{cached}");
        let short = check(&answer(3, 0), &trial).unwrap_err().to_string();
        assert_eq!(short, "3 tokens came where 4 were asked for");
    }

    #[test]
    fn what_did_not_finish_names_the_test() {
        let trial = Trial::decode_together(8, 4);
        let refused = Outcome::Refused { retry_after_ms: None };
        let refused = finished(refused, &trial).unwrap_err().to_string();
        assert!(
            refused.starts_with("a request of the decode test (depth 0, 8 streams) found no room"),
            "{refused}"
        );
    }

    #[test]
    fn seeds_are_fresh() {
        assert_ne!(fresh_seed(), fresh_seed());
    }
}
