//! `cargo xtask bench`: Kvasir and a peer in turn on the same file, cores and lengths, and how many times as fast it is.
//!
//! Each side is measured by its own program, as its users would: Kvasir through the gRPC door of a cluster of real processes,
//! llama.cpp by what it brings along.

mod case;
mod kvasir;
mod llama_cpp;
mod machine;
mod measured;
mod options;
mod programs;
mod report;
mod roofline;
mod rpc_servers;
mod samples;
mod side;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

pub use options::{BenchOptions, Comparison, parse};

use crate::model;
use case::Extent;
use kvasir::Kvasir;
use llama_cpp::LlamaCpp;
use measured::Measured;
use report::{Conditions, Report};
use roofline::Roofline;
use samples::Samples;
use side::Side;

pub const PEERS: &str = "\
bench --against llama.cpp     Kvasir and llama.cpp, built here, in turn on the same file: prefill, decode, depth, streams
Kvasir alone: `kvasir bench --help`; the flags: `cargo xtask --help`
";
const GGUF: &[u8; 4] = b"GGUF";

/// Measures each model and prints its table.
pub fn compare(comparison: &Comparison) -> Result<()> {
    let models = models(&comparison.models)?;
    let write = |reports: &[Value]| write_json(comparison.json.as_deref(), reports);
    // A file that cannot be written is better known now.
    write(&[])?;
    let contest = Contest {
        kvasir: Kvasir::build()?,
        peer: LlamaCpp::ensure()?,
        cores: machine::cores()?,
        comparison,
    };
    let mut reports = Vec::new();
    for model in &models {
        let report = contest.run(model)?;
        println!("{}", report.text());
        reports.push(report.json());
        write(&reports)?;
    }
    Ok(())
}

/// The models to measure. Errors before anything is built or measured.
fn models(named: &[PathBuf]) -> Result<Vec<PathBuf>> {
    if named.is_empty() {
        return Ok(vec![model::fetch()?]);
    }
    named.iter().try_for_each(|model| check_model(model))?;
    Ok(named.to_vec())
}

fn check_model(model: &Path) -> Result<()> {
    let mut magic = [0; GGUF.len()];
    let read = File::open(model).and_then(|mut file| file.read_exact(&mut magic));
    read.with_context(|| format!("--model {}: cannot be read", model.display()))?;
    ensure!(
        magic == *GGUF,
        "--model {}: not a GGUF file, which is all that both sides read",
        model.display()
    );
    Ok(())
}

fn write_json(path: Option<&Path>, reports: &[Value]) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let text = serde_json::to_string_pretty(&json!({"files": reports}))?;
    fs::write(path, text + "\n").with_context(|| format!("--json {}: cannot be written", path.display()))
}

struct Contest<'a> {
    kvasir: Kvasir,
    peer: LlamaCpp,
    cores: usize,
    comparison: &'a Comparison,
}

