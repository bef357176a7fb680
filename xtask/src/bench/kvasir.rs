//! Kvasir's side: a cluster of real processes for each round, measured through its gRPC door by `kvasir bench speed`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::case::{Case, DECODE_TOKENS, Extent, PREFILL_TOKENS};
use super::measured::{Measured, figure};
use crate::cluster::{self, Cluster};
use crate::{paths, process};

const PLAN_LIMIT: Duration = Duration::from_secs(600);
const SPEED_LIMIT: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub struct Kvasir {
    binary: PathBuf,
}

impl Kvasir {
    pub fn build() -> Result<Self> {
        process::run(paths::cargo().args(["build", "--package", "kvasir"]))?;
        Ok(Self {
            binary: paths::kvasir_binary()?,
        })
    }

    pub fn version(&self) -> Result<String> {
        let printed = process::output_within(Command::new(&self.binary).arg("--version"), PLAN_LIMIT)?;
        Ok(printed.trim().to_owned())
    }

    /// What a model asks of whoever serves it. Errors with the reason if Kvasir cannot.
    pub fn plan(&self, model: &Path) -> Result<ModelPlan> {
        let mut plan = Command::new(&self.binary);
        plan.args(["plan", "--json", "--workers", "1", "--model"]).arg(model);
        ModelPlan::parse(&process::output_within(&mut plan, PLAN_LIMIT)?)
    }

    /// How fast so many threads read this machine's memory now, in GB/s.
    pub fn read_memory(&self, threads: usize) -> Result<f64> {
        let mut memory = Command::new(&self.binary);
        memory.args(["bench", "memory", "--json", "--threads", &threads.to_string()]);
        let report: Value = serde_json::from_str(&process::output_within(&mut memory, SPEED_LIMIT)?)?;
        let rate = report["gb_per_s"]["median"].as_f64();
        rate.context("kvasir bench memory tells no rate")
    }

    /// Starts a cluster, measures it, and ends it.
    pub fn measure(&self, model: &Path, workers: usize, threads: usize, extent: &Extent) -> Result<Measured> {
        let mut up = cluster::up(&self.binary, model, workers, threads);
        let cluster = Cluster::start(&mut up)?;
        let mut speed = self.speed(&cluster.endpoint, extent);
        let printed = process::output_within(&mut speed, SPEED_LIMIT)?;
        cluster.stop()?;
        let mut measured = parse(&printed, &extent.cases())?;
        measured.commands = vec![process::line(&up), process::line(&speed)];
        Ok(measured)
    }

    fn speed(&self, endpoint: &str, extent: &Extent) -> Command {
        let mut speed = Command::new(&self.binary);
        speed
            .args(["bench", "speed", "--endpoint", endpoint])
            .args(["--prefill", &PREFILL_TOKENS.to_string()])
            .args(["--decode", &DECODE_TOKENS.to_string()])
            .args(["--depths", &joined(0, &extent.depths)])
            .args(["--streams", &joined(1, &extent.streams)])
            .args(["--runs", "1", "--json"]);
        speed
    }
}

/// What `kvasir plan` tells of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelPlan {
    /// Tokens.
    pub context_len: u32,
    /// Of weights, that one worker reads for each token.
    pub bytes_per_token: u64,
}

impl ModelPlan {
    fn parse(printed: &str) -> Result<Self> {
        let plan: Value = serde_json::from_str(printed).context("kvasir plan printed no JSON")?;
        let context_len = plan["fit"]["context"].as_u64();
        let context_len = u32::try_from(context_len.context("kvasir plan tells no context")?)?;
        let bytes_per_token = plan["ranks"][0]["bytes_per_token"].as_u64();
        Ok(Self {
            context_len,
            bytes_per_token: bytes_per_token.context("kvasir plan tells no bytes per token")?,
        })
    }
}

fn joined(first: u32, more: &[u32]) -> String {
    let numbers = [first].into_iter().chain(more.iter().copied());
    numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(",")
}

