//! The peer's side: llama.cpp's own measuring programs on the same file.
//!
//! What they leave to their defaults stays there; the report names it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::case::{Case, DECODE, DECODE_TOKENS, DEEP_TOKENS, Extent, PREFILL_TOKENS, STREAM_PROMPT_TOKENS};
use super::measured::{Measured, figure};
use super::programs::Programs;
use super::rpc_servers::RpcServers;
use crate::process;

const LIMIT: Duration = Duration::from_secs(3600);
/// Its contexts are multiples of this, for each sequence.
const CONTEXT_STEP: u32 = 256;

#[derive(Debug)]
pub struct LlamaCpp {
    programs: Programs,
}

impl LlamaCpp {
    pub fn ensure() -> Result<Self> {
        Ok(Self {
            programs: Programs::ensure()?,
        })
    }

    /// One sample of everything, with so many threads.
    pub fn measure(&self, model: &Path, threads: usize, extent: &Extent) -> Result<Measured> {
        let mut measured = Measured::default();
        let mut rows = run(&mut self.shallow(model, threads), &mut measured)?;
        if !extent.depths.is_empty() {
            rows.extend(run(&mut self.deep(model, threads, &extent.depths), &mut measured)?);
        }
        for &streams in &extent.streams {
            rows.extend(run(&mut self.together(model, threads, streams), &mut measured)?);
        }
        let figures = extent
            .cases()
            .into_iter()
            .map(|case| figure(case, &rows, |row| rate(row, case)));
        measured.figures = figures.collect::<Result<_>>()?;
        Ok(measured)
    }

    /// One sample of decode, computed by servers of one thread that each hold a part of the layers.
    pub fn measure_rpc(&self, model: &Path, servers: usize) -> Result<Measured> {
        let mut measured = Measured::default();
        let servers = RpcServers::start(&self.programs, servers)?;
        measured.commands.push(servers.line());
        let mut bench = self.bench(model, 1);
        bench
            .args(["-p", "0", "-n", &DECODE_TOKENS.to_string()])
            .args(["--rpc", &servers.addresses()]);
        let rows = run(&mut bench, &mut measured)?;
        measured.figures.push(figure(DECODE, &rows, |row| rate(row, DECODE))?);
        Ok(measured)
    }

    /// Version and options, by its own word.
    pub fn describe(&self, model: &Path) -> Result<String> {
        let mut bench = self.bench(model, 1);
        let rows = run(bench.args(["-p", "1", "-n", "0"]), &mut Measured::default())?;
        let row = rows.first().context("llama-bench printed nothing")?;
        description(row).context("llama-bench does not tell its options")
    }

    fn shallow(&self, model: &Path, threads: usize) -> Command {
        let (prefill, decode) = (PREFILL_TOKENS.to_string(), DECODE_TOKENS.to_string());
        let mut bench = self.bench(model, threads);
        bench.args(["-p", &prefill, "-n", &decode]);
        bench
    }

    fn deep(&self, model: &Path, threads: usize, depths: &[u32]) -> Command {
        let depths: Vec<_> = depths.iter().map(u32::to_string).collect();
        let mut bench = self.bench(model, threads);
        bench.args(["-p", "0", "-n", &DEEP_TOKENS.to_string(), "-d", &depths.join(",")]);
        bench
    }

    fn bench(&self, model: &Path, threads: usize) -> Command {
        let mut bench = self.programs.bench();
        bench
            .arg("-m")
            .arg(model)
            .args(["-t", &threads.to_string(), "-r", "1", "-o", "jsonl"]);
        bench
    }

    fn together(&self, model: &Path, threads: usize, streams: u32) -> Command {
        let context_len = (STREAM_PROMPT_TOKENS + DECODE_TOKENS).next_multiple_of(CONTEXT_STEP) * streams;
        let threads = threads.to_string();
        let mut bench = self.programs.batched_bench();
        bench
            .arg("-m")
            .arg(model)
            .args(["-t", &threads, "-tb", &threads, "-c", &context_len.to_string()])
            .args(["-npp", &STREAM_PROMPT_TOKENS.to_string()])
            .args(["-ntg", &DECODE_TOKENS.to_string(), "-npl", &streams.to_string()])
            .args(["--output-format", "jsonl"]);
        bench
    }
}

