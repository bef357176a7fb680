//! `kvasir lab`: what grouped-query attention and tensor parallelism keep and cost; each experiment is a subcommand.

mod available_memory;
mod block_model;
mod cell_filler;
mod chart;
mod gqa;
mod memory;
mod results_folder;
mod table;
mod tp;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::engine_options::EngineOptions;

/// Shows what a group size, a KV dtype and a number of ranks cost, measured or computed
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  kvasir lab gqa --out plots\n  kvasir lab memory --preset llama-3.1-8b")]
pub struct LabArgs {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Subcommand, Debug)]
enum LabCommand {
    Gqa(gqa::GqaArgs),
    Memory(memory::MemoryArgs),
    Tp(tp::TpArgs),
}

impl LabArgs {
    /// Of an experiment that opens a model.
    pub fn engine(&mut self) -> Option<&mut EngineOptions> {
        match &mut self.command {
            LabCommand::Gqa(_) | LabCommand::Memory(_) => None,
            LabCommand::Tp(args) => Some(&mut args.engine),
        }
    }
}

/// Each once.
fn ascending(numbers: &[u32]) -> Vec<u32> {
    let mut numbers = numbers.to_vec();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

pub async fn run(args: LabArgs) -> Result<()> {
    match args.command {
        // Blocks this thread: it measures, and nothing else runs here.
        LabCommand::Gqa(args) => gqa::run(&args),
        LabCommand::Memory(args) => memory::run(&args),
        LabCommand::Tp(args) => tp::run(args).await,
    }
}
