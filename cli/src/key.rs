//! `kvasir key`: a fresh API key, shown once, and the line for the file of `--api-keys`, which holds its hash alone.

use std::{fs::OpenOptions, io::Write, os::unix::fs::OpenOptionsExt, path::PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use kvasir_runtime::{
    access::{ApiKey, KeyEntry, KeyLimits},
    tls::Identity,
};
use serde::Serialize;

/// Makes an API key
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  kvasir key ada --add-to keys.jsonl\n  kvasir key ops --admin --add-to keys.jsonl\n  \
                        kvasir up --model model.gguf --api-keys keys.jsonl"
)]
pub struct KeyArgs {
    /// Whose it is: the tenant of what is asked with it
    name: String,
    /// May migrate, reshard, drain, and see the status
    #[arg(long)]
    admin: bool,
    /// Most requests a minute
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    requests_per_minute: Option<u32>,
    /// Most requests at a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    concurrent_requests: Option<u32>,
    /// Append the line to this file; a running coordinator takes it in at the next request
    #[arg(long, value_name = "FILE")]
    add_to: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Made<'a> {
    key: &'a str,
    line: &'a KeyEntry,
}

pub fn run(args: &KeyArgs) -> Result<()> {
    Identity::check_name(&args.name)?;
    let key = ApiKey::generate()?;
    let entry = KeyEntry {
        name: args.name.clone(),
        sha256: key.hash().to_string(),
        admin: args.admin,
        limits: KeyLimits {
            requests_per_minute: args.requests_per_minute,
            concurrent_requests: args.concurrent_requests,
        },
    };
    let line = serde_json::to_string(&entry)?;
    if let Some(path) = &args.add_to {
        let append = || {
            let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
            writeln!(file, "{line}")
        };
        append().with_context(|| format!("cannot write {}", path.display()))?;
    }
    if args.json {
        let made = Made {
            key: key.text(),
            line: &entry,
        };
        println!("{}", serde_json::to_string(&made)?);
        return Ok(());
    }
    println!("key, shown this once:          {}", key.text());
    match &args.add_to {
        Some(path) => println!("its hash is in {}", path.display()),
        None => println!("line for --api-keys FILE:      {line}"),
    }
    Ok(())
}
