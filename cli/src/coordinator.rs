//! `kvasir coordinator`: the role, as deployed.

use anyhow::{Result, ensure};
use clap::Args;
use kvasir_coordinator::{Coordinator, CoordinatorConfig, LeadConfig, PrefixCopying};
use kvasir_runtime::{descriptors::raise_descriptor_limit, parse_endpoint, registry::RegistryConfig, shutdown};
use serde::Serialize;

use crate::{
    door_options::DoorOptions,
    doors::{Doors, Watched, Watching},
    engine_options::{EngineOptions, TransportChoice},
    etcd_options::EtcdOptions,
    groups::GroupOptions,
    telemetry_options::TelemetryOptions,
};

/// Runs a coordinator: workers join it, clients ask it
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  kvasir coordinator --model model.gguf --workers 2 --grpc 127.0.0.1:50051\n  \
                        kvasir coordinator --model model.gguf --workers 2 --grpc 127.0.0.1:50052 --etcd http://127.0.0.1:2379"
)]
pub struct CoordinatorArgs {
    #[command(flatten)]
    pub engine: EngineOptions,
    #[command(flatten)]
    pub serving: ServingOptions,
    #[command(flatten)]
    pub groups: GroupOptions,
    #[command(flatten)]
    pub telemetry: TelemetryOptions,
    #[command(flatten)]
    pub place: PlaceOptions,
    /// Prints one JSON line when it listens
    #[arg(long)]
    pub json: bool,
}

/// Among several coordinators: with the same etcd one leads, and the others hand on to it what they are asked.
#[derive(Args, Clone, Debug)]
pub struct PlaceOptions {
    #[command(flatten)]
    pub etcd: EtcdOptions,
    /// Where workers and other coordinators reach this one [default: the address of --grpc]
    #[arg(long, value_name = "URL", requires = "etcd")]
    pub advertise: Option<String>,
    /// A name, unique among the coordinators [default: the machine's, and the process id]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

impl PlaceOptions {
    /// `grpc` is where it listens. Errors if nobody could reach it there, and with what cannot be used.
    fn config(&self, grpc: &str) -> Result<LeadConfig> {
        let registry = self.etcd.registry()?;
        let url = match &self.advertise {
            Some(url) => parse_endpoint(url)?,
            None => grpc.to_owned(),
        };
        let nowhere = url.contains("://0.0.0.0:") || url.contains("://[::]:");
        ensure!(
            registry == RegistryConfig::Embedded || !nowhere,
            "nobody can be reached at {url}; --advertise URL says where this coordinator is reached"
        );
        Ok(LeadConfig {
            registry,
            url,
            name: self.name.clone().unwrap_or_else(process_name),
        })
    }
}

/// Unique enough: the machine's name, and the process id.
pub fn process_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => "coordinator",
        host => host,
    };
    format!("{host}-{}", std::process::id())
}

/// What `up` and `coordinator` share.
#[derive(Args, Clone, Debug)]
pub struct ServingOptions {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:50051", value_name = "HOST:PORT")]
    pub grpc: String,
    /// Address for OpenAI's HTTP API; none without
    #[arg(long, value_name = "HOST:PORT")]
    pub http: Option<String>,
    /// What clients may call the model; may be given several times [default: the file's name, and what it calls itself]
    #[arg(long, value_name = "NAME")]
    pub served_model_name: Vec<String>,
    #[command(flatten)]
    pub door: DoorOptions,
    /// How ranks exchange sums
    #[arg(long, value_enum, default_value_t = TransportChoice::Auto)]
    pub transport: TransportChoice,
    /// Compute every prompt from its first token, also where another request had the same beginning
    #[arg(long)]
    pub no_prefix_cache: bool,
    /// Leave running requests in their groups, also where another group has room and theirs has none, or has much less to do
    #[arg(long)]
    pub no_rebalance: bool,
    /// Take workers that join beyond those that are wanted into the groups, while these serve; --workers and --groups say
    /// the least
    #[arg(long)]
    pub elastic: bool,
    /// Whether a new request fetches the cached beginning of its prompt from another group: `auto` where that takes less
    /// time than computing it, `always` or `never`
    #[arg(long, default_value_t = PrefixCopying::Auto, value_name = "WHEN")]
    pub prefix_copy: PrefixCopying,
    /// Most requests that wait for a place; one more is refused and told when to come again
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub queue: u32,
    /// Most tokens of the requests that wait
    #[arg(long, default_value_t = 1 << 20, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(1..))]
    pub queue_tokens: u64,
    /// A request that waits so long for its turn is refused
    #[arg(long, default_value_t = 300.0, value_name = "SECONDS", value_parser = seconds)]
    pub queue_wait: f64,
    /// Most sequences that a group computes at a time
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub sequences: u32,
    /// Most tokens of one step, all sequences of a group together
    #[arg(long, default_value_t = 512, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub step_tokens: u32,
    /// Most tokens of one prompt in a step: longer prompts are computed in chunks
    #[arg(long, default_value_t = 256, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub chunk_tokens: u32,
    /// Most prompt tokens of a step in which other answers get their next token (or as many as those, if that is more)
    #[arg(long, default_value_t = 64, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub mixed_tokens: u32,
    /// Longest time for a request that names none
    #[arg(long, default_value_t = 600, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub request_timeout: u64,
    /// How long requests wait for workers before they fail
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub unavailable_wait: u64,
}

