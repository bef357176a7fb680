//! `kvasir gateway`: OpenAI's HTTP in a process of its own, in front of one coordinator or several.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use kvasir_client::Target;
use kvasir_gateway::{Gateway, RemoteInference};
use kvasir_runtime::{
    descriptors::raise_descriptor_limit,
    door::Door,
    shutdown,
    tls::{ClientTls, ClientTlsFiles, Identity, KeyPairFiles},
};
use serde::Serialize;

use crate::{
    door_options::DoorOptions,
    doors::{bind, url},
    telemetry_options::TelemetryOptions,
};

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
    /// The authority that signed the coordinators' certificates, for https:// [default: that of --tls-dir]
    #[arg(long, value_name = "FILE")]
    coordinator_ca: Option<PathBuf>,
    /// A certificate to show them [default: the client's in --tls-dir]
    #[arg(long, value_name = "FILE", requires = "coordinator_ca", requires = "coordinator_key")]
    coordinator_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "coordinator_cert")]
    coordinator_key: Option<PathBuf>,
    /// A key to show them; better in the variable, where other users of this machine do not see it
    #[arg(long, env = "KVASIR_API_KEY", value_name = "KEY", hide_env_values = true)]
    coordinator_api_key: Option<String>,
    #[command(flatten)]
    door: DoorOptions,
    #[command(flatten)]
    telemetry: TelemetryOptions,
    /// Prints one JSON line when it listens
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Listening {
    http: String,
    metrics: Option<String>,
    pid: u32,
}

impl GatewayArgs {
    fn targets(&self) -> Result<Vec<Target>> {
        let tls = self.coordinator_tls().map(ClientTls::open).transpose()?;
        let of_scheme = |url: &str| tls.clone().filter(|_| url.starts_with("https://"));
        let key = self.coordinator_api_key.as_deref();
        let target = |url: &String| Ok(Target::new(url, of_scheme(url), key)?);
        self.coordinator.iter().map(target).collect()
    }

    fn coordinator_tls(&self) -> Option<ClientTlsFiles> {
        let pair = KeyPairFiles::of(self.coordinator_cert.as_ref(), self.coordinator_key.as_ref());
        let authority = self.coordinator_ca.clone();
        let given = authority.map(|authority| ClientTlsFiles { authority, pair });
        given.or_else(|| {
            let folder = self.door.folder()?;
            Some(ClientTlsFiles {
                authority: folder.authority(),
                pair: Some(folder.pair(&Identity::Client("client".to_owned()))),
            })
        })
    }
}

pub async fn run(args: GatewayArgs) -> Result<()> {
    raise_descriptor_limit();
    let shutdown = shutdown::on_signals()?;
    let metrics = args.telemetry.bind().await?;
    let telemetry = args.telemetry.start("gateway", true)?;
    let exposition = telemetry.exposition().cloned();
    let gateway = Gateway::new(RemoteInference::new(args.targets()?)?).with_metrics(exposition.clone());
    let config = args.door.config();
    let door = Door::open(&config)?;
    let listener = bind(&config, &args.http).await?;
    let listening = Listening {
        http: url(&config, &listener)?,
        metrics: metrics.as_ref().map(|door| door.url.clone()),
        pid: std::process::id(),
    };
    // It is as healthy as it lives: whether a coordinator answers, its other door tells.
    let door_of_metrics = metrics.map(|door| door.serve(exposition, || true, shutdown.clone()));
    match args.json {
        true => println!("{}", serde_json::to_string(&listening)?),
        false => println!("OpenAI's API is at {}/v1", listening.http),
    }
    let served = kvasir_gateway::serve(listener, &door, gateway, shutdown).await;
    if let Some(door) = door_of_metrics {
        door.abort();
    }
    telemetry.end().await;
    Ok(served?)
}
