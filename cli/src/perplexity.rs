//! `kvasir perplexity`: how well a model foretells a text, by llama.cpp's method, on a local cluster of real processes.
//!
//! The text is cut into chunks of as many tokens as the context; what does not fill one is left out. In each chunk the
//! tokens of the second half are scored, given those before them. The perplexity is exp of their mean negative logprob.

mod chunks;
mod estimate;

use std::{collections::BTreeMap, path::PathBuf, time::Instant};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use kvasir_client::Target;
use kvasir_coordinator::CoordinatorConfig;
use kvasir_kv::TokenId;
use kvasir_proto::v1::{self, generate_request::Prompt};
use kvasir_runtime::{door::DoorConfig, shutdown};
use serde::Serialize;
use tokio::task::JoinSet;

use self::{chunks::Chunks, estimate::Estimate};
use crate::{
    answer::Answer,
    client,
    doors::{Doors, Watching},
    engine_options::EngineOptions,
    local_cluster::{LocalCluster, LocalOptions},
    worker::WorkerSize,
};

/// Chunks that are computed at a time.
const CHUNKS_IN_FLIGHT: usize = 4;

/// Measures how well a model foretells a text
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  kvasir perplexity --model model.gguf --file text.txt\n  kvasir perplexity --model \
                  model.gguf --file text.txt --workers 3 --weights-dtype f32 --kv-dtype f32 --json"
)]
pub struct PerplexityArgs {
    #[command(flatten)]
    pub engine: EngineOptions,
    #[command(flatten)]
    size: WorkerSize,
    /// The text, in UTF-8
    #[arg(long, value_name = "TEXT")]
    file: PathBuf,
    /// Tokens of a chunk; those of its second half are scored
    #[arg(long, default_value_t = 512, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(4..))]
    context: u32,
    /// Worker processes; any number gives the same value
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    workers: u32,
    /// Print one JSON object when all is measured
    #[arg(long)]
    json: bool,
}

pub async fn run(args: PerplexityArgs) -> Result<()> {
    let shutdown = shutdown::on_signals()?;
    let (engine, file, context) = (args.engine.clone(), args.file.clone(), args.context);
    let chunks = tokio::task::spawn_blocking(move || Chunks::read(&engine.model, &file, context));
    let chunks = chunks.await.context("reading the text failed")??;
    let doors = Doors::bind(&DoorConfig::default(), "127.0.0.1:0", None).await?;
    let options = LocalOptions {
        engine: &args.engine,
        size: &args.size,
        certificates: None,
        watching: Watching::default(),
        worker_flags: Vec::new(),
    };
    let mut cluster = LocalCluster::start(config(&args)?, options, doors, shutdown.clone()).await?;
    let target = Target::plain(&cluster.addresses.grpc)?;
    let result = async {
        let Some(()) = cluster.until_ready().await? else {
            return Ok(());
        };
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            (id, pid, how) = cluster.workers.next_exit() => {
                Err(anyhow!("worker {id} (pid {pid}) ended before all was measured: {how}"))
            }
            measured = measure(&args, &target, &chunks) => measured,
        }
    }
    .await;
    cluster.stop().await?;
    result
}

fn config(args: &PerplexityArgs) -> Result<CoordinatorConfig> {
    Ok(CoordinatorConfig {
        kv_dtype: args.engine.kv_dtype,
        weight_mode: args.engine.weights_dtype,
        backend: args.engine.arithmetic.resolve()?.backend,
        block_size: args.engine.block_size,
        ..CoordinatorConfig::new(args.engine.model.clone(), vec![args.workers])
    })
}

async fn measure(args: &PerplexityArgs, target: &Target, chunks: &Chunks) -> Result<()> {
    let begun = Instant::now();
    let mut asked = chunks.iter().enumerate();
    let mut answers = JoinSet::new();
    let mut ahead = BTreeMap::new();
    let (mut estimate, mut numerics_id) = (Estimate::default(), String::new());
    for next in 0..chunks.len() {
        while !ahead.contains_key(&next) {
            while answers.len() < CHUNKS_IN_FLIGHT
                && let Some((index, chunk)) = asked.next()
            {
                answers.spawn(score(target.clone(), index, chunk.to_vec()));
            }
            let answer = answers.join_next().await.context("a chunk was not asked for")?;
            let (index, answer) = answer.context("asking failed")??;
            ahead.insert(index, answer);
        }
        let answer = ahead.remove(&next).unwrap_or_default();
        if let Some(descriptor) = &answer.descriptor {
            numerics_id = hex(&descriptor.numerics_id);
        }
        estimate.add(chunks.scored(&answer.prompt_logprobs)?);
        if !args.json {
            println!("[{}/{}] {:.4}", next + 1, chunks.len(), estimate.perplexity());
        }
    }
    let tokens_per_s = f64::from(chunks.num_tokens()) / begun.elapsed().as_secs_f64();
    let report = Report::new(args, chunks, &estimate, numerics_id, tokens_per_s)?;
    report.print(args.json)
}

/// The logprobs of a chunk's tokens, given those before them.
async fn score(target: Target, index: usize, chunk: Vec<TokenId>) -> Result<(usize, Answer)> {
    let request = v1::GenerateRequest {
        prompt: Some(Prompt::TokenIds(v1::TokenIds {
            ids: chunk.iter().map(|token| token.0).collect(),
        })),
        max_tokens: Some(0),
        prompt_logprobs: Some(0),
        ..Default::default()
    };
    let answers = client::generate(&target, request, false, |_, _, _| {}).await?;
    let answer = answers.into_iter().next().context("no answer came")?;
    Ok((index, answer))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What was measured, and with what.
#[derive(Serialize)]
struct Report {
    perplexity: f64,
    standard_error: f64,
    /// Tokens scored.
    tokens: u32,
    chunks: usize,
    context: u32,
    tokens_per_s: f64,
    /// Over the bits of all logprobs.
    digest: String,
    numerics_id: String,
    model: String,
    file: String,
    workers: u32,
    threads: u32,
    weights_dtype: String,
    kv_dtype: String,
    backend: String,
}

impl Report {
    fn new(
        args: &PerplexityArgs,
        chunks: &Chunks,
        estimate: &Estimate,
        numerics_id: String,
        tokens_per_s: f64,
    ) -> Result<Self> {
        Ok(Self {
            perplexity: estimate.perplexity(),
            standard_error: estimate.standard_error(),
            tokens: estimate.tokens(),
            chunks: chunks.len(),
            context: args.context,
            tokens_per_s,
            digest: estimate.digest(),
            numerics_id,
            model: args.engine.model.display().to_string(),
            file: args.file.display().to_string(),
            workers: args.workers,
            threads: args.size.threads,
            weights_dtype: args.engine.weights_dtype.to_string(),
            kv_dtype: args.engine.kv_dtype.to_string(),
            backend: args.engine.arithmetic.resolve()?.backend.to_string(),
        })
    }

    fn print(&self, json: bool) -> Result<()> {
        if json {
            println!("{}", serde_json::to_string(self)?);
            return Ok(());
        }
        println!(
            "perplexity {:.4} +/- {:.4}, {} tokens scored in {} chunks of {}, {:.1} tokens/s",
            self.perplexity, self.standard_error, self.tokens, self.chunks, self.context, self.tokens_per_s
        );
        Ok(())
    }
}
