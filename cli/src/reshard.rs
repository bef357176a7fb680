//! `kvasir reshard`: gives a group another number of ranks while it serves.

use anyhow::{Result, bail};
use clap::Args;
use kvasir_proto::v1;
use kvasir_runtime::ByteSize;
use serde::Serialize;

use crate::client::{self, Server};

/// Gives a group another number of ranks while it serves; its answers go on
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kvasir worker --model model.gguf --coordinator http://127.0.0.1:50051 &\n  kvasir reshard --ranks 3"
)]
pub struct ReshardArgs {
    #[command(flatten)]
    server: Server,
    /// The group, as `kvasir status` numbers it
    #[arg(long, value_name = "GROUP", default_value_t = 0)]
    group: u32,
    /// Ranks that it is to have: its own workers, and free ones
    #[arg(long, value_name = "N")]
    ranks: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct ReshardJson {
    group: u32,
    from_ranks: u32,
    ranks: u32,
    epoch: u64,
    outcome: String,
    detail: String,
    cells: u64,
    bytes: u64,
    rounds: u32,
    took_ms: f64,
    pause_ms: f64,
}

pub async fn run(args: ReshardArgs) -> Result<()> {
    let request = v1::ReshardRequest {
        group: args.group,
        ranks: args.ranks,
    };
    let done = client::reshard(&args.server.target()?, request).await?;
    match args.json {
        true => println!("{}", serde_json::to_string(&json(&done))?),
        false => print(&done),
    }
    match done.outcome.as_str() {
        "switched" => Ok(()),
        _ => bail!("not resharded: {}", done.detail),
    }
}

fn json(done: &v1::ReshardResponse) -> ReshardJson {
    ReshardJson {
        group: done.group,
        from_ranks: done.from_ranks,
        ranks: done.ranks,
        epoch: done.epoch,
        outcome: done.outcome.clone(),
        detail: done.detail.clone(),
        cells: done.cells,
        bytes: done.bytes,
        rounds: done.rounds,
        took_ms: done.took_us as f64 / 1e3,
        pause_ms: done.pause_us as f64 / 1e3,
    }
}

fn print(done: &v1::ReshardResponse) {
    println!(
        "group {}, {} ranks to {}: {} · {} cells, {} in {:.0} ms, {} rounds",
        done.group,
        done.from_ranks,
        done.ranks,
        done.detail,
        done.cells,
        ByteSize(done.bytes),
        done.took_us as f64 / 1e3,
        done.rounds,
    );
}
