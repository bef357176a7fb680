//! The worker's life around its rank: join the coordinator, carry messages both ways, send heartbeats, join again.
//!
//! The join stream is the lease. When it ends, whatever epoch the rank was in is aborted; units stay loaded for the next
//! coordinator that takes this worker. The rank itself works on a thread of its own.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use kvasir_kv::{CellLayout, CellLayoutError, Epoch, FromWorker, KvDtype, NumericsId, ToWorker, WorkerId, WorkerInfo};
use kvasir_model::{BackendKind, Checkpoint, CheckpointError, WeightMode, numerics_id};
use kvasir_proto::{
    convert::{self, ConvertError},
    v1::{self, cluster_client::ClusterClient, to_worker::Message},
};
use kvasir_runtime::{
    logging,
    registry::records::LeaderRecord,
    status_metadata::{ERROR_NAME, NOT_LEADER},
    telemetry,
    telemetry::propagation,
    tls::{self, ClientTls, ClientTlsFiles, PeerDoor, PeerTls, PeerTlsFiles, TlsError},
};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

use crate::{
    BackendConfig,
    backend::{Backend, BackendError},
    followed::{CoordinatorChoice, Followed},
    open_backend,
    rank::{RankConfig, RankControl, RankInput, RankWorker},
    rank_meter::RankMeter,
    transfer::{self, TransferHub},
};

/// How often the coordinator hears of a rank's progress.
const HEARTBEAT: Duration = Duration::from_millis(100);
/// Messages that may wait in either direction: a few steps and a heartbeat.
const QUEUE_LEN: usize = 64;
/// Steps carry prompts: 16 MiB hold a context of millions of tokens.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const LAST_WORDS_DEADLINE: Duration = Duration::from_millis(300);
/// Between attempts to join: doubles from the first to the last.
const REJOIN_WAIT_MIN: Duration = Duration::from_millis(100);
const REJOIN_WAIT_MAX: Duration = Duration::from_secs(2);

/// What a worker is started with.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    pub model: PathBuf,
    pub coordinator: CoordinatorChoice,
    /// For a coordinator with TLS. With a pair, peers are met with TLS as well.
    pub tls: Option<ClientTlsFiles>,
    /// Unique in the cluster; that of the certificate if absent, or made from the process id.
    pub id: Option<String>,
    /// Threads of the rank, at least 1.
    pub threads: usize,
    pub kv_dtype: KvDtype,
    pub weight_mode: WeightMode,
    pub backend: BackendKind,
    /// Which of the machine's GPUs, where the backend computes on one.
    pub gpu_ordinal: u32,
    /// Tokens per block.
    pub block_size: u32,
    pub kv_memory_bytes: u64,
    /// Relative speed for the plan's balance.
    pub weight: f64,
    /// The address that peers on other hosts reach this worker at.
    pub advertise: IpAddr,
    /// How long a worker that wants to leave waits until what it holds has gone to others.
    pub grace: Duration,
    /// True while a coordinator counts on it.
    pub connected: Arc<AtomicBool>,
}

