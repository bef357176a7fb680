//! `kvasir bench`: measurements of a running cluster, each as a subcommand.

mod arrivals;
mod background;
mod channels;
mod client;
mod dice;
mod load;
mod outcome;
mod percentiles;
mod report;
mod serve;
mod token_range;
mod workload;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Measures a running cluster
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  kvasir bench serve --requests 64 --concurrency 8")]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Subcommand, Debug)]
enum BenchCommand {
    Serve(serve::ServeArgs),
}

pub async fn run(args: BenchArgs) -> Result<()> {
    match args.command {
        BenchCommand::Serve(args) => serve::run(args).await,
    }
}
