//! `kvasir bench moves`: how long an answer pauses when its request goes to another group, or its group to other ranks.
//!
//! One stream runs, and is moved to and fro while it talks. The pause is the coordinator's: from the last token before to
//! the first after. Beside it stands the undisturbed time per token there, measured after the move.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Args, value_parser};
use kvasir_client::Target;
use kvasir_proto::v1;
use serde::Serialize;
use tokio::task::JoinHandle;

use super::{
    outcome::Outcome, percentiles::Percentiles, quiet::wait_until_quiet, token_range::TokenRange, workload::Workload,
};
use crate::client::{self, Server};

/// How long a stream is watched for its undisturbed step.
const STEP_WATCH: Duration = Duration::from_millis(800);
const POLL: Duration = Duration::from_millis(20);
/// A prompt is computed by then.
const START_MAX: Duration = Duration::from_secs(300);
/// Tokens of an answer that are left when its moves end: it must not end in one.
const TOKENS_LEFT_MIN: u32 = 64;

/// Measures how long answers pause when they move, or their group changes
///
/// For each context one request is sent, and moved between the groups by turns. Groups with the fewest ranks and the
/// most come from `kvasir up --groups 1,2`.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  kvasir bench moves --contexts 512,2048 --repeat 60\n  kvasir bench moves --reshard \
                  --contexts 512"
)]
pub struct MovesArgs {
    #[command(flatten)]
    server: Server,
    /// Tokens of the prompt, one run each
    #[arg(long, default_value = "512,2048", value_name = "N,N", value_delimiter = ',', value_parser = value_parser!(u32).range(1..))]
    contexts: Vec<u32>,
    /// Moves of each context
    #[arg(long, default_value_t = 60, value_name = "N", value_parser = value_parser!(u32).range(1..=10_000))]
    repeat: u32,
    /// Instead: group 0 gets one more rank and loses it again, by turns; a free worker has to be there
    #[arg(long)]
    reshard: bool,
    /// Tokens of an answer at most; a new one begins when it is used up
    #[arg(long, default_value_t = 3000, value_name = "N", value_parser = value_parser!(u32).range(128..))]
    max_tokens: u32,
    /// Between two moves, so that they do not disturb each other
    #[arg(long, default_value_t = 50, value_name = "MS")]
    rest_ms: u64,
    /// Of the prompts
    #[arg(long, default_value_t = 0, value_name = "S")]
    seed: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What a request moved to: a group, or a number of ranks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Debug)]
#[serde(rename_all = "snake_case")]
enum Place {
    Group(u32),
    Ranks(u32),
}

#[derive(Serialize)]
struct Report {
    moves: Vec<Line>,
}

/// Of one context and one place: milliseconds.
#[derive(Serialize)]
struct Line {
    context: u32,
    to: Place,
    ranks: u32,
    moves: usize,
    pause_ms: Percentiles,
    /// Undisturbed time per token there.
    step_ms: Option<f64>,
}

pub async fn run(args: MovesArgs) -> Result<()> {
    let target = args.server.target()?;
    let mut moves = Vec::new();
    for (index, context) in (0..).zip(&args.contexts) {
        moves.extend(Run::new(&args, target.clone(), index, *context).measure().await?);
    }
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&Report { moves })?),
        false => moves.iter().for_each(print),
    }
    Ok(())
}

fn print(line: &Line) {
    let to = match line.to {
        Place::Group(group) => format!("to group {group} of {} ranks", line.ranks),
        Place::Ranks(ranks) => format!("reshard to {ranks} ranks"),
    };
    let step = line
        .step_ms
        .map_or("not measured".to_owned(), |step| format!("{step:.1}"));
    println!(
        "{} tokens, {to}: {} moves, pause p50 {:.1}, p99 {:.1}, max {:.1} ms; step {step} ms",
        line.context, line.moves, line.pause_ms.p50, line.pause_ms.p99, line.pause_ms.max
    );
}

/// One context.
struct Run<'a> {
    args: &'a MovesArgs,
    target: Target,
    context: u32,
    workload: Workload,
    streams_begun: u32,
    pauses: BTreeMap<Place, Vec<Duration>>,
    steps: BTreeMap<Place, Vec<f64>>,
    ranks: BTreeMap<Place, u32>,
}

/// A request that talks.
struct Stream {
    answer: JoinHandle<Outcome>,
    request_id: String,
    /// Tokens that it may have, prompt and answer.
    tokens_max: u32,
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Who asks no more is noticed, and the request is cancelled.
        self.answer.abort();
    }
}

impl<'a> Run<'a> {
    fn new(args: &'a MovesArgs, target: Target, index: u32, context: u32) -> Self {
        let workload = Workload {
            seed: args.seed,
            place: index,
            prompt_tokens: TokenRange::exactly(context),
            prefix_tokens: 0,
            max_tokens: TokenRange::exactly(args.max_tokens),
            vocab_size: 40_000,
            tenant: String::new(),
            priority: 0,
            timeout: None,
        };
        Self {
            args,
            target,
            context,
            workload,
            streams_begun: 0,
            pauses: BTreeMap::new(),
            steps: BTreeMap::new(),
            ranks: BTreeMap::new(),
        }
    }