impl WorkerConfig {
    /// For the coordinator at `coordinator`, `http://host:port` or `https://host:port`.
    pub fn new(model: PathBuf, coordinator: CoordinatorChoice) -> Self {
        Self {
            model,
            coordinator,
            tls: None,
            id: None,
            threads: 1,
            kv_dtype: KvDtype::F16,
            weight_mode: WeightMode::File,
            backend: BackendKind::Canonical,
            gpu_ordinal: 0,
            block_size: 64,
            kv_memory_bytes: 1 << 30,
            weight: 1.0,
            advertise: IpAddr::V4(Ipv4Addr::LOCALHOST),
            grace: Duration::from_secs(30),
            connected: Arc::default(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("{}: {source}", path.display())]
    Model { path: PathBuf, source: CheckpointError },
    #[error(transparent)]
    Block(#[from] CellLayoutError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("`{url}` is not a coordinator's address: {reason}; expected http://HOST:PORT or https://HOST:PORT")]
    Address { url: String, reason: String },
    #[error("the coordinator refused this worker: {0}")]
    Refused(String),
    #[error("the rank's thread ended unexpectedly")]
    RankDied,
    #[error("cannot take transfers of KV cells: {0}")]
    Transfers(std::io::Error),
    #[error("cannot start the rank's thread: {0}")]
    Thread(std::io::Error),
}

/// How one session with a coordinator ended.
enum SessionEnd {
    Shutdown,
    /// The coordinator needs this worker no more, as it asked for or was told.
    Released,
    Refused(String),
    RankDied,
    Lost(String),
    /// Another coordinator leads, by a higher term.
    Superseded,
}

/// Serves until `shutdown`, or until a coordinator refuses this worker. A coordinator that is away is waited for.
pub async fn run(config: WorkerConfig, shutdown: CancellationToken) -> Result<(), WorkerError> {
    show_connected(&config.connected);
    if let CoordinatorChoice::At(url) = &config.coordinator {
        endpoint(url)?;
    }
    let worker = Worker::start(config)?;
    let (id, address) = (&worker.id.0, worker.config.advertise.to_string());
    let mut followed = Followed::new(&worker.config.coordinator, id, &address, Arc::clone(&worker.control))?;
    let served = worker.serve(&mut followed, &shutdown).await;
    followed.leave().await;
    served
}

/// Errors with what is missing: certificates are given if and only if the coordinator has one.
pub fn check_scheme(url: &str, has_tls: bool) -> Result<(), String> {
    match (url.starts_with("https://"), has_tls) {
        (true, false) => Err(format!("{url} needs --tls-ca FILE, the authority to believe")),
        (false, true) => Err(format!(
            "{url} is not encrypted, and certificates are given; write https://"
        )),
        _ => Ok(()),
    }
}

fn show_connected(connected: &Arc<AtomicBool>) {
    let connected = Arc::clone(connected);
    telemetry::meter()
        .u64_observable_gauge("kvasir.worker.connected")
        .with_description("1 while a coordinator counts on this worker")
        .with_callback(move |observer| observer.observe(u64::from(connected.load(Ordering::Relaxed)), &[]))
        .build();
}

fn endpoint(url: &str) -> Result<Endpoint, WorkerError> {
    let bad = |reason: String| WorkerError::Address {
        url: url.to_owned(),
        reason,
    };
    let endpoint = tls::endpoint(url).map_err(|error| bad(error.to_string()))?;
    if endpoint.uri().host().is_none() || endpoint.uri().scheme().is_none() {
        return Err(bad("no scheme or host".to_owned()));
    }
    let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
    // A coordinator whose host vanished closes no connection.
    Ok(endpoint
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5)))
}

struct Worker {
    config: WorkerConfig,
    tls: Option<ClientTls>,
    id: WorkerId,
    numerics_id: NumericsId,
    control: Arc<RankControl>,
    to_rank: mpsc::Sender<RankInput>,
    transfer_address: SocketAddr,
    /// The rank's answers; taken by one session at a time.
    from_rank: tokio::sync::Mutex<Receiver<FromWorker>>,
    rank: JoinHandle<()>,
}

impl Worker {
    fn start(config: WorkerConfig) -> Result<Self, WorkerError> {
        let tls = config.tls.clone().map(ClientTls::to_coordinator).transpose()?;
        let peer_tls = peer_files(&config).map(PeerTls::open).transpose()?;
        let certified = peer_tls.as_ref().map(PeerTls::worker_id);
        let peers = PeerDoor::new(peer_tls);
        let open = Checkpoint::open(&config.model);
        let checkpoint = Arc::new(open.map_err(|source| WorkerError::Model {
            path: config.model.clone(),
            source,
        })?);
        let content_hash = checkpoint.content_hash();
        let numerics_id = numerics_id(&content_hash, config.backend, config.kv_dtype, config.weight_mode);
        let id = WorkerId(
            config
                .id
                .clone()
                .or(certified)
                .unwrap_or_else(|| format!("worker-{}", std::process::id())),
        );
        let model_name = checkpoint.path().file_stem().unwrap_or_default();
        let model_name = model_name.to_string_lossy().into_owned();
        let control = Arc::new(RankControl::default());
        let (to_rank, inbox) = mpsc::channel();
        let (answer, from_rank) = channel(QUEUE_LEN);
        let wake = to_rank.clone();
        let cell_bytes = cell_layout(&config, &checkpoint)?.cell_bytes();
        let hub = TransferHub::new(numerics_id, cell_bytes, move || {
            // Fails only when the process is ending.
            let _ = wake.send(RankInput::Wake);
        });
        let hub = Arc::new(hub.with_peers(peers.clone()));
        let own_inbox = to_rank.clone();
        // Fails only when the process is ending.
        let notify = move |input| drop(own_inbox.send(input));
        let transfer_address = transfer::listen(config.advertise, Arc::clone(&hub)).map_err(WorkerError::Transfers)?;
        let backend = make_backend(&config, Arc::clone(&checkpoint))?;
        let rank = RankWorker::new(
            RankConfig::new(config.advertise),
            backend,
            Arc::clone(&control),
            move |message| {
                // Fails only when the process is ending.
                let _ = answer.blocking_send(message);
            },
        )
        .with_constraints(checkpoint)
        .with_meter(RankMeter::new(cell_bytes as u64, numerics_id, model_name))
        .with_peers(peers)
        .with_transfers(hub, notify);
        let rank = std::thread::Builder::new()
            .name("kvasir-rank-0".to_owned())
            .spawn(move || rank.run(&inbox));
        let rank = rank.map_err(WorkerError::Thread)?;
        let from_rank = tokio::sync::Mutex::new(from_rank);
        Ok(Self {
            config,
            tls,
            id,
            numerics_id,
            control,
            to_rank,
            transfer_address,
            from_rank,
            rank,
        })
    }

