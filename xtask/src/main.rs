//! The project's chores: everything a newcomer or CI types that is not plain cargo.
//!
//! One file per chore. The chores start other programs and watch them; what they check or run lives in the crates.

mod arguments;
mod bench;
mod captured;
mod chaos;
mod checksum;
mod cluster;
mod demo;
mod download;
mod fuzz;
mod gpu;
mod junit;
mod kubernetes_tools;
mod lab;
mod model;
mod paths;
mod pip;
mod process;
mod python_suite;
mod simulation;
mod suite;
mod tidy;
mod tools;

use std::process::ExitCode;

use arguments::Chore;
use bench::BenchOptions;

fn main() -> ExitCode {
    let chore = match arguments::parse(lexopt::Parser::from_env()) {
        Ok(chore) => chore,
        Err(error) => {
            eprintln!("xtask: {error:#}; `cargo xtask --help` lists what there is");
            return ExitCode::from(2);
        }
    };
    run(chore).unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(chore: Chore) -> anyhow::Result<ExitCode> {
    if chore.builds() {
        tools::ensure_protoc()?;
    }
    match chore {
        Chore::Help => print!("{}", arguments::HELP),
        Chore::Model { print_only: true } => println!("{}", model::path()?.display()),
        Chore::Model { print_only: false } => println!("{}", model::fetch()?.display()),
        Chore::Test(options) => return suite::run(&options),
        Chore::Tidy => return tidy::report(&paths::root()),
        Chore::Codegen => {
            process::run(paths::cargo().args(["run", "--package", "kvasir-proto", "--example", "codegen"]))?
        }
        Chore::Simulation(options) => simulation::run(&options)?,
        Chore::Python { suite, filters } => return python_suite::run(suite, &filters),
        Chore::Fuzz(options) => return fuzz::run(&options),
        Chore::Bench(BenchOptions::Help) => print!("{}", arguments::HELP),
        Chore::Bench(BenchOptions::Peers) => print!("{}", bench::PEERS),
        Chore::Bench(BenchOptions::Compare(comparison)) => bench::compare(&comparison)?,
        Chore::Chaos(options) => return chaos::run(&options),
        Chore::Gpu(extent) => return gpu::run(extent),
        Chore::Lab => {
            let model = model::fetch()?;
            process::run(paths::cargo().args(["build", "--package", "kvasir"]))?;
            lab::run(&paths::kvasir_binary()?, &model)?;
        }
        Chore::Demo => {
            let model = model::fetch()?;
            process::run(paths::cargo().args(["build", "--package", "kvasir"]))?;
            demo::run(&model, &paths::kvasir_binary()?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