    async fn measure(mut self) -> Result<Vec<Line>> {
        let mut done = 0;
        while done < self.args.repeat {
            let stream = self.begin().await?;
            while done < self.args.repeat && self.has_room(&stream).await? {
                let (place, pause) = self.move_once(&stream).await?;
                self.pauses.entry(place).or_default().push(pause);
                done += 1;
                tokio::time::sleep(Duration::from_millis(self.args.rest_ms)).await;
                // Each place is watched while there are few samples of it, then only moved from.
                if self.steps.get(&place).map_or(0, Vec::len) < 2 {
                    let step = self.step(&stream).await?;
                    self.steps.entry(place).or_default().extend(step);
                }
            }
        }
        self.lines()
    }

    fn lines(self) -> Result<Vec<Line>> {
        let (steps, ranks, context) = (self.steps, self.ranks, self.context);
        let line = |(to, pauses): (Place, Vec<Duration>)| {
            Some(Line {
                context,
                to,
                ranks: ranks.get(&to).copied().unwrap_or_default(),
                moves: pauses.len(),
                pause_ms: Percentiles::of(pauses)?,
                step_ms: steps.get(&to).and_then(|steps| median(steps)),
            })
        };
        self.pauses
            .into_iter()
            .map(|pauses| line(pauses).context("no moves"))
            .collect()
    }

    /// Asks, and waits until the answer has begun.
    async fn begin(&mut self) -> Result<Stream> {
        wait_until_quiet(&self.target).await?;
        let channel = self.target.connect().await?;
        let request = self.workload.request(self.streams_begun);
        self.streams_begun += 1;
        let answer = tokio::spawn(Outcome::of(channel, request, |_| ()));
        let mut stream = Stream {
            answer,
            request_id: String::new(),
            tokens_max: self.context + self.args.max_tokens,
        };
        let deadline = Instant::now() + START_MAX;
        loop {
            if let Some(found) = self
                .requests()
                .await?
                .into_iter()
                .find(|found| found.tokens > self.context + 2)
            {
                stream.request_id = found.request_id;
                return Ok(stream);
            }
            if stream.answer.is_finished() || Instant::now() > deadline {
                bail!(
                    "a prompt of {} tokens gets no answer: is it longer than the context?",
                    self.context
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn requests(&self) -> Result<Vec<v1::SequenceStatus>> {
        Ok(client::status(&self.target).await?.sequences)
    }

    async fn find(&self, stream: &Stream) -> Result<Option<v1::SequenceStatus>> {
        let requests = self.requests().await?;
        Ok(requests.into_iter().find(|found| found.request_id == stream.request_id))
    }

    async fn has_room(&self, stream: &Stream) -> Result<bool> {
        let found = self.find(stream).await?;
        Ok(found.is_some_and(|found| found.tokens + TOKENS_LEFT_MIN < stream.tokens_max))
    }

    /// Milliseconds per token, undisturbed; `None` if the answer ends meanwhile.
    async fn step(&self, stream: &Stream) -> Result<Option<f64>> {
        let (begun, before) = (Instant::now(), self.find(stream).await?);
        tokio::time::sleep(STEP_WATCH).await;
        let (took, after) = (begun.elapsed(), self.find(stream).await?);
        let (Some(before), Some(after)) = (before, after) else {
            return Ok(None);
        };
        let tokens = after.tokens.saturating_sub(before.tokens);
        Ok((tokens > 0).then(|| took.as_secs_f64() * 1e3 / f64::from(tokens)))
    }

    async fn move_once(&mut self, stream: &Stream) -> Result<(Place, Duration)> {
        let status = client::status(&self.target).await?;
        match self.args.reshard {
            true => self.reshard(&status).await,
            false => self.migrate(stream, &status).await,
        }
    }

    async fn migrate(&mut self, stream: &Stream, status: &v1::StatusResponse) -> Result<(Place, Duration)> {
        if status.groups.len() < 2 {
            bail!(
                "the cluster has {} group; expected two or more (--groups 1,2)",
                status.groups.len()
            );
        }
        let found = status
            .sequences
            .iter()
            .find(|found| found.request_id == stream.request_id);
        let source = found.context("the request has ended")?.group;
        let target = (source + 1) % status.groups.len() as u32;
        let order = v1::MigrateRequest {
            request_id: stream.request_id.clone(),
            target_group: Some(target),
        };
        let moved = client::migrate(&self.target, order).await?;
        let moved = moved.first().context("nothing was moved")?;
        if moved.outcome != "moved" {
            bail!("not moved: {}", moved.detail);
        }
        let to = Place::Group(target);
        self.ranks.insert(to, status.groups[target as usize].ranks.len() as u32);
        Ok((to, Duration::from_micros(moved.pause_us)))
    }

    async fn reshard(&mut self, status: &v1::StatusResponse) -> Result<(Place, Duration)> {
        let group = status.groups.first().context("the cluster has no group")?;
        let ranks = match (group.ranks.len() as u32, status.spares.is_empty()) {
            (now, false) => now + 1,
            (now, true) if now > 1 => now - 1,
            _ => bail!("no free worker: start one more `kvasir worker`"),
        };
        let order = v1::ReshardRequest { group: group.id, ranks };
        let done = client::reshard(&self.target, order).await?;
        if done.outcome != "switched" {
            bail!("not resharded: {}", done.detail);
        }
        self.ranks.insert(Place::Ranks(ranks), ranks);
        Ok((Place::Ranks(ranks), Duration::from_micros(done.pause_us)))
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).map(|value| (value * 1e3).round() / 1e3)
}
