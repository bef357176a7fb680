//! `kvasir up`: a local cluster of real processes, told of as it comes up and goes on.

use std::{
    io::{IsTerminal, stderr},
    time::Duration,
};

use anyhow::Result;
use clap::Args;
use kvasir_runtime::{descriptors::raise_descriptor_limit, shutdown, tls::Identity};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    coordinator::ServingOptions,
    doors::{Addresses, Watching},
    engine_options::EngineOptions,
    groups::GroupOptions,
    local_cluster::{LocalCluster, LocalOptions, Workers},
    telemetry_options::TelemetryOptions,
    worker::{WorkerSize, die_with},
};

const RESTART_PAUSE: Duration = Duration::from_millis(500);

/// Starts a local cluster: a coordinator and worker processes
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  kvasir up --model model.gguf --workers 2\n  kvasir up --model model.gguf --workers \
                        3 --grpc 127.0.0.1:0 --json\n  kvasir up --model model.gguf --groups 1,2"
)]
pub struct UpArgs {
    #[command(flatten)]
    pub engine: EngineOptions,
    #[command(flatten)]
    size: WorkerSize,
    #[command(flatten)]
    serving: ServingOptions,
    #[command(flatten)]
    groups: GroupOptions,
    #[command(flatten)]
    telemetry: TelemetryOptions,
    /// Start a worker anew when it dies
    #[arg(long)]
    restart_workers: bool,
    /// Print one JSON line when the cluster serves
    #[arg(long)]
    json: bool,
    /// End when this process, the one that started the cluster, ends
    #[arg(long, hide = true, value_name = "PID")]
    parent_pid: Option<u32>,
}

#[derive(Serialize)]
struct Ready {
    grpc: String,
    http: Option<String>,
    metrics: Option<String>,
    pid: u32,
    workers: Vec<ReadyWorker>,
}

#[derive(Serialize, Clone)]
struct ReadyWorker {
    id: String,
    pid: u32,
}

pub async fn run(args: UpArgs) -> Result<()> {
    if let Some(parent) = args.parent_pid {
        die_with(parent)?;
    }
    let shutdown = shutdown::on_signals()?;
    raise_descriptor_limit();
    let certificates = args.serving.door.workers_folder()?;
    let doors = args.serving.bind().await?;
    let config = args.serving.config(&args.engine, &args.groups)?;
    let metrics = args.telemetry.bind().await?;
    let metrics_url = metrics.as_ref().map(|door| door.url.clone());
    let telemetry = args.telemetry.start("coordinator", args.serving.http.is_some())?;
    let options = LocalOptions {
        engine: &args.engine,
        size: &args.size,
        watching: Watching { telemetry, metrics },
        worker_flags: args.telemetry.to_worker_args()?,
        certificates,
    };
    let mut cluster = LocalCluster::start(config, options, doors, shutdown.clone()).await?;
    let result = async {
        let Some(()) = cluster.until_ready().await? else {
            return Ok(());
        };
        announce(&args, &cluster, metrics_url)?;
        attend(&args, &mut cluster.workers, &shutdown).await
    }
    .await;
    cluster.stop().await?;
    result
}

fn announce(args: &UpArgs, cluster: &LocalCluster, metrics: Option<String>) -> Result<()> {
    let Addresses { grpc, http } = &cluster.addresses;
    let running = cluster.workers.running();
    let list: Vec<_> = running
        .iter()
        .map(|(id, &pid)| ReadyWorker { id: id.clone(), pid })
        .collect();
    if args.json {
        let ready = Ready {
            grpc: grpc.clone(),
            http: http.clone(),
            metrics,
            pid: std::process::id(),
            workers: list,
        };
        println!("{}", serde_json::to_string(&ready)?);
        return Ok(());
    }
    let names: Vec<_> = list
        .iter()
        .map(|worker| format!("{} pid {}", worker.id, worker.pid))
        .collect();
    println!("ready: {grpc} ({})", names.join(", "));
    if let Some(http) = http {
        println!("OpenAI's API is at {http}/v1, the live page at {http}/");
    }
    if stderr().is_terminal() {
        eprintln!(
            "try: kvasir chat --endpoint {grpc}{} \"What is a fjord?\"",
            credentials(args)
        );
    }
    Ok(())
}

/// What a client of this cluster is to be given besides.
fn credentials(args: &UpArgs) -> String {
    let Some(folder) = args.serving.door.folder() else {
        return String::new();
    };
    let pair = folder.pair(&Identity::Client("client".to_owned()));
    format!(
        " --tls-ca {} --tls-cert {} --tls-key {}",
        folder.authority().display(),
        pair.certificate.display(),
        pair.key.display()
    )
}

/// Reports what happens to workers until told to end.
async fn attend(args: &UpArgs, workers: &mut Workers, shutdown: &CancellationToken) -> Result<()> {
    loop {
        let (id, pid, how) = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            exit = workers.next_exit() => exit,
        };
        let left = workers.running().len();
        if !args.restart_workers {
            eprintln!("worker {id} (pid {pid}) ended: {how}; {left} left");
            continue;
        }
        eprintln!("worker {id} (pid {pid}) ended: {how}; starting it anew");
        tokio::time::sleep(RESTART_PAUSE).await;
        workers.start(id)?;
    }
}