/// The figures of the object that `kvasir bench speed --json` prints.
fn parse(printed: &str, cases: &[Case]) -> Result<Measured> {
    let report: Value = serde_json::from_str(printed).context("kvasir bench speed printed no JSON")?;
    let rows = report["rows"]
        .as_array()
        .context("kvasir bench speed printed no rows")?;
    let rate = |case: Case| {
        figure(case, rows, |row| {
            row["tokens_per_s"]["median"].as_f64().filter(|_| is(row, case))
        })
    };
    let figures = cases.iter().map(|&case| rate(case)).collect::<Result<_>>()?;
    let of_case = |row: &Value| cases.iter().find(|&&case| is(row, case)).copied();
    let notes = rows.iter().filter_map(|row| waiting(of_case(row)?, row)).collect();
    Ok(Measured {
        figures,
        notes,
        commands: Vec::new(),
    })
}

fn is(row: &Value, case: Case) -> bool {
    row["test"] == case.test() && row["depth"] == case.depth() && row["streams"] == case.streams()
}

/// A rate of fewer streams than were asked for is not what it is called.
fn waiting(case: Case, row: &Value) -> Option<String> {
    let waited = row["waited"].as_u64().filter(|&waited| waited > 0)?;
    Some(format!("{case}: {waited} streams had to wait for others"))
}

#[cfg(test)]
mod tests {
    use super::super::case::DECODE;
    use super::*;

    const PRINTED: &str = r#"{"kvasir_version": "0.1.0", "model": "SmolLM2", "rows": [
        {"test": "prefill", "tokens": 512, "depth": 0, "streams": 1,
         "tokens_per_s": {"median": 1234.5, "min": 1234.5, "max": 1234.5, "samples": [1234.5]}, "first_token_ms": {}},
        {"test": "decode", "tokens": 128, "depth": 0, "streams": 1, "tokens_per_s": {"median": 300.25, "samples": [300.25]}},
        {"test": "decode", "tokens": 64, "depth": 4096, "streams": 1, "tokens_per_s": {"median": 150, "samples": [150]}},
        {"test": "decode", "tokens": 128, "depth": 0, "streams": 8, "tokens_per_s": {"median": 900.0}, "waited": 3}]}"#;

    fn extent(streams: &[u32]) -> Extent {
        Extent {
            depths: vec![4096],
            streams: streams.to_vec(),
        }
    }

    #[test]
    fn each_case_finds_its_own_row() {
        let cases = extent(&[8]).cases();
        let measured = parse(PRINTED, &cases).unwrap();
        let rates: Vec<f64> = measured.figures.iter().map(|(_, rate)| *rate).collect();
        assert_eq!(rates, [1234.5, 300.25, 150.0, 900.0]);
        assert_eq!(measured.figures[1].0, DECODE);
        assert_eq!(
            measured.notes,
            ["decode 128, 8 streams: 3 streams had to wait for others"]
        );
    }

    #[test]
    fn a_plan_tells_the_context_and_what_a_token_reads() {
        let printed = r#"{"ranks": [{"rank": 0, "bytes_per_token": 143025408}], "fit": {"context": 8192}}"#;
        let expected = ModelPlan {
            context_len: 8192,
            bytes_per_token: 143_025_408,
        };
        assert_eq!(ModelPlan::parse(printed).unwrap(), expected);
        let without = printed.replace("bytes_per_token", "bytes");
        assert!(ModelPlan::parse(&without).is_err());
    }

    #[test]
    fn a_missing_row_or_rate_is_named() {
        let message = parse(PRINTED, &extent(&[32]).cases()).unwrap_err().to_string();
        assert_eq!(message, "no figure of decode 128, 32 streams was printed");
        let zero = PRINTED.replace("1234.5", "0.0");
        let message = parse(&zero, &extent(&[8]).cases()).unwrap_err().to_string();
        assert_eq!(message, "no figure of prefill 512 was printed");
        assert!(parse("ready", &[]).unwrap_err().to_string().contains("no JSON"));
        assert!(parse("{}", &[]).unwrap_err().to_string().contains("no rows"));
    }

    #[test]
    fn the_measuring_command_asks_for_every_case() {
        let kvasir = Kvasir {
            binary: "kvasir".into(),
        };
        let line = process::line(&kvasir.speed("http://127.0.0.1:1", &extent(&[8, 32])));
        let expected = "kvasir bench speed --endpoint http://127.0.0.1:1 --prefill 512 --decode 128 --depths 0,4096 \
                        --streams 1,8,32 --runs 1 --json";
        assert_eq!(line, expected);
    }
}