impl ServingOptions {
    pub fn config(&self, engine: &EngineOptions, groups: &GroupOptions) -> Result<CoordinatorConfig> {
        Ok(CoordinatorConfig {
            kv_dtype: engine.kv_dtype,
            weight_mode: engine.weights_dtype,
            backend: engine.arithmetic.resolve()?.backend,
            block_size: engine.block_size,
            force_tcp: self.transport == TransportChoice::Tcp,
            prefix_cache: !self.no_prefix_cache,
            request_timeout: std::time::Duration::from_secs(self.request_timeout),
            unavailable_wait_max: std::time::Duration::from_secs(self.unavailable_wait),
            queue_max: self.queue,
            queue_tokens_max: self.queue_tokens,
            queue_wait_max: std::time::Duration::from_secs_f64(self.queue_wait),
            sequences_max: self.sequences,
            step_tokens_max: self.step_tokens,
            chunk_tokens_max: self.chunk_tokens,
            mixed_prefill_tokens_max: self.mixed_tokens,
            served_names: self.served_model_name.clone(),
            group_roles: groups.roles(),
            rebalance: !self.no_rebalance,
            elastic: self.elastic,
            prefix_copying: self.prefix_copy,
            door: self.door.config(),
            ..CoordinatorConfig::new(engine.model.clone(), groups.sizes()?)
        })
    }

    pub async fn bind(&self) -> Result<Doors> {
        Doors::bind(&self.door.config(), &self.grpc, self.http.as_deref()).await
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.001..=1e6).contains(&seconds) => Ok(seconds),
        _ => Err("expected seconds, 0.001 to 1000000".to_owned()),
    }
}

#[derive(Serialize)]
struct Listening {
    grpc: String,
    http: Option<String>,
    metrics: Option<String>,
    pid: u32,
}

pub async fn run(args: CoordinatorArgs) -> Result<()> {
    raise_descriptor_limit();
    let shutdown = shutdown::on_signals()?;
    let doors = args.serving.bind().await?;
    let metrics = args.telemetry.bind().await?;
    let telemetry = args.telemetry.start("coordinator", args.serving.http.is_some())?;
    let addresses = doors.addresses.clone();
    let listening = Listening {
        grpc: addresses.grpc,
        http: addresses.http,
        metrics: metrics.as_ref().map(|door| door.url.clone()),
        pid: std::process::id(),
    };
    let mut config = args.serving.config(&args.engine, &args.groups)?;
    config.lead = args.place.config(&listening.grpc)?;
    ensure!(
        config.lead.registry == RegistryConfig::Embedded
            || config.door.tls.as_ref().is_none_or(|tls| tls.authority.is_some()),
        "coordinators with TLS must believe each other; give --tls-ca, or --tls-dir"
    );
    let coordinator = Coordinator::open(config).await?;
    if args.json {
        println!("{}", serde_json::to_string(&listening)?);
    } else {
        println!("coordinator listens on {}", listening.grpc);
        if let Some(http) = listening.http {
            println!("OpenAI's API is at {http}/v1, the live page at {http}/");
        }
    }
    let watched = Watched::new(&coordinator, Watching { telemetry, metrics }, &shutdown);
    let served = doors.serve(coordinator, watched.exposition(), shutdown).await;
    watched.end().await;
    Ok(served?)
}
