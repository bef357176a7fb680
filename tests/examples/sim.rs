//! Runs seeded simulations of the cluster and reports what happened. `sim --help` lists the flags.

use std::{process::ExitCode, time::Instant};

use anyhow::{Context, Result, bail};
use kvasir_tests::sim::{Plant, Report, run_traced};

const HELP: &str = "\
usage: sim [--seeds N] [--start S] [--plant NAME] [--trace]

  --seeds N     how many seeds, counted from the first one; 100 unless given
  --start S     the first seed; 0 unless given
  --plant NAME  plants a bug that the simulation must find
  --trace       writes faults and what the coordinator does about them to standard error

exits with 0 if every promise was kept, 1 if not, 2 if it does not understand its arguments

bugs to plant:
";

enum Command {
    Help,
    Simulate(Options),
}

struct Options {
    seeds: u64,
    start: u64,
    plant: Option<Plant>,
    trace: bool,
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)) {
        Ok(Command::Help) => {
            print!("{HELP}");
            Plant::ALL.iter().for_each(|plant| println!("  {}", plant.name()));
            ExitCode::SUCCESS
        }
        Ok(Command::Simulate(options)) => simulate(&options),
        Err(error) => {
            eprintln!("sim: {error:#}; `sim --help` lists what there is");
            ExitCode::from(2)
        }
    }
}

fn simulate(options: &Options) -> ExitCode {
    let began = Instant::now();
    let mut total = Report::default();
    let mut failures = 0;
    for seed in options.start..options.start.saturating_add(options.seeds) {
        match run_traced(seed, options.plant, options.trace) {
            Ok(report) => total.add(&report),
            Err(failure) => {
                failures += 1;
                eprintln!("{failure}\n");
            }
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{} runs, {failures} failed, {:.0} seeds/s",
        options.seeds,
        options.seeds as f64 / seconds
    );
    println!("{total:#?}");
    if failures == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Command> {
    let mut options = Options {
        seeds: 100,
        start: 0,
        plant: None,
        trace: false,
    };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--help" | "-h" => return Ok(Command::Help),
            "--seeds" => options.seeds = number(&argument, &value()?)?,
            "--start" => options.start = number(&argument, &value()?)?,
            "--plant" => {
                let name = value()?;
                options.plant = Some(Plant::by_name(&name).with_context(|| format!("no plant '{name}'"))?);
            }
            "--trace" => options.trace = true,
            _ => bail!("unknown argument '{argument}'"),
        }
    }
    Ok(Command::Simulate(options))
}

fn number(flag: &str, value: &str) -> Result<u64> {
    value
        .parse()
        .with_context(|| format!("{flag} wants a number, not '{value}'"))
}