    fn info(&self) -> WorkerInfo {
        WorkerInfo {
            id: self.id.clone(),
            pid: std::process::id(),
            address: self.config.advertise.to_string(),
            host: host_identity(),
            numerics_id: self.numerics_id,
            term_max: self.control.term_max(),
            weight: self.config.weight,
            threads: self.config.threads as u32,
            backend: self.config.backend.name().to_owned(),
            kv_memory_bytes: self.config.kv_memory_bytes,
            block_size: self.config.block_size,
            kv_dtype: self.config.kv_dtype,
            transfer_address: self.transfer_address.to_string(),
        }
    }

    /// Session after session.
    async fn serve(&self, followed: &mut Followed, shutdown: &CancellationToken) -> Result<(), WorkerError> {
        let mut wait = REJOIN_WAIT_MIN;
        loop {
            let leader = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                leader = followed.leader() => leader,
            };
            let begun = Instant::now();
            let reason = match self.session(&leader, followed, shutdown).await {
                SessionEnd::Shutdown | SessionEnd::Released => return Ok(()),
                SessionEnd::Refused(reason) => return Err(WorkerError::Refused(reason)),
                SessionEnd::RankDied => return Err(WorkerError::RankDied),
                SessionEnd::Superseded => {
                    wait = REJOIN_WAIT_MIN;
                    continue;
                }
                SessionEnd::Lost(reason) => reason,
            };
            tracing::warn!(coordinator = %leader.url, %reason, "no coordinator; trying again");
            if begun.elapsed() > REJOIN_WAIT_MAX {
                // It was there for a while: a restart, not an absence.
                wait = REJOIN_WAIT_MIN;
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(REJOIN_WAIT_MAX),
                _ = followed.another() => wait = REJOIN_WAIT_MIN,
            }
        }
    }

