//! `kvasir log`: which log lines a running cluster writes.

use anyhow::Result;
use clap::Args;
use kvasir_proto::v1;

use crate::client::{self, Server};

/// Changes which log lines a coordinator and its workers write, while they run
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  kvasir log debug\n  kvasir log info,kvasir_coordinator=debug")]
pub struct LogArgs {
    #[command(flatten)]
    server: Server,
    /// Levels by target: error, warn, info, debug or trace, for all or as TARGET=LEVEL
    #[arg(value_name = "FILTER")]
    filter: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub async fn run(args: LogArgs) -> Result<()> {
    let target = args.server.target()?;
    let v1::SetLogFilterResponse { workers } = client::set_log_filter(&target, &args.filter).await?;
    match args.json {
        true => println!("{}", serde_json::json!({ "filter": args.filter, "workers": workers })),
        false => println!("the coordinator and {workers} workers log by `{}` now", args.filter),
    }
    Ok(())
}