/// Notes the command, and returns the objects that it prints.
fn run(command: &mut Command, measured: &mut Measured) -> Result<Vec<Value>> {
    let printed = process::output_within(command, LIMIT)?;
    let line = process::line(command);
    let rows = objects(&printed).with_context(|| format!("{line} printed something else than JSON lines"));
    measured.commands.push(line);
    rows
}

/// One in each line that begins with a brace; the programs print empty lines, too.
fn objects(printed: &str) -> Result<Vec<Value>> {
    let lines = printed.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// The rate in a row of either program, if it is the case's.
fn rate(row: &Value, case: Case) -> Option<f64> {
    let is = |prompt: u32, answer: u32, depth: u32| {
        row["n_prompt"] == prompt && row["n_gen"] == answer && row["n_depth"] == depth
    };
    let own = match case {
        Case::Prefill { tokens } => is(tokens, 0, 0),
        Case::Decode { depth, tokens } => is(0, tokens, depth),
        Case::Streams { streams, tokens } => {
            let own = row["pl"] == streams && row["tg"] == tokens;
            return row["speed_tg"].as_f64().filter(|_| own);
        }
    };
    row["samples_ts"][0].as_f64().filter(|_| own)
}

fn description(row: &Value) -> Option<String> {
    let flash_attention = match row["flash_attn"].as_i64()? {
        0 => "off",
        1 => "on",
        _ => "auto",
    };
    Some(format!(
        "llama.cpp {} ({}); flash attention {flash_attention}, K {}, V {}, batch {}, micro-batch {}",
        row["build_commit"].as_str()?,
        row["backends"].as_str()?,
        row["type_k"].as_str()?,
        row["type_v"].as_str()?,
        row["n_batch"],
        row["n_ubatch"],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = r#"
{"build_commit": "0c1e570", "backends": "CPU", "n_batch": 2048, "n_ubatch": 512, "type_k": "f16", "type_v": "f16", "flash_attn": -1, "n_prompt": 512, "n_gen": 0, "n_depth": 0, "samples_ns": [ 1000 ],"samples_ts": [ 300.5 ]}
{"n_prompt": 0, "n_gen": 128, "n_depth": 0, "samples_ts": [ 115.25 ]}
{"n_prompt": 0, "n_gen": 64, "n_depth": 4096, "samples_ts": [ 44 ]}

{"n_threads": 2, "pp": 16, "tg": 128, "pl": 8, "speed_pp": 76.2, "speed_tg": 181.5, "speed": 23.4}
"#;

    #[test]
    fn each_case_finds_its_own_row() {
        let extent = Extent {
            depths: vec![4096],
            streams: vec![8],
        };
        let rows = objects(PRINTED).unwrap();
        let figures = extent
            .cases()
            .into_iter()
            .map(|case| figure(case, &rows, |row| rate(row, case)));
        let rates: Vec<f64> = figures.map(|figure| figure.unwrap().1).collect();
        assert_eq!(rates, [300.5, 115.25, 44.0, 181.5]);
        let deeper = Case::Decode {
            depth: 8192,
            tokens: 64,
        };
        let message = figure(deeper, &rows, |row| rate(row, deeper)).unwrap_err().to_string();
        assert_eq!(message, "no figure of decode 64 at 8192 was printed");
    }

    #[test]
    fn options_are_told_as_the_program_tells_them() {
        let rows = objects(PRINTED).unwrap();
        let expected = "llama.cpp 0c1e570 (CPU); flash attention auto, K f16, V f16, batch 2048, micro-batch 512";
        assert_eq!(description(&rows[0]).unwrap(), expected);
        assert_eq!(description(&rows[1]), None);
    }

    #[test]
    fn torn_lines_are_errors() {
        assert!(objects("{\"n_prompt\": 512").is_err());
        assert_eq!(objects("no figures\n").unwrap(), Vec::<Value>::new());
    }
}
