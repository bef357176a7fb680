//! A coordinator as deployed: one listener, its services, and the driver behind them.

use std::{fmt, io, path::PathBuf, sync::Arc, time::Duration};

use kvasir_kv::{CellLayout, CellLayoutError, KvDtype, UnitLayout};
use kvasir_model::{BackendKind, Checkpoint, CheckpointError, WeightMode, numerics_id};
use kvasir_proto::{
    FILE_DESCRIPTOR_SET,
    inference::grpc_inference_service_server::GrpcInferenceServiceServer,
    v1::{
        admin_server::{AdminServer, SERVICE_NAME as ADMIN},
        cluster_server::ClusterServer,
        inference_server::{InferenceServer, SERVICE_NAME as INFERENCE},
    },
};
use kvasir_runtime::{
    door::{Door, DoorConfig, DoorError},
    registry::records::LeaderRecord,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{service::Routes, transport::Server};
use tonic_health::{ServingStatus, server::HealthReporter};
use tracing::{info, warn};

use crate::{
    Cluster, ClusterConfig, GroupRole, PrefixCopying,
    driver::{ClusterHandle, Driver},
    grpc::{AdminService, ClusterService, InferenceService, LedAdmin, LedInference, ModelFacts, OpenInferenceService},
    intake::Intake,
    lead::{self, Campaigner, LEADER_SERVICE, Lead, LeadConfig, Role, keep_readiness},
    sampling_params::random_seed,
    telemetry::{Gauges, Telemetry},
};

/// A connection whose peer does not answer for so long is closed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Of clients: a prompt of a million tokens, as text or as ids, fits.
const CLIENT_MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Of operators and of whoever asks for health: names and numbers.
const SMALL_MESSAGE_BYTES_MAX: usize = 64 << 10;
const HEADERS_BYTES_MAX: u32 = 16 << 10;
/// Of one connection, at a time.
const STREAMS_MAX: u32 = 256;
/// An output of 65536 scored positions with 20 likeliest tokens each takes 10 MB.
const WORKER_MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Streams have ended by themselves long before; this is for clients that do not let go.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);

/// What an operator decides.
#[derive(Clone, PartialEq, Debug)]
pub struct CoordinatorConfig {
    pub model: PathBuf,
    /// What clients may call the model; the file's name, and what it calls itself, where nothing is said.
    pub served_names: Vec<String>,
    /// Ranks of each group; at least one group, and at least one rank in each.
    pub group_sizes: Vec<u32>,
    /// What each is for; both where none is said.
    pub group_roles: Vec<GroupRole>,
    /// Move running sequences where another group has room and theirs has none, or much less to do.
    pub rebalance: bool,
    /// Workers beyond those that are wanted become ranks, too.
    pub elastic: bool,
    /// Whether new sequences start from blocks that another group has.
    pub prefix_copying: PrefixCopying,
    pub kv_dtype: KvDtype,
    pub weight_mode: WeightMode,
    pub backend: BackendKind,
    pub block_size: u32,
    /// Reduce over TCP also where ranks share a host.
    pub force_tcp: bool,
    /// Start from what earlier requests with the same beginning have computed.
    pub prefix_cache: bool,
    /// Holds for requests that name no timeout.
    pub request_timeout: Duration,
    /// How long a request waits for a group that can serve it.
    pub unavailable_wait_max: Duration,
    /// The limits of `ClusterConfig`, by the same names.
    pub queue_max: u32,
    pub queue_tokens_max: u64,
    pub queue_wait_max: Duration,
    pub sequences_max: u32,
    pub step_tokens_max: u32,
    pub chunk_tokens_max: u32,
    pub mixed_prefill_tokens_max: u32,
    /// Who may come in.
    pub door: DoorConfig,
    /// Where it finds workers and other coordinators.
    pub lead: LeadConfig,
}

