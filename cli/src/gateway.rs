//! `kvasir gateway`: OpenAI's HTTP in a process of its own, in front of one coordinator or several.

use anyhow::Result;
use clap::Args;
use kvasir_gateway::{Gateway, RemoteInference};
use kvasir_runtime::shutdown;
use serde::Serialize;

use crate::doors::bind;

/// Serves OpenAI's HTTP API in front of one coordinator or several
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kvasir gateway --http 127.0.0.1:8000 --coordinator http://127.0.0.1:50051 \
                        --coordinator http://127.0.0.1:50052"
)]
pub struct GatewayArgs {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:8000", value_name = "HOST:PORT")]
    http: String,
    /// A coordinator to ask; several serve the same model, and an answer whose coordinator dies goes on at another
    #[arg(long, required = true, env = "KVASIR_ENDPOINT", value_name = "URL")]
    coordinator: Vec<String>,
    /// Allow an address that other machines reach: there is no encryption and no authentication yet
    #[arg(long)]
    insecure: bool,
    /// Prints one JSON line when it listens
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Listening {
    http: String,
    pid: u32,
}

pub async fn run(args: GatewayArgs) -> Result<()> {
    let shutdown = shutdown::on_signals()?;
    let gateway = Gateway::new(RemoteInference::new(&args.coordinator)?);
    let listener = bind(&args.http, args.insecure).await?;
    let listening = Listening {
        http: format!("http://{}", listener.local_addr()?),
        pid: std::process::id(),
    };
    match args.json {
        true => println!("{}", serde_json::to_string(&listening)?),
        false => println!("OpenAI's API is at {}/v1", listening.http),
    }
    kvasir_gateway::serve(listener, gateway, shutdown).await;
    Ok(())
}
