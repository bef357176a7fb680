//! `kvasir drain`: lets a worker go while the cluster talks.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use kvasir_proto::v1;

use crate::client::{self, Server};

const POLL: Duration = Duration::from_millis(100);

/// Lets a worker go: what it holds goes to others, then its process ends
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  kvasir status                lists workers\n  kvasir drain WORKER")]
pub struct DrainArgs {
    #[command(flatten)]
    server: Server,
    /// The worker's id, as `kvasir status` shows it
    #[arg(value_name = "WORKER")]
    worker: String,
    /// How long to wait for it to be gone, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub async fn run(args: DrainArgs) -> Result<()> {
    let begun = Instant::now();
    let target = args.server.target()?;
    client::drain(&target, &args.worker).await?;
    let deadline = begun + Duration::from_secs(args.timeout);
    while is_here(&client::status(&target).await?, &args.worker) {
        if Instant::now() > deadline {
            bail!(
                "worker {} is still needed after {} s: nobody else can take what it holds; it leaves when its sequences have \
                 ended",
                args.worker,
                args.timeout
            );
        }
        tokio::time::sleep(POLL).await;
    }
    let took_ms = begun.elapsed().as_millis();
    match args.json {
        true => println!("{}", serde_json::json!({ "worker": args.worker, "took_ms": took_ms })),
        false => println!("worker {} has gone, after {took_ms} ms", args.worker),
    }
    Ok(())
}

fn is_here(status: &v1::StatusResponse, worker: &str) -> bool {
    let ranks = status.groups.iter().flat_map(|group| &group.ranks);
    let workers = ranks.filter_map(|rank| rank.worker.as_ref());
    workers.chain(&status.spares).any(|known| known.id == worker)
}
