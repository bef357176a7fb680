//! A cluster of real processes on this machine: the coordinator in this process, each worker in its own.
//!
//! Workers end with this process, however it ends: they ask the kernel for it.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use kvasir_coordinator::{AdminService, Coordinator, CoordinatorConfig, CoordinatorError};
use kvasir_proto::v1;
use kvasir_runtime::{ByteSize, logging, tls::Identity};
use owo_colors::{OwoColorize, Stream::Stderr};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::Command,
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::{
    cert_folder::CertFolder,
    coordinator::process_name,
    doors::{Addresses, Doors, Watched, Watching},
    engine_options::EngineOptions,
    worker::WorkerSize,
};

const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// A worker that does not end by then is killed.
const STOP_GRACE: Duration = Duration::from_secs(3);
/// A group's state when it answers.
const SERVING: &str = "serving";

/// To be stopped, whatever becomes of what it is for.
pub struct LocalCluster {
    pub addresses: Addresses,
    pub workers: Workers,
    admin: AdminService,
    watched: Watched,
    serving: JoinHandle<Result<(), CoordinatorError>>,
    shutdown: CancellationToken,
}

/// What its workers are started with.
pub struct LocalOptions<'a> {
    pub engine: &'a EngineOptions,
    pub size: &'a WorkerSize,
    pub watching: Watching,
    /// For each of them besides.
    pub worker_flags: Vec<String>,
    /// Where each finds the certificate for its name.
    pub certificates: Option<CertFolder>,
}

impl LocalCluster {
    /// Begins to serve at `doors`, and starts the workers. Called on the main thread.
    pub async fn start(
        mut config: CoordinatorConfig,
        options: LocalOptions<'_>,
        doors: Doors,
        shutdown: CancellationToken,
    ) -> Result<Self> {
        let addresses = doors.addresses.clone();
        let num_workers = config.group_sizes.iter().sum();
        config.lead.name = process_name();
        config.lead.url.clone_from(&addresses.grpc);
        let coordinator = Coordinator::open(config).await?;
        let admin = coordinator.admin();
        let mut workers = Workers::new(options.engine, options.size, near(&addresses.grpc))?;
        if let Some(folder) = options.certificates {
            workers.certify(folder);
        }
        workers.flags.extend(options.worker_flags);
        workers.start_all(num_workers)?;
        let watched = Watched::new(&coordinator, options.watching, &shutdown);
        let serving = doors.serve(coordinator, watched.exposition(), shutdown.clone());
        Ok(Self {
            serving: tokio::spawn(serving),
            addresses,
            workers,
            admin,
            watched,
            shutdown,
        })
    }

    /// `None` if it was told to end first.
    pub async fn until_ready(&mut self) -> Result<Option<()>> {
        let num_workers = self.workers.running.len() as u32;
        until_ready(num_workers, &self.admin, &mut self.workers, &self.shutdown).await
    }

    pub async fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        self.workers.stop().await;
        let served = self.serving.await.context("the coordinator failed");
        self.watched.end().await;
        Ok(served??)
    }
}

/// The worker processes, by name.
pub struct Workers {
    flags: Vec<String>,
    certificates: Option<CertFolder>,
    running: BTreeMap<String, u32>,
    exits: JoinSet<(String, u32, std::io::Result<ExitStatus>)>,
}

impl Workers {
    /// For the coordinator at `grpc`.
    pub fn new(engine: &EngineOptions, size: &WorkerSize, grpc: String) -> Result<Self> {
        let mut flags = vec!["worker".to_owned(), "--coordinator".to_owned(), grpc];
        flags.extend(engine.to_args()?);
        flags.extend(size.to_args());
        flags.extend(["--parent-pid".to_owned(), std::process::id().to_string()]);
        flags.extend(["--log-format".to_owned(), logging::format().to_string()]);
        Ok(Self {
            flags,
            certificates: None,
            running: BTreeMap::new(),
            exits: JoinSet::new(),
        })
    }

    /// Each is to show the certificate that the folder has for its name.
    pub fn certify(&mut self, folder: CertFolder) {
        self.certificates = Some(folder);
    }

    pub fn start_all(&mut self, count: u32) -> Result<()> {
        (0..count).try_for_each(|index| self.start(format!("w{index}")))
    }

    /// Process ids by name.
    pub fn running(&self) -> &BTreeMap<String, u32> {
        &self.running
    }

    /// Called on the main thread: the kernel ties the worker's life to the thread that starts it.
    pub fn start(&mut self, id: String) -> Result<()> {
        let binary = std::env::current_exe().context("cannot find the kvasir binary")?;
        let mut command = Command::new(binary);
        if ["KVASIR_LOG", "RUST_LOG"]
            .iter()
            .all(|name| std::env::var_os(name).is_none())
        {
            // What people need to know of workers, this process tells them.
            command.env("KVASIR_LOG", "error,kvasir_runtime=warn");
        }
        let mut child = command
            .args(&self.flags)
            .args(["--id", &id])
            .args(self.certificate_flags(&id)?)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .env_remove("KVASIR_COORDINATOR")
            .env_remove("KVASIR_ETCD")
            .kill_on_drop(true)
            .spawn()
            .context("cannot start a worker process")?;
        let pid = child.id().context("a worker ended before it began")?;
        self.running.insert(id.clone(), pid);
        self.exits.spawn(async move { (id, pid, child.wait().await) });
        Ok(())
    }

