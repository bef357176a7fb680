//! `kvasir bench speed`: how many tokens a second a running cluster computes of prompts and of answers, as a client sees it.
//!
//! It measures alone. The tests run by turns, so that what else the machine does falls on all of them, and each runs once
//! unmeasured.

use anyhow::{Context, Result};
use clap::{Args, value_parser};

use super::{
    prober::{Prober, Sample},
    quiet::wait_until_quiet,
    speed_report::{Report, Row},
    trial::{Sizes, Trial},
};
use crate::client::Server;

/// Measures how many tokens a second a running cluster computes
///
/// Prefill is a prompt's tokens by the time to the first token of its answer. Decode is one answer at each depth of
/// context, and several at once: the tokens between the last one's first and the first one's last. Prompts are random
/// token ids, new in each run; answers are greedy and never end early.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  kvasir bench speed --prefill 512 --decode 128 --depths 0,4096 --streams 1,8,32")]
pub struct SpeedArgs {
    #[command(flatten)]
    server: Server,
    /// Tokens of the prompt that is computed
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    prefill: u32,
    /// Tokens of an answer; half as many after a deep context
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = value_parser!(u32).range(4..))]
    decode: u32,
    /// Tokens of context that one answer begins after, one test each
    #[arg(long, default_value = "0", value_name = "N,N", value_delimiter = ',')]
    depths: Vec<u32>,
    /// Answers at once, after prompts of 16 tokens, one test each
    #[arg(
        long,
        default_value = "1",
        value_name = "N,N",
        value_delimiter = ',',
        value_parser = value_parser!(u32).range(1..=4096)
    )]
    streams: Vec<u32>,
    /// How often each test is measured
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub async fn run(args: SpeedArgs) -> Result<()> {
    let report = measure(&args).await?;
    match args.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => report.print(),
    }
    Ok(())
}

async fn measure(args: &SpeedArgs) -> Result<Report> {
    let streams_max = args.streams.iter().copied().max().unwrap_or(1);
    let mut prober = Prober::connect(&args.server.target()?, streams_max).await?;
    let trials = args.sizes().trials(prober.context_len)?;
    wait_until_quiet(&args.server.target()?).await?;
    // A warm-up of each: what it takes is not counted.
    for trial in &trials {
        prober.measure(trial).await?;
    }
    let mut samples = vec![Vec::new(); trials.len()];
    for _ in 0..args.runs {
        for (trial, samples) in trials.iter().zip(&mut samples) {
            samples.push(prober.measure(trial).await?);
        }
    }
    let row = |(trial, samples): (&Trial, &Vec<Sample>)| Row::new(trial, samples);
    let rows: Option<Vec<Row>> = trials.iter().zip(&samples).map(row).collect();
    Ok(Report::new(prober.model, rows.context("no runs")?))
}

impl SpeedArgs {
    fn sizes(&self) -> Sizes {
        Sizes {
            prefill: self.prefill,
            decode: self.decode,
            depths: self.depths.clone(),
            streams: self.streams.clone(),
        }
    }
}
