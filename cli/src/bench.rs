//! `kvasir bench`: measurements, each as a subcommand.

mod all_reduce;
mod arrivals;
mod background;
mod channels;
mod client;
mod decode_plans;
mod dice;
pub mod group_shape;
mod load;
pub mod memory;
mod moves;
mod outcome;
mod percentiles;
mod prober;
mod quiet;
mod rank_door;
mod rank_pair;
pub mod ranks_alone;
mod report;
mod serve;
mod speed;
mod speed_report;
pub mod spread;
mod steps;
mod steps_report;
mod token_range;
mod token_window;
mod transfer;
mod trial;
mod up_child;
mod workload;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::engine_options::EngineOptions;

/// Measures a running cluster, or what this host makes possible
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  kvasir bench serve --requests 64 --concurrency 8")]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Subcommand, Debug)]
enum BenchCommand {
    Memory(memory::MemoryArgs),
    Moves(moves::MovesArgs),
    Serve(serve::ServeArgs),
    Speed(speed::SpeedArgs),
    Steps(steps::StepsArgs),
    Transfer(transfer::TransferArgs),
}

impl BenchArgs {
    /// Of a measurement that opens a model.
    pub fn engine(&mut self) -> Option<&mut EngineOptions> {
        match &mut self.command {
            BenchCommand::Memory(_) | BenchCommand::Moves(_) | BenchCommand::Serve(_) | BenchCommand::Speed(_) => None,
            BenchCommand::Steps(args) => Some(&mut args.engine),
            BenchCommand::Transfer(args) => Some(&mut args.engine),
        }
    }
}

pub async fn run(args: BenchArgs) -> Result<()> {
    match args.command {
        // Blocks this thread: it measures, and nothing else runs here.
        BenchCommand::Memory(args) => memory::run(&args),
        BenchCommand::Moves(args) => moves::run(args).await,
        BenchCommand::Serve(args) => serve::run(args).await,
        BenchCommand::Speed(args) => speed::run(args).await,
        BenchCommand::Steps(args) => steps::run(args).await,
        // So does this one.
        BenchCommand::Transfer(args) => transfer::run(&args),
    }
}
