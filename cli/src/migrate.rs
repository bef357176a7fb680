//! `kvasir migrate`: moves a running request to another group while it talks.

use anyhow::{Result, bail};
use clap::Args;
use kvasir_proto::v1;
use kvasir_runtime::ByteSize;
use serde::Serialize;

use crate::client::{self, Server};

/// Moves a running request to another group; its answer goes on where it was
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kvasir status                        lists requests and groups\n  kvasir migrate REQUEST --to 1"
)]
pub struct MigrateArgs {
    #[command(flatten)]
    server: Server,
    /// The request's id, as `kvasir status` shows it
    #[arg(value_name = "REQUEST")]
    request: String,
    /// The group to move it to; without, the one with the most room
    #[arg(long, value_name = "GROUP")]
    to: Option<u32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct MigrateJson {
    request_id: String,
    migrations: Vec<MigrationJson>,
}

#[derive(Serialize)]
struct MigrationJson {
    transfer: u64,
    source_group: u32,
    target_group: u32,
    outcome: String,
    detail: String,
    cells: u64,
    bytes: u64,
    rounds: u32,
    took_ms: f64,
    pause_ms: f64,
}

pub async fn run(args: MigrateArgs) -> Result<()> {
    let request = v1::MigrateRequest {
        request_id: args.request.clone(),
        target_group: args.to,
    };
    let migrations = client::migrate(&args.server.target()?, request).await?;
    let stayed = migrations
        .iter()
        .find(|migration| migration.outcome != "moved")
        .cloned();
    match args.json {
        true => println!("{}", serde_json::to_string(&json(args.request, migrations))?),
        false => migrations.iter().for_each(print),
    }
    match stayed {
        Some(migration) if migration.outcome != "ended" => bail!("not moved: {}", migration.detail),
        _ => Ok(()),
    }
}

fn json(request_id: String, migrations: Vec<v1::Migration>) -> MigrateJson {
    let migration = |migration: v1::Migration| MigrationJson {
        transfer: migration.transfer,
        source_group: migration.source_group,
        target_group: migration.target_group,
        outcome: migration.outcome,
        detail: migration.detail,
        cells: migration.cells,
        bytes: migration.bytes,
        rounds: migration.rounds,
        took_ms: migration.took_us as f64 / 1e3,
        pause_ms: migration.pause_us as f64 / 1e3,
    };
    MigrateJson {
        request_id,
        migrations: migrations.into_iter().map(migration).collect(),
    }
}

fn print(migration: &v1::Migration) {
    println!(
        "group {} to {}: {} · {} cells, {} in {:.0} ms, {} rounds",
        migration.source_group,
        migration.target_group,
        migration.detail,
        migration.cells,
        ByteSize(migration.bytes),
        migration.took_us as f64 / 1e3,
        migration.rounds,
    );
}
