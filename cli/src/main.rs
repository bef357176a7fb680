//! The one binary: every role and tool of a cluster as a subcommand.
//!
//! Exit codes: 0 success, 1 a failure with one line on standard error, 2 wrong usage.

mod answer;
mod arithmetic_options;
mod ask;
mod bench;
mod cert_folder;
mod certs;
mod chat;
mod client;
mod coordinator;
mod door_options;
mod doors;
mod drain;
mod engine_options;
mod etcd_options;
mod gateway;
mod generate;
mod groups;
mod key;
mod lab;
mod local_cluster;
mod log;
mod migrate;
mod model_source;
mod movements;
mod perplexity;
mod plain;
mod plan;
mod plan_report;
mod reshard;
mod status;
mod telemetry_options;
mod up;
mod worker;

use std::{num::NonZero, process::ExitCode};

use clap::{Parser, Subcommand};
use kvasir_runtime::{LogFormat, logging};
use tokio::runtime::{Builder, Runtime};

use crate::engine_options::EngineOptions;

/// Serves large language models from a cluster of any number of workers.
///
/// Kill or add workers in mid-sentence: the answer does not change by one bit.
#[derive(Parser, Debug)]
#[command(name = "kvasir", version, propagate_version = true)]
#[command(after_help = "Example:\n  kvasir up --model model.gguf --workers 2\n  kvasir chat \"What is a fjord?\"")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How log lines are written to standard error: text or json. KVASIR_LOG or RUST_LOG says which (e.g. `debug`)
    #[arg(long, global = true, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    log_format: LogFormat,
}

#[derive(Subcommand, Debug)]
enum Command {
    Up(up::UpArgs),
    Coordinator(coordinator::CoordinatorArgs),
    Worker(worker::WorkerArgs),
    Gateway(gateway::GatewayArgs),
    Generate(generate::GenerateArgs),
    Chat(chat::ChatArgs),
    Status(status::StatusArgs),
    Migrate(migrate::MigrateArgs),
    Reshard(reshard::ReshardArgs),
    Drain(drain::DrainArgs),
    Log(log::LogArgs),
    Certs(certs::CertsArgs),
    Key(key::KeyArgs),
    Plan(plan::PlanArgs),
    Perplexity(perplexity::PerplexityArgs),
    Bench(bench::BenchArgs),
    Lab(lab::LabArgs),
}

