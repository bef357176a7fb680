//! `cargo xtask chaos`: starts the chaos runner of the tests crate, which alone knows what is broken, and what may not change.

use std::process::ExitCode;

use anyhow::Result;

use crate::arguments::ChaosOptions;
use crate::{model, paths, process, tools};

pub fn run(options: &ChaosOptions) -> Result<ExitCode> {
    tools::ensure_etcd()?;
    tools::ensure_ip()?;
    let model = model::fetch()?;
    process::run(paths::cargo().args(["build", "--package", "kvasir"]))?;
    let mut cargo = paths::cargo();
    cargo
        .args(["run", "--package", "kvasir-tests", "--example", "chaos_etcd", "--"])
        .args(&options.cases)
        .env("KVASIR_MODEL", model)
        .env("KVASIR_BIN", paths::kvasir_binary()?);
    process::run(&mut cargo)?;
    Ok(ExitCode::SUCCESS)
}
