//! The command line of `cargo xtask bench`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use lexopt::Arg::{Long, Short};
use lexopt::{Parser, ValueExt};

use super::case::Extent;

/// The one peer that there is.
const PEER: &str = "llama.cpp";
const RUNS: u32 = 5;
const RUNS_MAX: u32 = 1000;
const DEPTH: u32 = 4096;
const STREAMS: [u32; 2] = [8, 32];
/// A group computes no more sequences at a time, unless told to.
const STREAMS_MAX: u32 = 64;

#[derive(Debug, PartialEq)]
pub enum BenchOptions {
    Help,
    /// No peer named, nor anything else: says which there are.
    Peers,
    Compare(Comparison),
}

#[derive(Debug, PartialEq)]
pub struct Comparison {
    /// None means the default model.
    pub models: Vec<PathBuf>,
    pub runs: u32,
    pub extent: Extent,
    pub rpc: bool,
    pub json: Option<PathBuf>,
}

impl Default for Comparison {
    fn default() -> Self {
        Self {
            models: Vec::new(),
            runs: RUNS,
            extent: Extent {
                depths: vec![DEPTH],
                streams: STREAMS.to_vec(),
            },
            rpc: false,
            json: None,
        }
    }
}

pub fn parse(parser: &mut Parser) -> Result<BenchOptions> {
    let mut comparison = Comparison::default();
    let mut against = false;
    let mut other_flags = false;
    while let Some(argument) = parser.next()? {
        other_flags |= argument != Long("against");
        match argument {
            Long("against") => {
                check_peer(&text(parser)?)?;
                against = true;
            }
            Long("model") => comparison.models.push(parser.value()?.into()),
            Long("runs") => comparison.runs = number("--runs", &text(parser)?, 1, RUNS_MAX)?,
            Long("depths") => comparison.extent.depths = list("--depths", &text(parser)?, 1, u32::MAX)?,
            Long("streams") => comparison.extent.streams = list("--streams", &text(parser)?, 2, STREAMS_MAX)?,
            Long("rpc") => comparison.rpc = true,
            Long("json") => comparison.json = Some(parser.value()?.into()),
            Long("help") | Short('h') => return Ok(BenchOptions::Help),
            other => return Err(other.unexpected().into()),
        }
    }
    match (against, other_flags) {
        (true, _) => Ok(BenchOptions::Compare(comparison)),
        (false, false) => Ok(BenchOptions::Peers),
        (false, true) => bail!("bench wants a peer: --against {PEER}"),
    }
}

fn text(parser: &mut Parser) -> Result<String> {
    Ok(parser.value()?.string()?)
}

fn check_peer(name: &str) -> Result<()> {
    ensure!(name == PEER, "--against '{name}': the one peer is {PEER}");
    Ok(())
}

/// Numbers with commas between them, or `none`.
fn list(flag: &str, text: &str, min: u32, max: u32) -> Result<Vec<u32>> {
    if text == "none" {
        return Ok(Vec::new());
    }
    let mut numbers = Vec::new();
    for part in text.split(',') {
        let number = number(flag, part, min, max).context("numbers with commas between them, or none")?;
        ensure!(!numbers.contains(&number), "{flag} names {number} twice");
        numbers.push(number);
    }
    Ok(numbers)
}

fn number(flag: &str, text: &str, min: u32, max: u32) -> Result<u32> {
    let number = text.parse().ok().filter(|number| (min..=max).contains(number));
    number.with_context(|| format!("{flag} takes {min} to {max}, not '{text}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<BenchOptions> {
        parse(&mut Parser::from_args(line.split_whitespace()))
    }

    #[test]
    fn a_peer_alone_means_the_defaults() {
        assert_eq!(parsed("").unwrap(), BenchOptions::Peers);
        assert_eq!(parsed("--rpc --help").unwrap(), BenchOptions::Help);
        let expected = BenchOptions::Compare(Comparison::default());
        assert_eq!(parsed("--against llama.cpp").unwrap(), expected);
    }

    #[test]
    fn every_flag_has_its_effect() {
        let line = "--model a.gguf --model b.gguf --runs 3 --depths 4096,8192 --streams none --rpc --json out.json \
                    --against llama.cpp";
        let expected = Comparison {
            models: vec!["a.gguf".into(), "b.gguf".into()],
            runs: 3,
            extent: Extent {
                depths: vec![4096, 8192],
                streams: vec![],
            },
            rpc: true,
            json: Some("out.json".into()),
        };
        assert_eq!(parsed(line).unwrap(), BenchOptions::Compare(expected));
    }

    #[test]
    fn what_cannot_be_meant_is_named_with_what_would_work() {
        for (line, named) in [
            ("--against vllm", "--against 'vllm': the one peer is llama.cpp"),
            ("--against", "--against"),
            ("--runs 3", "--against llama.cpp"),
            ("--runs", "--runs"),
            ("--runs 0", "--runs takes 1 to 1000, not '0'"),
            ("--runs many", "not 'many'"),
            ("--depths 0", "--depths takes 1 to"),
            ("--depths 4096,", "not ''"),
            ("--depths 4096,4096", "--depths names 4096 twice"),
            ("--depths -1", "not '-1'"),
            ("--streams 65", "--streams takes 2 to 64, not '65'"),
            ("--streams 1", "--streams takes 2 to 64, not '1'"),
            ("--streams 8;32", "or none"),
            ("--rpc=yes", "--rpc"),
            ("--model", "--model"),
            ("--json", "--json"),
            ("--speed", "--speed"),
            ("llama.cpp", "llama.cpp"),
        ] {
            let message = format!("{:#}", parsed(line).unwrap_err());
            assert!(
                message.contains(named) && message.lines().count() == 1,
                "{line}: {message}"
            );
        }
    }
}