impl CoordinatorConfig {
    pub fn new(model: PathBuf, group_sizes: Vec<u32>) -> Self {
        Self {
            model,
            served_names: Vec::new(),
            group_sizes,
            group_roles: Vec::new(),
            rebalance: true,
            elastic: false,
            prefix_copying: PrefixCopying::Auto,
            kv_dtype: KvDtype::F16,
            weight_mode: WeightMode::File,
            backend: BackendKind::Canonical,
            block_size: 64,
            force_tcp: false,
            prefix_cache: true,
            request_timeout: Duration::from_secs(600),
            unavailable_wait_max: Duration::from_secs(60),
            queue_max: 256,
            queue_tokens_max: 1 << 20,
            queue_wait_max: Duration::from_secs(300),
            sequences_max: 64,
            step_tokens_max: 512,
            chunk_tokens_max: 256,
            mixed_prefill_tokens_max: 64,
            door: DoorConfig::default(),
            lead: LeadConfig::default(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CoordinatorError {
    #[error("{}: {source}", path.display())]
    Model { path: PathBuf, source: CheckpointError },
    #[error("a group of 0 workers serves nothing; 1 or more are needed")]
    NoWorkers,
    #[error("every group has the role {role}; at least one must {lacks}")]
    Roles { role: GroupRole, lacks: &'static str },
    #[error(transparent)]
    BlockSize(#[from] CellLayoutError),
    #[error(transparent)]
    Door(#[from] DoorError),
    #[error("cannot listen: {source}")]
    Listen { source: io::Error },
    #[error("the server failed: {source}")]
    Server { source: tonic::transport::Error },
    #[error("a coordinator task ended before its time: {what}")]
    Task { what: String },
}

/// What the coordinator needs of a model: no weights.
struct ServedModel {
    facts: ModelFacts,
    layout: UnitLayout,
    cell: CellLayout,
    intake: Arc<Intake>,
}

/// Serves on `listener` until `shutdown`. Then answers end with UNAVAILABLE and workers see their streams end.
pub async fn run(
    listener: TcpListener,
    config: CoordinatorConfig,
    shutdown: CancellationToken,
) -> Result<(), CoordinatorError> {
    Coordinator::open(config).await?.serve(listener, shutdown).await
}

/// A coordinator that has read its model and does not serve yet.
pub struct Coordinator {
    config: CoordinatorConfig,
    door: Door,
    inference: InferenceService,
    admin: AdminService,
    driver: Driver,
    cluster: ClusterHandle,
    lead: Lead,
    campaigner: Campaigner,
    /// Whether requests that come here are answered.
    answers: watch::Sender<bool>,
}

impl Coordinator {
    /// Reads the model file once, for its hash, and the files that say who may come in.
    pub async fn open(config: CoordinatorConfig) -> Result<Self, CoordinatorError> {
        let opening = tokio::task::spawn_blocking(move || {
            let door = Door::open(&config.door)?;
            let lead = Lead::open(&config.lead, &config.door).map_err(DoorError::from)?;
            let model = open(&config)?;
            Ok(Self::new(config, door, lead, model))
        });
        opening.await.map_err(ended_early)?
    }

    fn new(
        config: CoordinatorConfig,
        door: Door,
        (lead, news): (Lead, mpsc::Receiver<LeaderRecord>),
        model: ServedModel,
    ) -> Self {
        let cluster = Cluster::new(cluster_config(&config, &model), model.layout);
        let (mut driver, cluster) = Driver::new(cluster, Telemetry::new(model.facts.served_name()));
        if !lead.leads() {
            driver = driver.standing_by();
        }
        let groups = lead::groups_of_flags(&config.group_sizes, &config.group_roles);
        let campaigner = Campaigner::new(lead.clone(), cluster.clone(), news, groups);
        let refusals = Arc::clone(door.refusals());
        let workers_wanted = config.group_sizes.iter().sum();
        let admin = AdminService::new(
            cluster.clone(),
            model.facts.clone(),
            workers_wanted,
            refusals,
            lead.clone(),
        );
        Self {
            config,
            door,
            inference: InferenceService::new(cluster.clone(), model.intake, model.facts),
            admin,
            driver,
            cluster,
            lead,
            campaigner,
            answers: watch::Sender::new(false),
        }
    }

    /// The service that clients ask, for another door to it. It answers while `serve` runs.
    pub fn inference(&self) -> LedInference {
        LedInference::new(self.inference.clone(), self.lead.clone(), self.answers.subscribe())
    }

    /// Whether this coordinator leads, and who does.
    pub fn lead(&self) -> Lead {
        self.lead.clone()
    }

    /// Who may come in, for another door.
    pub fn door(&self) -> Door {
        self.door.clone()
    }

    /// What `Admin` answers, for the process that the coordinator is in. Answers while it serves.
    pub fn admin(&self) -> AdminService {
        self.admin.clone()
    }

    /// What operators may ask of whoever leads, for another door.
    pub fn operations(&self) -> LedAdmin {
        LedAdmin::new(self.admin.clone(), self.lead.clone())
    }

    /// True while answers come, from here or from whoever leads.
    pub fn readiness(&self) -> watch::Receiver<bool> {
        self.answers.subscribe()
    }

    /// Shows the cluster's state in metrics, once a process. What they are read from is brought up to date by `refresh`.
    pub fn show_metrics(&self) -> MetricsSource {
        MetricsSource {
            gauges: Gauges::new(self.admin.model()),
            admin: self.admin.clone(),
        }
    }

    /// What `run` does after opening.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) -> Result<(), CoordinatorError> {
        let address = listener
            .local_addr()
            .map_err(|source| CoordinatorError::Listen { source })?;
        let facts = self.admin.model();
        info!(%address, model = facts.name, numerics_id = %facts.numerics_id, groups = ?self.config.group_sizes, "coordinator listens");
        let tasks = TaskTracker::new();
        let routes = self.routes(&tasks, &shutdown).await;
        tasks.spawn(keep_readiness(
            self.lead,
            self.cluster.ready(),
            self.answers,
            shutdown.clone(),
        ));
        tasks.spawn(self.campaigner.run(shutdown.clone()));
        let driving = tasks.spawn(drive(self.driver, shutdown.clone()));
        let served = serve(listener, &self.door, routes, &shutdown).await;
        shutdown.cancel();
        tasks.close();
        if tokio::time::timeout(SHUTDOWN_GRACE, tasks.wait()).await.is_err() {
            warn!("some tasks did not end in time");
            return served;
        }
        driving.await.map_err(ended_early)?;
        served
    }

    async fn routes(&self, tasks: &TaskTracker, shutdown: &CancellationToken) -> Routes {
        let (reporter, health) = tonic_health::server::health_reporter();
        // Before the first connection, or an early client would hear that there is no such service.
        let ready = self.answers.subscribe();
        report_health(&reporter, false, self.lead.leads()).await;
        tasks.spawn(keep_health(reporter, ready, self.lead.role(), shutdown.clone()));
        let refusals = Arc::clone(self.door.refusals());
        let workers = ClusterService::new(self.cluster.clone(), tasks.clone(), refusals, self.lead.clone());
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let embedded = "descriptors that the build made";
        let (v1, v1alpha) = (reflection().build_v1(), reflection().build_v1alpha());
        let (small, of_clients) = (SMALL_MESSAGE_BYTES_MAX, CLIENT_MESSAGE_BYTES_MAX);
        let admin = self.operations();
        let open_inference = OpenInferenceService::new(self.inference());
        Routes::new(health.max_decoding_message_size(small))
            .add_service(InferenceServer::new(self.inference()).max_decoding_message_size(of_clients))
            .add_service(GrpcInferenceServiceServer::new(open_inference).max_decoding_message_size(of_clients))
            .add_service(AdminServer::new(admin).max_decoding_message_size(small))
            .add_service(ClusterServer::new(workers).max_decoding_message_size(WORKER_MESSAGE_BYTES_MAX))
            .add_service(v1.expect(embedded).max_decoding_message_size(small))
            // grpcurl before 1.9 asks for this one only.
            .add_service(v1alpha.expect(embedded).max_decoding_message_size(small))
    }
}

/// What the metrics of a cluster's state are read from.
#[derive(Clone, Debug)]
pub struct MetricsSource {
    gauges: Gauges,
    admin: AdminService,
}

impl MetricsSource {
    pub async fn refresh(&self) {
        self.admin.refresh(&self.gauges).await;
    }
}

impl fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coordinator")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

fn open(config: &CoordinatorConfig) -> Result<ServedModel, CoordinatorError> {
    if config.group_sizes.is_empty() || config.group_sizes.contains(&0) {
        return Err(CoordinatorError::NoWorkers);
    }
    check_roles(config)?;
    let model_error = |source| CoordinatorError::Model {
        path: config.model.clone(),
        source,
    };
    let checkpoint = Checkpoint::open(&config.model).map_err(model_error)?;
    let spec = checkpoint.spec();
    let cell = CellLayout::new(spec.num_layers, spec.head_dim, config.block_size, config.kv_dtype)?;
    let tokenizer = Arc::new(checkpoint.tokenizer().map_err(model_error)?);
    let numerics_id = numerics_id(
        &checkpoint.content_hash(),
        config.backend,
        config.kv_dtype,
        config.weight_mode,
    );
    let chat_template = checkpoint.chat_template().inspect_err(|error| warn!(%error, "no chat"));
    let intake = Intake::new(
        tokenizer,
        chat_template.ok(),
        spec.bos_token.filter(|_| spec.add_bos),
        spec.context_len,
        numerics_id,
        config.request_timeout,
    );
    let facts = ModelFacts {
        name: name(&checkpoint),
        served_names: served_names(config, &checkpoint),
        numerics_id,
        context_len: intake.context_len(),
        vocab_size: intake.vocab_size() as u32,
    };
    Ok(ServedModel {
        facts,
        layout: checkpoint.unit_layout(config.weight_mode).map_err(model_error)?,
        cell,
        intake: Arc::new(intake),
    })
}

/// Prompts must be computed somewhere, and answers too.
fn check_roles(config: &CoordinatorConfig) -> Result<(), CoordinatorError> {
    let all = |role| {
        let roles = &config.group_roles;
        roles.len() == config.group_sizes.len() && roles.iter().all(|found| *found == role)
    };
    let lacking = [(GroupRole::Prefill, "decode"), (GroupRole::Decode, "prefill")];
    match lacking.into_iter().find(|(role, _)| all(*role)) {
        Some((role, lacks)) => Err(CoordinatorError::Roles { role, lacks }),
        None => Ok(()),
    }
}

/// What the file calls itself, else the file's name.
fn name(checkpoint: &Checkpoint) -> String {
    match checkpoint.spec().name.as_str() {
        "" => file_name(checkpoint),
        name => name.to_owned(),
    }
}

fn file_name(checkpoint: &Checkpoint) -> String {
    let stem = checkpoint.path().file_stem().unwrap_or_default();
    stem.to_string_lossy().into_owned()
}

fn served_names(config: &CoordinatorConfig, checkpoint: &Checkpoint) -> Vec<String> {
    if !config.served_names.is_empty() {
        return config.served_names.clone();
    }
    let mut names = vec![file_name(checkpoint), name(checkpoint)];
    names.dedup();
    names
}

fn cluster_config(config: &CoordinatorConfig, model: &ServedModel) -> ClusterConfig {
    ClusterConfig {
        numerics_id: Some(model.facts.numerics_id),
        force_tcp: config.force_tcp,
        prefix_cache: config.prefix_cache,
        nonce_seed: random_seed(),
        queue_max: config.queue_max,
        queue_tokens_max: config.queue_tokens_max,
        queue_wait_max: config.queue_wait_max,
        sequences_max: config.sequences_max,
        step_tokens_max: config.step_tokens_max,
        chunk_tokens_max: config.chunk_tokens_max,
        mixed_prefill_tokens_max: config.mixed_prefill_tokens_max,
        unavailable_wait_max: config.unavailable_wait_max,
        group_sizes: config.group_sizes.clone(),
        group_roles: config.group_roles.clone(),
        rebalance: config.rebalance,
        elastic: config.elastic,
        even_load: config.rebalance,
        prefix_copying: config.prefix_copying,
        ..ClusterConfig::new(1, model.cell)
    }
}

/// A driver that panics takes the server with it: nothing would ever answer again.
async fn drive(driver: Driver, shutdown: CancellationToken) {
    let _guard = shutdown.clone().drop_guard();
    driver.run(shutdown).await;
}

/// `""` is the whole server. The admin service answers always; answers come only while a group serves.
async fn report_health(reporter: &HealthReporter, ready: bool, leads: bool) {
    let status = |is_so: bool| match is_so {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    };
    for service in ["", INFERENCE] {
        reporter.set_service_status(service, status(ready)).await;
    }
    // Whoever would start the process anew asks for this one.
    reporter.set_service_status(ADMIN, ServingStatus::Serving).await;
    reporter.set_service_status(LEADER_SERVICE, status(leads)).await;
}

async fn keep_health(
    reporter: HealthReporter,
    mut ready: watch::Receiver<bool>,
    mut role: watch::Receiver<Role>,
    shutdown: CancellationToken,
) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = ready.changed() => if changed.is_err() { return },
            changed = role.changed() => if changed.is_err() { return },
        }
        let is_ready = *ready.borrow_and_update();
        let leads = matches!(*role.borrow_and_update(), Role::Leader { .. });
        report_health(&reporter, is_ready, leads).await;
    }
}

async fn serve(
    listener: TcpListener,
    door: &Door,
    routes: Routes,
    shutdown: &CancellationToken,
) -> Result<(), CoordinatorError> {
    let incoming = door.incoming(listener, &["h2"]).map_err(DoorError::from)?;
    let server = Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADERS_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(door.layer())
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, shutdown.cancelled());
    let out_of_grace = async {
        shutdown.cancelled().await;
        tokio::time::sleep(SHUTDOWN_GRACE).await;
    };
    tokio::select! {
        result = server => result.map_err(|source| CoordinatorError::Server { source }),
        () = out_of_grace => Ok(()),
    }
}

fn ended_early(error: tokio::task::JoinError) -> CoordinatorError {
    CoordinatorError::Task {
        what: error.to_string(),
    }
}