impl Command {
    /// Of the commands that open a model.
    fn engine(&mut self) -> Option<&mut EngineOptions> {
        match self {
            Self::Up(args) => Some(&mut args.engine),
            Self::Coordinator(args) => Some(&mut args.engine),
            Self::Worker(args) => Some(&mut args.engine),
            Self::Plan(args) => Some(&mut args.engine),
            Self::Perplexity(args) => Some(&mut args.engine),
            Self::Bench(args) => args.engine(),
            Self::Lab(args) => args.engine(),
            Self::Gateway(_)
            | Self::Generate(_)
            | Self::Chat(_)
            | Self::Status(_)
            | Self::Migrate(_)
            | Self::Reshard(_)
            | Self::Drain(_)
            | Self::Log(_)
            | Self::Certs(_)
            | Self::Key(_) => None,
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let quiet = matches!(
        cli.command,
        Command::Generate(_)
            | Command::Chat(_)
            | Command::Status(_)
            | Command::Migrate(_)
            | Command::Reshard(_)
            | Command::Drain(_)
            | Command::Log(_)
            | Command::Bench(_)
            | Command::Lab(_)
    );
    // `up` tells people what happens in its own words.
    let default = match cli.command {
        _ if quiet => "error",
        Command::Perplexity(_) => "error",
        // Whom it turns away it does not tell by itself.
        Command::Up(_) => "error,kvasir_runtime=warn,opentelemetry_sdk=warn,opentelemetry_otlp=warn",
        // What sends telemetry tells of its own start, which is no news.
        _ => "info,opentelemetry=warn,opentelemetry_sdk=warn,opentelemetry_otlp=warn",
    };
    logging::start(cli.log_format, default);
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(mut command: Command) -> anyhow::Result<ExitCode> {
    let computes = matches!(command, Command::Up(_) | Command::Worker(_) | Command::Perplexity(_));
    if let Some(engine) = command.engine() {
        // Before a model is fetched that nothing here could compute with.
        let arithmetic = engine.arithmetic.resolve()?;
        if computes {
            arithmetic.can_compute_here()?;
        }
        engine.locate_model()?;
    }
    // What asks no cluster needs no runtime.
    match &command {
        Command::Plan(args) => return plan::run(args).map(|()| ExitCode::SUCCESS),
        Command::Certs(args) => return certs::run(args).map(|()| ExitCode::SUCCESS),
        Command::Key(args) => return key::run(args).map(|()| ExitCode::SUCCESS),
        _ => {}
    }
    // Runs on the main thread: worker processes die with the thread that started them.
    runtime(&command)?.block_on(async {
        match command {
            Command::Up(args) => up::run(args).await,
            Command::Coordinator(args) => coordinator::run(args).await,
            Command::Worker(args) => worker::run(args).await,
            Command::Gateway(args) => gateway::run(args).await,
            Command::Generate(args) => generate::run(args).await,
            Command::Chat(args) => chat::run(args).await,
            Command::Status(args) => status::run(args).await,
            Command::Migrate(args) => migrate::run(args).await,
            Command::Reshard(args) => reshard::run(args).await,
            Command::Drain(args) => drain::run(args).await,
            Command::Log(args) => log::run(args).await,
            Command::Plan(args) => plan::run(&args),
            Command::Certs(args) => certs::run(&args),
            Command::Key(args) => key::run(&args),
            Command::Perplexity(args) => perplexity::run(args).await,
            Command::Bench(args) => bench::run(args).await,
            Command::Lab(args) => lab::run(args).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A worker and a client speak to one peer and take turns with it: on one thread, a message wakes nobody but whom it is
/// for. That counts where a worker's rank computes on all cores there are; and a coordinator beside its workers on one
/// machine leaves most cores to them.
fn runtime(command: &Command) -> std::io::Result<Runtime> {
    let mut builder = match command {
        Command::Up(_) | Command::Coordinator(_) | Command::Gateway(_) | Command::Perplexity(_) => {
            Builder::new_multi_thread()
        }
        _ => Builder::new_current_thread(),
    };
    if !matches!(command, Command::Coordinator(_) | Command::Gateway(_)) {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        builder.worker_threads((cores / 4).max(1));
    }
    builder.enable_all().build()
}

/// What happened and why. Messages that quote their cause already are not followed by it again.
fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            let colon = if text.is_empty() { "" } else { ": " };
            text = format!("{text}{colon}{cause}");
        }
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_error_is_one_line_without_repetition() {
        let error = anyhow::anyhow!("disk\nfull")
            .context("cannot write: disk\nfull")
            .context("saving");
        assert_eq!(one_line(&error), "saving: cannot write: disk full");
    }

    /// What `deploy/` starts; the list is kept current by the tests of it.
    #[test]
    fn every_command_line_of_a_deployment_is_one() {
        type Containers = std::collections::BTreeMap<String, Vec<String>>;
        let list = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/deploy/golden/commands.json");
        let list = std::fs::read_to_string(list).unwrap();
        let sets: std::collections::BTreeMap<String, Containers> = serde_json::from_str(&list).unwrap();
        let mut roles = std::collections::BTreeSet::new();
        for (set, containers) in sets {
            for (container, args) in containers {
                roles.insert(args[0].clone());
                let parsed = Cli::try_parse_from(std::iter::once("kvasir".to_owned()).chain(args));
                assert!(parsed.is_ok(), "{set}, {container}: {}", parsed.unwrap_err());
            }
        }
        let expected = ["coordinator", "gateway", "worker"].map(str::to_owned);
        assert!(expected.iter().all(|role| roles.contains(role)), "{roles:?}");
    }

    #[test]
    fn every_subcommand_has_an_example() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{}", command.get_name());
        }
    }
}
