//! `kvasir bench serve`: puts load on a running cluster and reports how long its answers took.

use std::{
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::{Args, value_parser};

use super::{
    background::{Background, BackgroundOptions, Counts},
    channels::Channels,
    client::Client,
    load::{Load, Until},
    report::{BackgroundReport, Report},
    token_range::TokenRange,
    workload::Workload,
};
use crate::client::Server;

const SECONDS_MAX: f64 = 1e6;
const RATE_MIN: f64 = 1e-3;
const RATE_MAX: f64 = 1e6;

/// Puts load on a running cluster and reports how long answers took
///
/// Prompts are random token ids, answers are greedy and never end early. Equal options and seeds send equal requests:
/// the report's digest says whether the answers were equal too. Another seed finds no prompts in the prefix cache.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  kvasir bench serve --requests 64 --concurrency 8 --prompt-tokens 64..256\n  kvasir \
                  bench serve --rate 5 --duration 60 --json\n  kvasir bench serve --tenant b --warmup 5 --background \
                  tenant=a,concurrency=100,max-tokens=64"
)]
pub struct ServeArgs {
    #[command(flatten)]
    server: Server,
    /// How many requests
    #[arg(
        long,
        default_value_t = 32,
        value_name = "N",
        value_parser = value_parser!(u32).range(1..i64::from(Workload::REQUESTS_MAX))
    )]
    requests: u32,
    /// Closed loop: so many requests at a time
    #[arg(long, default_value_t = NonZeroU16::MIN, value_name = "N")]
    concurrency: NonZeroU16,
    /// Open loop: so many requests a second, at random times (Poisson), however many are running
    #[arg(long, value_name = "R", value_parser = parse_rate, conflicts_with = "concurrency")]
    rate: Option<f64>,
    /// With --rate: requests arrive for so long, instead of --requests
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, requires = "rate", conflicts_with = "requests")]
    duration: Option<Duration>,
    /// Length of prompts: N, or LOW..HIGH to draw each, both ends included
    #[arg(long, default_value_t = TokenRange::exactly(128), value_name = "N")]
    prompt_tokens: TokenRange,
    /// So many first tokens are the same in all prompts
    #[arg(long, default_value_t = 0, value_name = "N")]
    prefix_tokens: u32,
    /// Length of answers: N, or LOW..HIGH to draw each, both ends included
    #[arg(long, default_value_t = TokenRange::exactly(32), value_name = "N")]
    max_tokens: TokenRange,
    /// Token ids of prompts are below this
    #[arg(
        long,
        default_value_t = 49_000,
        value_name = "N",
        value_parser = value_parser!(u32).range(i64::from(Workload::VOCAB_SIZE_MIN)..)
    )]
    vocab: u32,
    /// Of prompts, lengths and arrivals
    #[arg(long, default_value_t = 0, value_name = "S")]
    seed: u64,
    /// Who asks
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    tenant: String,
    /// Lower is served first
    #[arg(long, default_value_t = 0, value_name = "P", allow_negative_numbers = true)]
    priority: i32,
    /// Each request fails after so many seconds [default: the server's]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    timeout: Option<Duration>,
    /// Closed loop beside the measured requests until they are done, as NAME=VALUE,NAME=VALUE of tenant, concurrency,
    /// prompt-tokens, prefix-tokens, max-tokens and priority; may be given several times
    #[arg(long, value_name = "LOAD")]
    background: Vec<BackgroundOptions>,
    /// Let the background run for so long before the measured requests begin
    #[arg(long, default_value = "0", value_name = "SECONDS", value_parser = parse_seconds)]
    warmup: Duration,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Errors if no request finished, after the report.
pub async fn run(args: ServeArgs) -> Result<()> {
    let report = measure(&args).await?;
    match args.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => report.print(),
    }
    match (report.finished, report.first_error) {
        (0, Some(error)) => bail!("no request finished: {error}"),
        (0, None) => bail!(
            "no request finished: {} refused, {} cancelled",
            report.refused,
            report.cancelled
        ),
        _ => Ok(()),
    }
}

async fn measure(args: &ServeArgs) -> Result<Report> {
    let load = args.load();
    let client = Client {
        channels: Channels::connect(&args.server.target()?, load.streams()).await?,
        workload: args.workload(),
    };
    let backgrounds = start_backgrounds(args).await?;
    tokio::time::sleep(args.warmup).await;

    let before: Vec<Counts> = backgrounds.iter().map(Background::counts).collect();
    let start = Instant::now();
    let outcomes = load.run(Arc::new(client)).await;
    let duration = start.elapsed();

    let mut report = Report::new(&outcomes, duration);
    for (background, before) in backgrounds.into_iter().zip(&before) {
        let counts = background.counts().since(before);
        report
            .background
            .push(BackgroundReport::new(&background.options, counts, duration));
        background.stop().await;
    }
    Ok(report)
}

async fn start_backgrounds(args: &ServeArgs) -> Result<Vec<Background>> {
    let mut backgrounds = Vec::new();
    for (place, options) in (1..).zip(&args.background) {
        let client = Client {
            channels: Channels::connect(&args.server.target()?, usize::from(options.concurrency.get())).await?,
            workload: Workload {
                place,
                prompt_tokens: options.prompt_tokens,
                prefix_tokens: options.prefix_tokens,
                max_tokens: options.max_tokens,
                tenant: options.tenant.clone(),
                priority: options.priority,
                ..args.workload()
            },
        };
        backgrounds.push(Background::start(client, options.clone()));
    }
    Ok(backgrounds)
}

impl ServeArgs {
    fn load(&self) -> Load {
        let until = self.duration.map_or(Until::Requests(self.requests), Until::Elapsed);
        match self.rate {
            Some(per_s) => Load::Open { per_s, until },
            None => Load::Closed {
                requests: self.requests,
                concurrency: self.concurrency,
            },
        }
    }

    fn workload(&self) -> Workload {
        Workload {
            seed: self.seed,
            place: 0,
            prompt_tokens: self.prompt_tokens,
            prefix_tokens: self.prefix_tokens,
            max_tokens: self.max_tokens,
            vocab_size: self.vocab,
            tenant: self.tenant.clone(),
            priority: self.priority,
            timeout: self.timeout,
        }
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=SECONDS_MAX).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("not a number of seconds up to {SECONDS_MAX}")),
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (RATE_MIN..=RATE_MAX).contains(&rate) => Ok(rate),
        _ => Err(format!("not a rate from {RATE_MIN} to {RATE_MAX} a second")),
    }
}
