//! `kvasir worker`: the role, as deployed. One process, one rank.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{ArgGroup, Args};
use kvasir_runtime::{
    ByteSize, parse_endpoint, shutdown,
    tls::{ClientTlsFiles, KeyPairFiles},
};
use kvasir_worker::{
    followed::CoordinatorChoice,
    session::{self, WorkerConfig},
};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use tokio_util::sync::CancellationToken;

use crate::{engine_options::EngineOptions, etcd_options::EtcdOptions, telemetry_options::TelemetryOptions};

/// Runs a worker: joins a coordinator and computes its share of the model
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  kvasir worker --model model.gguf --coordinator http://127.0.0.1:50051\n  kvasir worker --model \
                  model.gguf --etcd http://127.0.0.1:2379",
    group = ArgGroup::new("finds").args(["coordinator", "etcd"]).required(true)
)]
pub struct WorkerArgs {
    #[command(flatten)]
    pub engine: EngineOptions,
    #[command(flatten)]
    size: WorkerSize,
    #[command(flatten)]
    telemetry: TelemetryOptions,
    /// The coordinator to join; it is waited for when it is away. With --etcd instead, whoever leads is joined
    #[arg(long, env = "KVASIR_COORDINATOR", value_name = "URL")]
    coordinator: Option<String>,
    #[command(flatten)]
    etcd: EtcdOptions,
    /// A name, unique in the cluster [default: from the process id]
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// Relative speed: a worker of weight 2 gets twice the work of a worker of weight 1
    #[arg(long, default_value_t = 1.0, value_name = "W")]
    weight: f64,
    /// The address that workers on other hosts reach this one by
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_name = "IP")]
    advertise: IpAddr,
    /// The authority that signed the coordinator's certificate and those of workers
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// This worker's certificate, kvasir://worker/ID, as PEM; peers are met with it, too. Read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_ca", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Listen to peers on other machines although nothing is encrypted and anybody may connect
    #[arg(long)]
    insecure: bool,
    /// How long a worker that is asked to end waits until others hold what it held, in seconds
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    grace: u64,
    /// End when this process, the one that started the worker, ends
    #[arg(long, hide = true, value_name = "PID")]
    parent_pid: Option<u32>,
}

/// What `up` passes on to its workers.
#[derive(Args, Clone, Debug)]
pub struct WorkerSize {
    /// Threads that compute
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub threads: u32,
    /// Memory for the KV cache, for example 512MiB
    #[arg(long, default_value = "1GiB", value_name = "SIZE")]
    pub kv_memory: ByteSize,
}

impl WorkerSize {
    /// The flags again, for a child process.
    pub fn to_args(&self) -> [String; 4] {
        let (threads, kv_memory) = (self.threads.to_string(), self.kv_memory.0.to_string());
        ["--threads".to_owned(), threads, "--kv-memory".to_owned(), kv_memory]
    }
}

impl WorkerArgs {
    /// Errors with what cannot be used.
    fn coordinator(&self, tls: Option<&ClientTlsFiles>) -> Result<CoordinatorChoice> {
        let Some(url) = &self.coordinator else {
            let etcd = self.etcd.config()?.context("--coordinator or --etcd is needed")?;
            return Ok(CoordinatorChoice::Etcd(etcd));
        };
        let url = parse_endpoint(url)?;
        session::check_scheme(&url, tls.is_some()).map_err(anyhow::Error::msg)?;
        Ok(CoordinatorChoice::At(url))
    }

    fn tls_files(&self) -> Option<ClientTlsFiles> {
        let pair = KeyPairFiles::of(self.tls_cert.as_ref(), self.tls_key.as_ref());
        self.tls_ca.clone().map(|authority| ClientTlsFiles { authority, pair })
    }
}

/// Sums and cells come in at the advertised address, by connections that are encrypted where there is a certificate.
fn check_advertised(advertise: IpAddr, tls: Option<&ClientTlsFiles>, insecure: bool) -> Result<()> {
    let encrypted = tls.is_some_and(|tls| tls.pair.is_some());
    if advertise.is_loopback() || encrypted {
        return Ok(());
    }
    if !insecure {
        bail!(
            "peers would reach {advertise} without encryption or authentication; give --tls-cert, or pass --insecure if \
             this network is trusted"
        );
    }
    eprintln!(
        "warning: --insecure on {advertise}: sums and KV cells can be read on the way, and whoever reaches it and knows a \
         ticket may send some"
    );
    Ok(())
}

pub async fn run(args: WorkerArgs) -> Result<()> {
    if let Some(parent) = args.parent_pid {
        die_with(parent)?;
    }
    if !(args.weight.is_finite() && args.weight > 0.0) {
        bail!("--weight {} must be a finite number above 0", args.weight);
    }
    let tls = args.tls_files();
    check_advertised(args.advertise, tls.as_ref(), args.insecure)?;
    let coordinator = args.coordinator(tls.as_ref())?;
    let arithmetic = args.engine.arithmetic.resolve()?;
    let config = WorkerConfig {
        id: args.id,
        threads: args.size.threads as usize,
        kv_dtype: args.engine.kv_dtype,
        weight_mode: args.engine.weights_dtype,
        backend: arithmetic.backend,
        gpu_ordinal: arithmetic.gpu_ordinal,
        block_size: args.engine.block_size,
        kv_memory_bytes: args.size.kv_memory.0,
        weight: args.weight,
        advertise: args.advertise,
        grace: Duration::from_secs(args.grace),
        tls,
        ..WorkerConfig::new(args.engine.model, coordinator)
    };
    let shutdown = shutdown::on_signals()?;
    let metrics = args.telemetry.bind().await?;
    let telemetry = args.telemetry.start("worker", false)?;
    let door = metrics.map(|door| {
        let connected = Arc::clone(&config.connected);
        let is_healthy = move || connected.load(Ordering::Relaxed);
        // Asked until the process ends: one that drains is still to be watched.
        door.serve(telemetry.exposition().cloned(), is_healthy, CancellationToken::new())
    });
    let ended = session::run(config, shutdown).await;
    if let Some(door) = door {
        door.abort();
    }
    telemetry.end().await;
    Ok(ended?)
}

/// SIGKILL, because a stopped process acts on nothing else.
pub fn die_with(parent: u32) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before the line above.
    if getppid().map(Pid::as_raw_nonzero).map(i32::from) != i32::try_from(parent).ok() {
        bail!("the parent process {parent} is gone");
    }
    Ok(())
}