impl Contest<'_> {
    fn run(&self, model: &Path) -> Result<Report> {
        let plan = self.kvasir.plan(model)?;
        let context_len = plan.context_len;
        let (extent, too_deep) = self.comparison.extent.within(context_len);
        let left_out = |depth| format!("depth {depth} left out: the model's context ends at {context_len}");
        let mut notes: Vec<String> = too_deep.into_iter().map(left_out).collect();
        notes.iter().for_each(|note| eprintln!("{note}"));
        // The tree may go on to another commit while the rounds run.
        let (kvasir, peer) = (self.kvasir_version()?, self.peer_version(model)?);
        let (date, load_before) = (machine::date()?, machine::load_average());
        let sides = side::all(self.cores, self.comparison.rpc);
        let rounds = self.rounds(model, &extent, &sides)?;
        notes.extend(rounds.notes.iter().cloned());
        let conditions = Conditions {
            date,
            cpu: machine::cpu_name(),
            cores: self.cores,
            load_before,
            load_after: machine::load_average(),
            rounds: self.comparison.runs,
            kvasir,
            peer,
            roofline: Roofline {
                threads: self.cores,
                gb_per_s: rounds.memory.clone(),
                bytes_per_token: plan.bytes_per_token,
            },
            notes,
            commands: rounds.commands_of(&sides),
        };
        Ok(Report {
            model: model.to_owned(),
            cases: extent.cases(),
            sides,
            samples: rounds.samples,
            conditions,
        })
    }

    fn rounds(&self, model: &Path, extent: &Extent, sides: &[Side]) -> Result<Rounds> {
        let mut rounds = Rounds::default();
        for round in 1..=self.comparison.runs {
            rounds.memory.push(self.kvasir.read_memory(self.cores)?);
            for side in side::by_turns(sides) {
                eprintln!("{}: round {round} of {}, {side}", model.display(), self.comparison.runs);
                let measured = self.measure(side, model, extent);
                rounds.take(side, measured.with_context(|| format!("cannot measure {side}"))?);
            }
        }
        Ok(rounds)
    }

    fn measure(&self, side: Side, model: &Path, extent: &Extent) -> Result<Measured> {
        match side {
            Side::Kvasir { workers, threads } => self.kvasir.measure(model, workers, threads, extent),
            Side::Peer { threads } => self.peer.measure(model, threads, extent),
            Side::PeerRpc { servers } => self.peer.measure_rpc(model, servers),
        }
    }

    fn kvasir_version(&self) -> Result<String> {
        let version = self.kvasir.version()?;
        Ok(match machine::commit() {
            Some(commit) => format!("{version}, commit {commit}"),
            None => version,
        })
    }

    fn peer_version(&self, model: &Path) -> Result<String> {
        Ok(format!("{}; {}", self.peer.describe(model)?, programs::origin()))
    }
}

/// What all rounds gave.
#[derive(Default)]
struct Rounds {
    samples: Samples,
    /// How fast all cores read memory before each round, in GB/s.
    memory: Vec<f64>,
    notes: Vec<String>,
    /// Of the last round.
    commands: BTreeMap<Side, Vec<String>>,
}

impl Rounds {
    fn take(&mut self, side: Side, measured: Measured) {
        for (case, tokens_per_s) in measured.figures {
            self.samples.add(case, side, tokens_per_s);
        }
        for note in measured.notes {
            let note = format!("{side}, {note}");
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
        self.commands.insert(side, measured.commands);
    }

    /// In the order of the sides, a line each.
    fn commands_of(&self, sides: &[Side]) -> Vec<(Side, String)> {
        let lines = |&side: &Side| {
            self.commands
                .get(&side)
                .into_iter()
                .flatten()
                .map(move |line| (side, line.clone()))
        };
        sides.iter().flat_map(lines).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::case::DECODE;
    use super::*;

    #[test]
    fn a_model_that_one_side_cannot_read_is_refused_by_name() {
        let folder = std::env::temp_dir();
        let message = format!("{:#}", check_model(&folder).unwrap_err());
        assert!(message.contains(&format!("--model {}", folder.display())), "{message}");
        let other = folder.join(format!("kvasir-not-gguf-{}", std::process::id()));
        fs::write(&other, "safetensors").unwrap();
        let refused = check_model(&other);
        fs::write(&other, "GGUF and more").unwrap();
        let taken = check_model(&other);
        fs::remove_file(&other).unwrap();
        assert!(refused.unwrap_err().to_string().contains("not a GGUF file"));
        taken.unwrap();
    }

    #[test]
    fn rounds_keep_every_sample_and_each_note_once() {
        let side = Side::Peer { threads: 1 };
        let mut rounds = Rounds::default();
        for rate in [1.0, 2.0] {
            rounds.take(
                side,
                Measured {
                    figures: vec![(DECODE, rate)],
                    notes: vec!["slow".to_owned()],
                    commands: vec![format!("bench {rate}")],
                },
            );
        }
        assert_eq!(rounds.samples.of(DECODE, side), [1.0, 2.0]);
        assert_eq!(rounds.notes, ["llama.cpp 1 thread, slow"]);
        let other = Side::Kvasir { workers: 2, threads: 1 };
        rounds.commands.insert(other, vec!["up".to_owned(), "bench".to_owned()]);
        let expected = [(other, "up"), (other, "bench"), (side, "bench 2")].map(|(side, line)| (side, line.to_owned()));
        assert_eq!(rounds.commands_of(&[other, side]), expected);
    }
}
