//! Measures a GPU: `KVASIR_GPU=0 gpu_bench NAME [FILE]` prints a line for each number and writes them to FILE as JSON.
//!
//! Without `KVASIR_GPU` it runs on the host's device, in sizes that say nothing but that it runs.

use std::process::ExitCode;

use kvasir_tests::{gpu_bench, tiny_model::TinyModel};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_default();
    if name == "model" {
        return written(&arguments.next().unwrap_or_default());
    }
    if !gpu_bench::NAMES.contains(&name.as_str()) {
        eprintln!(
            "usage: gpu_bench NAME [FILE], or gpu_bench model FILE; NAME is one of: {}",
            gpu_bench::NAMES.join(", ")
        );
        return ExitCode::from(2);
    }
    let numbers = gpu_bench::measure(&name);
    for (number, value) in &numbers {
        println!("{name:<14} {number:<34} {value:>16.3}");
    }
    let Some(path) = arguments.next() else {
        return ExitCode::SUCCESS;
    };
    let text = serde_json::to_string_pretty(&numbers).expect("numbers are JSON");
    if let Err(error) = std::fs::write(&path, text + "\n") {
        eprintln!("cannot write {path}: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// A small model with a tokenizer, for checks that go through real processes.
fn written(path: &str) -> ExitCode {
    match TinyModel::default().write(path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write {path}: {error}");
            ExitCode::FAILURE
        }
    }
}