    async fn session(
        &self,
        leader: &LeaderRecord,
        followed: &mut Followed,
        shutdown: &CancellationToken,
    ) -> SessionEnd {
        let joined = tokio::select! {
            () = shutdown.cancelled() => return SessionEnd::Shutdown,
            _ = followed.another() => return SessionEnd::Superseded,
            joined = self.join(&leader.url) => joined,
        };
        let (up, mut down) = match joined {
            Ok(joined) => joined,
            Err(end) => return end,
        };
        tracing::info!(worker = %self.id, coordinator = %leader.url, "joined");
        self.config.connected.store(true, Ordering::Relaxed);
        let mut from_rank = self.from_rank.lock().await;
        // Answers to a coordinator that is gone.
        while from_rank.try_recv().is_ok() {}
        let heartbeats = tokio::spawn(heartbeats(Arc::clone(&self.control), up.clone()));
        let mut leaves_until = None;
        let end = loop {
            tokio::select! {
                () = shutdown.cancelled(), if leaves_until.is_none() => {
                    tracing::info!(worker = %self.id, grace_s = self.config.grace.as_secs(), "leaving");
                    leaves_until = Some(tokio::time::Instant::now() + self.config.grace);
                    if up.send(convert::from_worker(FromWorker::Leaving)).await.is_err() {
                        break SessionEnd::Shutdown;
                    }
                },
                () = until(leaves_until) => {
                    tracing::warn!(worker = %self.id, "not released in time; leaving all the same");
                    break SessionEnd::Shutdown;
                },
                by = followed.another() => {
                    self.tell_superseded(by, &up, &mut down).await;
                    break SessionEnd::Superseded;
                },
                message = from_rank.recv() => match message {
                    None => break SessionEnd::RankDied,
                    Some(message) => if up.send(convert::from_worker(message)).await.is_err() {
                        break SessionEnd::Lost("the stream is closed".to_owned());
                    },
                },
                message = down.message() => match message {
                    Ok(Some(message)) => if let Some(end) = self.deliver(message) { break end },
                    Ok(None) => break SessionEnd::Lost("the coordinator ended the stream".to_owned()),
                    Err(status) => break lost(&status),
                },
            }
        };
        heartbeats.abort();
        self.config.connected.store(false, Ordering::Relaxed);
        // Nobody waits for what this rank computes any more.
        let epoch = self.control.progress().epoch;
        self.control.abort(epoch);
        let _ = self
            .to_rank
            .send(RankInput::FromCoordinator(ToWorker::AbortEpoch { epoch }));
        let all = Epoch {
            term: u64::MAX,
            number: u64::MAX,
        };
        let drop_prepared = ToWorker::DropEpoch { epoch: all };
        let _ = self.to_rank.send(RankInput::FromCoordinator(drop_prepared));
        end
    }

    /// The last words to a coordinator that does not know yet that another one leads. Waits a moment for them to arrive.
    async fn tell_superseded(
        &self,
        by: LeaderRecord,
        up: &Sender<v1::FromWorker>,
        down: &mut tonic::Streaming<v1::ToWorker>,
    ) {
        tracing::warn!(worker = %self.id, leader = by.name, term = by.term, "leaving for another coordinator");
        let LeaderRecord { name, url, term } = by;
        let said = up.try_send(convert::superseded(v1::Superseded { term, name, url }));
        let ended = async { while let Ok(Some(_)) = down.message().await {} };
        if said.is_ok() {
            let _ = tokio::time::timeout(LAST_WORDS_DEADLINE, ended).await;
        }
    }

    async fn join(&self, url: &str) -> Result<(Sender<v1::FromWorker>, tonic::Streaming<v1::ToWorker>), SessionEnd> {
        let endpoint = endpoint(url).map_err(|error| SessionEnd::Lost(error.to_string()))?;
        check_scheme(url, self.tls.is_some()).map_err(SessionEnd::Lost)?;
        let channel_up = tls::dial(&endpoint, self.tls.as_ref())
            .await
            .map_err(|error| SessionEnd::Lost(with_source(&error)))?;
        let mut client = ClusterClient::new(channel_up)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let (up, stream) = channel(QUEUE_LEN);
        up.try_send(convert::hello(&self.info()))
            .map_err(|error| SessionEnd::Lost(error.to_string()))?;
        let down = client
            .join(ReceiverStream::new(stream))
            .await
            .map_err(|status| lost(&status))?;
        Ok((up, down.into_inner()))
    }

