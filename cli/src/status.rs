//! `kvasir status`: what a cluster does right now.

use std::{
    collections::BTreeMap,
    io::{IsTerminal, stdout},
    time::Duration,
};

use anyhow::Result;
use clap::Args;
use kvasir_proto::v1;
use kvasir_runtime::ByteSize;
use owo_colors::{OwoColorize, Stream::Stdout};
use serde::Serialize;

use crate::{
    client::{self, Server},
    movements::{ReshardJson, TransferJson},
    plain::plain,
};

const WATCH_INTERVAL: Duration = Duration::from_secs(1);
const CLEAR_SCREEN: &str = "\x1b[2J\x1b[H";

/// Shows groups, ranks, blocks, sequences and counters
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  kvasir status --endpoint http://127.0.0.1:50051 --watch")]
pub struct StatusArgs {
    #[command(flatten)]
    server: Server,
    /// Print one JSON object (with --watch, one a line)
    #[arg(long)]
    json: bool,
    /// Again every second
    #[arg(long)]
    watch: bool,
}

pub async fn run(args: StatusArgs) -> Result<()> {
    let target = args.server.target()?;
    loop {
        let status = StatusJson::from(client::status(&target).await?);
        if args.watch && !args.json && stdout().is_terminal() {
            print!("{CLEAR_SCREEN}");
        }
        match args.json {
            true => println!("{}", serde_json::to_string(&status)?),
            false => print(&status),
        }
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

#[derive(Serialize)]
struct StatusJson {
    model: String,
    numerics_id: String,
    /// Tokens that prompt and answer may have together.
    context_len: u32,
    vocab_size: u32,
    ready: bool,
    workers_wanted: u32,
    uptime_ms: u64,
    /// The one that answered, by its name.
    coordinator: String,
    leader: bool,
    leader_term: u64,
    /// Who leads, where it is not this one.
    leader_name: String,
    leader_url: String,
    registry: String,
    groups: Vec<GroupJson>,
    spares: Vec<WorkerJson>,
    sequences: Vec<SequenceJson>,
    /// On their way to other groups.
    transfers: Vec<TransferJson>,
    reshards: Vec<ReshardJson>,
    counters: BTreeMap<String, u64>,
    /// 0 to 1.
    prefix_hit_rate: f64,
}

#[derive(Serialize)]
struct GroupJson {
    id: u32,
    epoch: EpochJson,
    role: String,
    state: String,
    transport: String,
    workers_wanted: u32,
    running: u32,
    waiting: u32,
    ranks: Vec<RankJson>,
    blocks: BlocksJson,
    block_size: u32,
    /// Why it does not form.
    #[serde(skip_serializing_if = "String::is_empty")]
    cause: String,
}

#[derive(Serialize)]
struct EpochJson {
    term: u64,
    number: u64,
}

#[derive(Serialize)]
struct RankJson {
    rank: u32,
    worker: String,
    pid: u32,
    address: String,
    /// The heads themselves.
    kv_heads: Vec<u32>,
    units: UnitsJson,
    /// Of weights.
    bytes: u64,
}

/// Half-open ranges.
#[derive(Serialize)]
struct UnitsJson {
    attention: [u32; 2],
    ffn: [u32; 2],
    vocab: [u32; 2],
}

#[derive(Serialize, Default)]
struct BlocksJson {
    free: u32,
    cached: u32,
    held: u32,
    in_flight: u32,
    total: u32,
    /// 0, or blocks have been lost.
    unaccounted: i64,
}

#[derive(Serialize)]
struct WorkerJson {
    worker: String,
    pid: u32,
    address: String,
}

#[derive(Serialize)]
struct SequenceJson {
    request_id: String,
    tenant: String,
    priority: i32,
    /// Where it runs, or waits for room.
    group: u32,
    tokens: u32,
    computed: u32,
    cached_tokens: u32,
    preemptions: u32,
    state: String,
}

impl From<v1::StatusResponse> for StatusJson {
    fn from(status: v1::StatusResponse) -> Self {
        Self {
            model: status.model,
            numerics_id: status.numerics_id,
            context_len: status.context_len,
            vocab_size: status.vocab_size,
            ready: status.ready,
            workers_wanted: status.workers_wanted,
            uptime_ms: status.uptime_ms,
            coordinator: status.coordinator,
            leader: status.leader,
            leader_term: status.leader_term,
            leader_name: status.leader_name,
            leader_url: status.leader_url,
            registry: status.registry,
            groups: status.groups.into_iter().map(GroupJson::from).collect(),
            spares: status.spares.into_iter().map(WorkerJson::from).collect(),
            transfers: status.transfers.into_iter().map(TransferJson::from).collect(),
            reshards: status.reshards.into_iter().map(ReshardJson::from).collect(),
            sequences: status.sequences.into_iter().map(SequenceJson::from).collect(),
            counters: status.counters.into_iter().collect(),
            prefix_hit_rate: status.prefix_hit_rate,
        }
    }
}

impl From<v1::Group> for GroupJson {
    fn from(group: v1::Group) -> Self {
        let blocks = group.blocks.unwrap_or_default();
        Self {
            id: group.id,
            epoch: EpochJson {
                term: group.term,
                number: group.epoch,
            },
            role: group.role,
            state: group.state,
            transport: group.transport,
            workers_wanted: group.workers_wanted,
            running: group.running,
            waiting: group.waiting,
            ranks: group.ranks.into_iter().map(RankJson::from).collect(),
            blocks: BlocksJson {
                free: blocks.free,
                cached: blocks.cached,
                held: blocks.held,
                in_flight: blocks.in_flight,
                total: blocks.total,
                unaccounted: blocks.unaccounted,
            },
            block_size: group.block_size,
            cause: group.cause,
        }
    }
}

impl From<v1::RankStatus> for RankJson {
    fn from(rank: v1::RankStatus) -> Self {
        let range = |range: Option<v1::UnitRange>| range.map_or([0, 0], |range| [range.begin, range.end]);
        let worker = rank.worker.unwrap_or_default();
        let heads = range(rank.kv_heads);
        Self {
            rank: rank.rank,
            worker: worker.id,
            pid: worker.pid,
            address: worker.address,
            kv_heads: (heads[0]..heads[1]).collect(),
            units: UnitsJson {
                attention: heads,
                ffn: range(rank.ffn_units),
                vocab: range(rank.vocab_units),
            },
            bytes: rank.bytes,
        }
    }
}

impl From<v1::Worker> for WorkerJson {
    fn from(worker: v1::Worker) -> Self {
        Self {
            worker: worker.id,
            pid: worker.pid,
            address: worker.address,
        }
    }
}

impl From<v1::SequenceStatus> for SequenceJson {
    fn from(sequence: v1::SequenceStatus) -> Self {
        Self {
            group: sequence.group,
            request_id: sequence.request_id,
            tenant: sequence.tenant,
            priority: sequence.priority,
            cached_tokens: sequence.cached_tokens,
            preemptions: sequence.preemptions,
            tokens: sequence.tokens,
            computed: sequence.computed,
            state: sequence.state,
        }
    }
}

fn print(status: &StatusJson) {
    let ready = if status.ready { "ready" } else { "not ready" };
    println!(
        "{}  {ready}, up {} s, numerics {}",
        status.model.if_supports_color(Stdout, |text| text.bold()),
        status.uptime_ms / 1000,
        status.numerics_id
    );
    if status.registry != "embedded" {
        println!("  {}", line_of_coordinators(status));
    }
    for group in &status.groups {
        print_group(group);
    }
    for spare in &status.spares {
        println!("  spare   {:<12} pid {:<7} {}", spare.worker, spare.pid, spare.address);
    }
    for sequence in &status.sequences {
        println!("  {}", line_of(sequence));
    }
    for transfer in &status.transfers {
        println!("  {}", transfer.line());
    }
    for reshard in &status.reshards {
        println!("  {}", reshard.line());
    }
    if status.prefix_hit_rate > 0.0 {
        println!(
            "  prefix cache: {:.1} % of tokens found",
            status.prefix_hit_rate * 100.0
        );
    }
    let counters = status.counters.iter().filter(|(_, count)| **count > 0);
    let counters: Vec<_> = counters.map(|(name, count)| format!("{name} {count}")).collect();
    if !counters.is_empty() {
        println!("  {}", counters.join(", "));
    }
}

fn line_of_coordinators(status: &StatusJson) -> String {
    let StatusJson {
        coordinator,
        leader_term,
        registry,
        ..
    } = status;
    match (status.leader, status.leader_name.as_str()) {
        (true, _) => format!("coordinator {coordinator} leads, term {leader_term}  {registry}"),
        (false, "") => format!("coordinator {coordinator} stands by, nobody leads  {registry}"),
        (false, leader) => {
            let url = &status.leader_url;
            format!("coordinator {coordinator} stands by, {leader} at {url} leads, term {leader_term}  {registry}")
        }
    }
}

fn line_of(sequence: &SequenceJson) -> String {
    let mut line = format!(
        "{:<8}{}  group {}, {} tokens, {} computed",
        sequence.state,
        plain(&sequence.request_id),
        sequence.group,
        sequence.tokens,
        sequence.computed
    );
    if !sequence.tenant.is_empty() {
        line += &format!(", tenant {}", plain(&sequence.tenant));
    }
    if sequence.priority != 0 {
        line += &format!(", priority {}", sequence.priority);
    }
    if sequence.preemptions > 0 {
        line += &format!(", preempted {} times", sequence.preemptions);
    }
    line
}

fn print_group(group: &GroupJson) {
    let role = if group.role == "both" {
        String::new()
    } else {
        format!(" ({})", group.role)
    };
    println!(
        "  group {}{}  epoch {}.{}  {}  {}  {} running, {} waiting",
        group.id,
        role,
        group.epoch.term,
        group.epoch.number,
        group.state,
        group.transport,
        group.running,
        group.waiting
    );
    if !group.cause.is_empty() {
        println!("  no group forms: {}", group.cause);
    }
    let span = |[begin, end]: [u32; 2]| end - begin;
    for rank in &group.ranks {
        println!(
            "  rank {:<2} {:<12} pid {:<7} {:<12} {} KV heads, {} FFN and {} vocab units, {}",
            rank.rank,
            rank.worker,
            rank.pid,
            rank.address,
            rank.kv_heads.len(),
            span(rank.units.ffn),
            span(rank.units.vocab),
            ByteSize(rank.bytes)
        );
    }
    let blocks = &group.blocks;
    println!(
        "  blocks  {} free, {} cached, {} held, {} in flight, {} in all ({} tokens each)",
        blocks.free, blocks.cached, blocks.held, blocks.in_flight, blocks.total, group.block_size
    );
}