    fn certificate_flags(&self, id: &str) -> Result<Vec<OsString>> {
        let Some(folder) = &self.certificates else {
            return Ok(Vec::new());
        };
        let pair = folder.pair(&Identity::Worker(id.to_owned()));
        ensure!(
            pair.certificate.exists(),
            "no certificate for worker {id} at {}; kvasir certs {} --workers {id} makes one",
            pair.certificate.display(),
            folder.0.display()
        );
        let flags = [
            ("--tls-ca", folder.authority()),
            ("--tls-cert", pair.certificate),
            ("--tls-key", pair.key),
        ];
        Ok(flags
            .into_iter()
            .flat_map(|(flag, file)| [flag.into(), file.into_os_string()])
            .collect())
    }

    /// The next worker that ends. Waits for ever without workers.
    pub async fn next_exit(&mut self) -> (String, u32, String) {
        loop {
            match self.exits.join_next().await {
                None => std::future::pending().await,
                Some(Err(_)) => continue,
                Some(Ok((id, pid, status))) => {
                    self.running.remove(&id);
                    let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                    return (id, pid, how);
                }
            }
        }
    }

    pub async fn stop(mut self) {
        self.signal_all(Signal::TERM);
        let all = async { while self.exits.join_next().await.is_some() {} };
        // What is left is killed when the tasks that own the children are dropped.
        let _ = tokio::time::timeout(STOP_GRACE, all).await;
        self.exits.shutdown().await;
    }

    fn signal_all(&self, signal: Signal) {
        for pid in self.running.values().filter_map(|&pid| Pid::from_raw(pid as i32)) {
            // It may have ended by itself.
            let _ = kill_process(pid, signal);
        }
    }
}

/// The URL by which this machine itself reaches one that is known as `grpc`: nobody is at an unspecified address, and no
/// certificate is for one.
fn near(grpc: &str) -> String {
    grpc.replace("://0.0.0.0:", "://127.0.0.1:")
        .replace("://[::]:", "://[::1]:")
}

/// `None` if it was told to end first. A worker that ends before the cluster serves is a failure: the group would wait
/// for it in vain.
async fn until_ready(
    num_workers: u32,
    admin: &AdminService,
    workers: &mut Workers,
    shutdown: &CancellationToken,
) -> Result<Option<()>> {
    let mut progress = Progress::new(num_workers);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            (id, pid, how) = workers.next_exit() => {
                bail!("worker {id} (pid {pid}) ended before the cluster was ready: {how}");
            }
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        // The coordinator is this process: it answers, or `shutdown` says why not.
        let Ok(status) = admin.report().await else {
            continue;
        };
        progress.report(&status);
        if status.groups.iter().all(|group| group.state == SERVING) {
            return Ok(Some(()));
        }
        // All workers are there and alike: what stands in the way now will not go away.
        let num_ranks: usize = status.groups.iter().map(|group| group.ranks.len()).sum();
        let all_joined = status.spares.len() + num_ranks == num_workers as usize;
        if let Some(group) = status.groups.iter().find(|group| all_joined && !group.cause.is_empty()) {
            bail!("the cluster cannot form: {}", group.cause);
        }
    }
}

/// Says once what has changed.
struct Progress {
    wanted: u32,
    last: String,
}

impl Progress {
    fn new(wanted: u32) -> Self {
        Self {
            wanted,
            last: String::new(),
        }
    }

    fn report(&mut self, status: &v1::StatusResponse) {
        for line in self.lines(status) {
            if line != self.last {
                eprintln!("{}", line.if_supports_color(Stderr, |text| text.dimmed()));
                self.last = line;
            }
        }
    }

    fn lines(&self, status: &v1::StatusResponse) -> Vec<String> {
        let several = status.groups.len() > 1;
        let ranks: Vec<_> = status
            .groups
            .iter()
            .flat_map(|group| group.ranks.iter().map(|rank| (group.id, rank)))
            .collect();
        let joined = ranks.len() + status.spares.len();
        if ranks.is_empty() && joined > 0 {
            return vec![format!("{joined} of {} workers joined", self.wanted)];
        }
        if status.groups.iter().any(|group| group.state != SERVING) {
            return vec!["loading weights".to_owned(); usize::from(!ranks.is_empty())];
        }
        let width = |range: &Option<v1::UnitRange>| range.as_ref().map_or(0, |range| range.end - range.begin);
        let line = |(group, rank): &(u32, &v1::RankStatus)| {
            let group = if several {
                format!("group {group}, ")
            } else {
                String::new()
            };
            format!(
                "{group}rank {}: {} KV heads, {} FFN and {} vocab units, {}",
                rank.rank,
                width(&rank.kv_heads),
                width(&rank.ffn_units),
                width(&rank.vocab_units),
                ByteSize(rank.bytes)
            )
        };
        ranks.iter().map(line).collect()
    }
}
