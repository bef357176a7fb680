//! Runs seeded simulations of the cluster and reports what happened: `sim [--seeds N] [--start S] [--plant NAME] [--trace]`.

use std::{process::ExitCode, time::Instant};

use anyhow::{Context, Result, bail};
use kvasir_tests::sim::{Plant, Report, run_traced};

struct Options {
    seeds: u64,
    start: u64,
    plant: Option<Plant>,
    trace: bool,
}

fn main() -> Result<ExitCode> {
    let options = parse(std::env::args().skip(1))?;
    let began = Instant::now();
    let mut total = Report::default();
    let mut failures = 0;
    for seed in options.start..options.start + options.seeds {
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
    Ok(if failures == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options {
        seeds: 100,
        start: 0,
        plant: None,
        trace: false,
    };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--seeds" => options.seeds = value()?.parse()?,
            "--start" => options.start = value()?.parse()?,
            "--plant" => {
                let name = value()?;
                let names: Vec<&str> = Plant::ALL.iter().map(|plant| plant.name()).collect();
                let plant = Plant::by_name(&name);
                options.plant =
                    Some(plant.with_context(|| format!("no plant {name}; there are {}", names.join(", ")))?);
            }
            "--trace" => options.trace = true,
            _ => bail!("unknown argument {argument}"),
        }
    }
    Ok(options)
}