    /// Hands a message to the rank; an abort takes effect at once, whatever the rank is waiting for.
    fn deliver(&self, mut message: v1::ToWorker) -> Option<SessionEnd> {
        match &mut message.message {
            Some(Message::SetLogFilter(set)) => {
                set_log_filter(&set.filter);
                return None;
            }
            Some(Message::Step(step)) => self.trace(&step.traceparent),
            _ => {}
        }
        let message = match convert::parse_to_worker(message) {
            Ok(message) => message,
            Err(error @ ConvertError::Version { .. }) => return Some(SessionEnd::Refused(error.to_string())),
            Err(error) => return Some(SessionEnd::Lost(format!("unreadable message: {error}"))),
        };
        match &message {
            ToWorker::FormEpoch(spec) | ToWorker::PrepareEpoch(spec) if spec.epoch.term < self.control.term_max() => {
                let (epoch, obeyed) = (spec.epoch, self.control.term_max());
                return Some(SessionEnd::Lost(format!(
                    "epoch {epoch} is of an old term: this worker has obeyed term {obeyed}"
                )));
            }
            ToWorker::Refuse { reason, .. } => return Some(SessionEnd::Refused(reason.clone())),
            ToWorker::Released => return Some(SessionEnd::Released),
            ToWorker::AbortEpoch { epoch } => self.control.abort(*epoch),
            // A new epoch ends the ones before it, also if its coordinator had no time to say so.
            ToWorker::FormEpoch(spec) => self.control.abort_before(spec.epoch),
            ToWorker::ConnectEpoch { .. }
            | ToWorker::PrepareEpoch(_)
            | ToWorker::SwitchEpoch { .. }
            | ToWorker::DropEpoch { .. }
            | ToWorker::Step(_)
            | ToWorker::SendCells(_)
            | ToWorker::ReceiveCells(_)
            | ToWorker::EndTransfer { .. } => {}
        }
        let sent = self.to_rank.send(RankInput::FromCoordinator(message));
        (sent.is_err() || self.rank.is_finished()).then_some(SessionEnd::RankDied)
    }

    /// Tells the rank where the next step is in a trace, if it is in one.
    fn trace(&self, traceparent: &str) {
        if let Some(context) = propagation::of_text(traceparent) {
            // If the rank is gone, the step itself will find out.
            let _ = self.to_rank.send(RankInput::Traced(context));
        }
    }
}

fn set_log_filter(filter: &str) {
    match logging::set_filter(filter) {
        Ok(()) => tracing::info!(filter, "log filter changed"),
        Err(error) => tracing::warn!(%error, "log filter not changed"),
    }
}

/// Workers with a certificate meet each other with it.
fn peer_files(config: &WorkerConfig) -> Option<PeerTlsFiles> {
    let ClientTlsFiles { authority, pair } = config.tls.clone()?;
    pair.map(|pair| PeerTlsFiles { authority, pair })
}

fn make_backend(config: &WorkerConfig, checkpoint: Arc<Checkpoint>) -> Result<Box<dyn Backend>, WorkerError> {
    let cell = cell_layout(config, &checkpoint)?;
    let backend = BackendConfig {
        kind: config.backend,
        gpu_ordinal: config.gpu_ordinal,
        weight_mode: config.weight_mode,
        threads: config.threads,
        kv_memory_bytes: config.kv_memory_bytes,
    };
    Ok(open_backend(&backend, checkpoint, cell)?)
}

fn cell_layout(config: &WorkerConfig, checkpoint: &Checkpoint) -> Result<CellLayout, CellLayoutError> {
    let spec = checkpoint.spec();
    CellLayout::new(spec.num_layers, spec.head_dim, config.block_size, config.kv_dtype)
}

/// Never, without a time.
async fn until(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

async fn heartbeats(control: Arc<RankControl>, up: Sender<v1::FromWorker>) {
    let mut ticks = tokio::time::interval(HEARTBEAT);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let beat = convert::from_worker(FromWorker::Heartbeat(control.progress()));
        if up.send(beat).await.is_err() {
            return;
        }
    }
}

/// A coordinator that names a fault of ours will name it again; anything else may pass.
fn lost(status: &tonic::Status) -> SessionEnd {
    let name = status.metadata().get(ERROR_NAME).and_then(|name| name.to_str().ok());
    if name == Some(NOT_LEADER) {
        // It may lead later, or the registry says soon who does.
        return SessionEnd::Lost(status.message().to_owned());
    }
    match status.code() {
        tonic::Code::FailedPrecondition
        | tonic::Code::InvalidArgument
        | tonic::Code::Unimplemented
        | tonic::Code::PermissionDenied
        | tonic::Code::Unauthenticated => SessionEnd::Refused(status.message().to_owned()),
        // A certificate that is turned away in the handshake is told of here, too: it may be renewed.
        _ => match std::error::Error::source(status) {
            Some(source) => SessionEnd::Lost(format!("{}: {}", status.message(), with_source(source))),
            None => SessionEnd::Lost(status.message().to_owned()),
        },
    }
}

fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", with_source(source)),
        None => error.to_string(),
    }
}

/// Equal for processes that can open each other's `/proc/<pid>/fd`: one boot of one kernel, one pid namespace.
fn host_identity() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let pids = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{}/{}", boot.trim(), pids.display())
}
