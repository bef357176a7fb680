//! `kvasir lab tp`: a model on one rank, two, three and so on: what each rank holds, how uneven that is, what goes between
//! them, and how long a token takes.
//!
//! Ranks are worker processes of this binary, stepped without a coordinator; they tell what they loaded themselves.

mod report;

use std::{num::NonZero, path::PathBuf, thread};

use anyhow::{Context, Result, bail};
use clap::{Args, value_parser};
use kvasir_kv::{LoadReport, RankCapacity, RankShare};
use kvasir_model::Checkpoint;
use kvasir_runtime::shutdown;

use self::report::{RankRow, Report, Row};
use super::{ascending, results_folder::ResultsFolder};
use crate::{
    bench::{group_shape::GroupShape, ranks_alone::RanksAlone, spread::Spread},
    engine_options::EngineOptions,
    plan::Question,
    plan_report::PlanReport,
    worker::WorkerSize,
};

/// Measures a model on 1, 2, 3 and so on ranks: bytes of each rank, imbalance, bytes on the wire, time per token
///
/// Any number of ranks will do: heads that do not divide are dealt unevenly, and ranks beyond the KV heads hold parts of
/// the FFN and of the vocabulary.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  kvasir lab tp --model model.gguf --ranks 1,2,3,5 --out plots")]
pub struct TpArgs {
    #[command(flatten)]
    pub engine: EngineOptions,
    #[command(flatten)]
    size: WorkerSize,
    /// Numbers of ranks, each a worker process
    #[arg(long, default_value = "1,2,3,4", value_name = "N,…", value_delimiter = ',', value_parser = value_parser!(u32).range(1..=64))]
    ranks: Vec<u32>,
    /// Streams that decode at once
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = value_parser!(u32).range(1..=1024))]
    streams: u32,
    /// Tokens of each stream
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = value_parser!(u32).range(4..=1 << 17))]
    tokens: u32,
    /// How often each number of ranks is measured
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Tokens of a request that the bytes of the KV cache are told for [default: the model's context]
    #[arg(long, value_name = "TOKENS", value_parser = value_parser!(u32).range(1..))]
    context: Option<u32>,
    /// Speed of the network that the time on the wire is told for, in gigabits a second
    #[arg(long, default_value_t = 10.0, value_name = "GBPS")]
    link_gbps: f64,
    /// Write tp.json, tp.csv, tp.md and the plots as SVG and PNG there
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Whatever is dropped on the way ends its processes.
pub async fn run(args: TpArgs) -> Result<()> {
    args.engine.arithmetic.resolve()?.can_compute_here()?;
    let out = args.out.as_deref().map(ResultsFolder::make).transpose()?;
    let shutdown = shutdown::on_signals()?;
    let report = tokio::select! {
        () = shutdown.cancelled() => bail!("interrupted before all was measured"),
        report = args.measure() => report?,
    };
    if let Some(folder) = &out {
        report.write(folder)?;
    }
    match args.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => report.print(),
    }
    Ok(())
}

impl TpArgs {
    async fn measure(&self) -> Result<Report> {
        let checkpoint = Checkpoint::open(&self.engine.model);
        let checkpoint = checkpoint.with_context(|| format!("cannot open {}", self.engine.model.display()))?;
        let mut rows = Vec::new();
        for ranks in ascending(&self.ranks) {
            rows.push(self.row(&checkpoint, ranks).await?);
        }
        let spec = checkpoint.spec();
        let file = checkpoint.path().file_stem().unwrap_or_default().to_string_lossy();
        Ok(Report {
            kvasir_version: env!("CARGO_PKG_VERSION"),
            model: file.into_owned(),
            q_heads: spec.num_q_heads,
            kv_heads: spec.num_kv_heads,
            kv_dtype: self.engine.kv_dtype.to_string(),
            weights_dtype: self.engine.weights_dtype.to_string(),
            backend: self.engine.arithmetic.resolve()?.backend.name(),
            threads: self.size.threads,
            cores: thread::available_parallelism().map_or(1, NonZero::get) as u32,
            streams: self.streams,
            tokens: self.tokens,
            context: self.context.unwrap_or(spec.context_len),
            link_gbps: self.link_gbps,
            rows,
        })
    }

    async fn row(&self, checkpoint: &Checkpoint, ranks: u32) -> Result<Row> {
        let capacities = vec![RankCapacity::default(); ranks as usize];
        let question = Question::new(checkpoint, &self.engine, capacities, self.context, 1, self.link_gbps)?;
        let shape = GroupShape::new(&self.engine, &self.size, ranks, self.streams, self.tokens)?;
        let plan = question.balance(&question.capacities)?;
        let planned = PlanReport::new(checkpoint, &question, &plan);
        let mut alone = RanksAlone::start(&self.engine, &self.size, &shape).await?;
        // A warm-up: what it takes is not counted.
        alone.decode(self.streams, self.tokens).await?;
        let mut us_per_token = Vec::new();
        for _ in 0..self.runs {
            us_per_token.push(1e6 / alone.decode(self.streams, self.tokens).await?);
        }
        let loads = alone.loads().to_vec();
        alone.stop().await?;
        let of_rank = |(share, load): (&RankShare, LoadReport)| RankRow {
            kv_heads: share.num_kv_heads(),
            weight_bytes: load.weight_bytes,
            kv_bytes: u64::from(share.num_kv_heads()) * question.cell_bytes_per_head(),
        };
        Ok(Row {
            ranks,
            each: plan.shares().iter().zip(loads).map(of_rank).collect(),
            imbalance: planned.imbalance,
            wire_bytes_per_token: planned.wire.bytes_per_token,
            wire_us_per_token: planned.wire.us_per_token,
            us_per_token: Spread::of(&us_per_token).context("no runs")?,
        })
    }
}
