//! `kvasir status`: what a cluster does right now.

use std::{
    io::{IsTerminal, stdout},
    time::Duration,
};

use anyhow::Result;
use clap::Args;
use kvasir_gateway::{GroupJson, SequenceJson, StatusJson};
use kvasir_runtime::ByteSize;
use owo_colors::{OwoColorize, Stream::Stdout};

use crate::{
    client::{self, Server},
    movements::{line_of_reshard, line_of_transfer},
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
        println!("  {}", line_of_transfer(transfer));
    }
    for reshard in &status.reshards {
        println!("  {}", line_of_reshard(reshard));
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
