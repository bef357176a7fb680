//! `kvasir bench steps`: what the coordinator costs. The same ranks are stepped without one, and asked through one, by turns.
//!
//! Both sides are worker processes of this binary, with the same plan, threads and options; the model is in memory twice,
//! and whoever is not measured sleeps. A third number is what ranks wait for each other at least: one small all-reduce.

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, value_parser};
use kvasir_client::Target;
use kvasir_proto::v1;
use kvasir_runtime::shutdown;

use super::{
    all_reduce,
    group_shape::GroupShape,
    prober::Prober,
    ranks_alone::RanksAlone,
    steps_report::{Report, Row},
    trial::{Trial, TrialKind, without_repetition},
    up_child::UpChild,
};
use crate::{client, engine_options::EngineOptions, worker::WorkerSize};

/// A coordinator's default, unless more are measured.
const SEQUENCES_MIN: u32 = 64;

/// Measures what the coordinator costs: the same ranks with it and without
///
/// Worker processes decode greedily, each stream after one prompt token. By turns, they are stepped by plans that are
/// known ahead, over the session that they have with a coordinator; and a client asks `kvasir up`. Then, how long one
/// small all-reduce takes between ranks that are threads of one process.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  kvasir bench steps --model model.gguf --ranks 2 --streams 1,64")]
pub struct StepsArgs {
    #[command(flatten)]
    pub engine: EngineOptions,
    #[command(flatten)]
    size: WorkerSize,
    /// Ranks of the group, each a worker process
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = value_parser!(u32).range(1..=256))]
    ranks: u32,
    /// Streams that decode at once, one row each
    #[arg(
        long,
        default_value = "1,64",
        value_name = "N,N",
        value_delimiter = ',',
        value_parser = value_parser!(u32).range(1..=4096)
    )]
    streams: Vec<u32>,
    /// Tokens of each stream
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = value_parser!(u32).range(4..=1 << 20))]
    tokens: u32,
    /// How often each is measured
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Whatever is dropped on the way ends its processes.
pub async fn run(args: StepsArgs) -> Result<()> {
    args.engine.arithmetic.resolve()?.can_compute_here()?;
    let shutdown = shutdown::on_signals()?;
    let report = tokio::select! {
        () = shutdown.cancelled() => bail!("interrupted before all was measured"),
        report = measure(&args) => report?,
    };
    match args.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => report.print(),
    }
    Ok(())
}

async fn measure(args: &StepsArgs) -> Result<Report> {
    let shape = GroupShape::new(&args.engine, &args.size, args.ranks, args.streams_max(), args.tokens)?;
    let all_reduce = all_reduce::measure(args.ranks as usize, shape.sums_len).await?;
    let alone = RanksAlone::start(&args.engine, &args.size, &shape).await?;
    let up = UpChild::start(args.up_flags(&shape)?).await?;
    let mut sides = Sides {
        prober: Prober::connect(&Target::plain(&up.grpc)?, args.streams_max()).await?,
        alone,
    };
    let rows = sides.rows(args).await?;
    check_whole(&client::status(&Target::plain(&up.grpc)?).await?, args.ranks)?;
    let Sides { prober, alone } = sides;
    up.stop().await?;
    alone.stop().await?;
    Ok(Report {
        kvasir_version: env!("CARGO_PKG_VERSION"),
        model: prober.model,
        ranks: args.ranks,
        ranks_are: "worker processes",
        threads: args.size.threads,
        tokens: args.tokens,
        rows,
        all_reduce,
    })
}

/// What is measured by turns.
struct Sides {
    alone: RanksAlone,
    prober: Prober,
}

impl Sides {
    async fn rows(&mut self, args: &StepsArgs) -> Result<Vec<Row>> {
        let streams = without_repetition(&args.streams).into_iter();
        let trials: Vec<Trial> = streams.map(|streams| trial(streams, args.tokens)).collect();
        for trial in &trials {
            // A warm-up of each: what it takes is not counted.
            self.measure(trial).await?;
        }
        let mut samples = vec![(Vec::new(), Vec::new()); trials.len()];
        for _ in 0..args.runs {
            for (trial, (alone, cluster)) in trials.iter().zip(&mut samples) {
                let rates = self.measure(trial).await?;
                alone.push(rates.0);
                cluster.push(rates.1);
            }
        }
        let rows = trials.iter().zip(&samples);
        let rows: Option<Vec<Row>> = rows
            .map(|(trial, (alone, cluster))| Row::new(trial.streams, alone, cluster))
            .collect();
        rows.context("no runs")
    }

    /// Tokens a second of the ranks alone, and of the cluster.
    async fn measure(&mut self, trial: &Trial) -> Result<(f64, f64)> {
        let alone = self.alone.decode(trial.streams, trial.answer_tokens).await?;
        let cluster = self.prober.measure(trial).await?;
        ensure!(
            cluster.waited == 0,
            "{} of {} streams began when others had ended: more --tokens would work",
            cluster.waited,
            trial.streams
        );
        Ok((alone, cluster.tokens_per_s))
    }
}

/// A cluster that has lost a rank meanwhile, or had sequences wait for blocks, was not the one to be measured.
fn check_whole(status: &v1::StatusResponse, ranks: u32) -> Result<()> {
    for counter in ["ranks_lost", "preemptions"] {
        let count = status.counters.get(counter).copied().unwrap_or_default();
        ensure!(
            count == 0,
            "the cluster of {ranks} ranks was disturbed: {counter} {count}"
        );
    }
    Ok(())
}

/// After one prompt token each: a step is one token of every stream from the first on.
fn trial(streams: u32, tokens: u32) -> Trial {
    Trial {
        kind: TrialKind::Decode,
        prompt_tokens: 1,
        answer_tokens: tokens,
        depth: 0,
        streams,
    }
}

impl StepsArgs {
    fn streams_max(&self) -> u32 {
        self.streams.iter().copied().max().unwrap_or(1)
    }

    fn up_flags(&self, shape: &GroupShape) -> Result<Vec<String>> {
        let mut flags = self.engine.to_args()?;
        flags.extend(self.size.to_args());
        for (flag, value) in [
            ("--workers", self.ranks),
            ("--sequences", shape.streams_max.max(SEQUENCES_MIN)),
            ("--step-tokens", shape.step_tokens_max),
        ] {
            flags.extend([flag.to_owned(), value.to_string()]);
        }
        Ok(flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_that_lost_a_rank_is_not_the_one_to_be_measured() {
        let mut status = v1::StatusResponse::default();
        assert!(check_whole(&status, 2).is_ok());
        status.counters.insert("ranks_lost".to_owned(), 1);
        let error = check_whole(&status, 2).unwrap_err().to_string();
        assert_eq!(error, "the cluster of 2 ranks was disturbed: ranks_lost 1");
    }
}
