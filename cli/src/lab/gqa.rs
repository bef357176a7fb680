//! `kvasir lab gqa`: transformer blocks of the same width with fewer and fewer KV heads, and what that does to the size of
//! the cache and to the time of a token.
//!
//! Everything that is measured is the engine's own: a checkpoint, ranks with their cells and collectives, blocks from a
//! block pool. The bytes of the cache are those that the ranks find in their memory.

mod experiment;
mod measured;
mod plots;
mod point;
mod report;
mod tables;

use std::{num::NonZero, path::PathBuf, thread};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, value_parser};
use kvasir_kv::{HeadLayout, KvDtype};
use kvasir_model::WeightMode;

use self::{experiment::Experiment, point::Feed};
use super::{ascending, results_folder::ResultsFolder};
use crate::arithmetic_options::ArithmeticOptions;

/// The first context that is looked at, unless others are named.
const POINT_MIN: u32 = 256;
/// Llama's FFN is 8/3 of the hidden size, in whole multiples of this.
const FFN_MULTIPLE: u32 = 256;

/// Measures cache size and time per token of one transformer block, for several group sizes G
///
/// G query heads share a KV head: G = 1 is multi-head attention, and all query heads with one KV head multi-query
/// attention. Tokens are fed one at a time; the lines that come out are cache size and time per token against the number
/// of tokens, one for each G.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  kvasir lab gqa --out plots\n  kvasir lab gqa --groups 1,4 --context 32768 \
                        --kv-dtype q8_0 --ranks 2 --json"
)]
pub struct GqaArgs {
    /// Width of the residual stream
    #[arg(long, default_value_t = 4096, value_name = "N", value_parser = value_parser!(u32).range(32..=1 << 16))]
    hidden: u32,
    /// Query heads
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = value_parser!(u32).range(1..=1024))]
    heads: u32,
    /// Dimensions of a head [default: hidden / heads]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(16..=1024))]
    head_dim: Option<u32>,
    /// Group sizes G: query heads for each KV head [default: all that divide the query heads]
    #[arg(long, value_name = "G,…", value_delimiter = ',', value_parser = value_parser!(u32).range(1..))]
    groups: Vec<u32>,
    /// Width of the FFN [default: 8/3 of hidden, as Llama has it]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(32..=1 << 18))]
    ffn: Option<u32>,
    /// Transformer blocks
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = value_parser!(u32).range(1..=256))]
    layers: u32,
    /// Tokens in the cache at most
    #[arg(long, default_value_t = 8192, value_name = "TOKENS", value_parser = value_parser!(u32).range(16..=1 << 17))]
    context: u32,
    /// Tokens in the cache where it is measured [default: 256, 512, 1024 and so on]
    #[arg(long, value_name = "TOKENS,…", value_delimiter = ',', value_parser = value_parser!(u32).range(1..=1 << 17))]
    points: Vec<u32>,
    /// Sequences that are decoded at once
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = value_parser!(u32).range(1..=1024))]
    batch: u32,
    /// Element type of the KV cache: f16, f32 or q8_0
    #[arg(long, default_value_t = KvDtype::F16, value_name = "TYPE")]
    kv_dtype: KvDtype,
    /// Weights in memory: q8_0, f32, or `file` for bf16
    #[arg(long, default_value_t = WeightMode::Q8_0, value_name = "TYPE")]
    weights_dtype: WeightMode,
    #[command(flatten)]
    arithmetic: ArithmeticOptions,
    /// Token positions per KV block: 16, 32, 64, 128 or 256
    #[arg(long, default_value_t = 64, value_name = "TOKENS")]
    block_size: u32,
    /// Ranks that share the heads, each a thread group of this process
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = value_parser!(u32).range(1..=64))]
    ranks: u32,
    /// Threads of each rank [default: the machine's cores shared among the ranks]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=256))]
    threads: Option<u32>,
    /// Tokens that are timed at each point, each time
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = value_parser!(u32).range(1..=4096))]
    tokens: u32,
    /// How often all is measured, group sizes in turn
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Feed every token of the context, instead of filling the cells between the points with random K and V
    #[arg(long)]
    every_token: bool,
    /// Write gqa.json, gqa.csv, gqa.md and the plots as SVG and PNG there
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &GqaArgs) -> Result<()> {
    let experiment = args.experiment()?;
    let out = args.out.as_deref().map(ResultsFolder::make).transpose()?;
    let report = experiment.run()?;
    if let Some(folder) = &out {
        folder.write("gqa.json", &(serde_json::to_string_pretty(&report)? + "\n"))?;
        folder.write("gqa.csv", &report.csv())?;
        folder.write("gqa.md", &tables::text(&report))?;
        plots::write(&report, folder.path())?;
    }
    match args.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => report.print(),
    }
    Ok(())
}

impl GqaArgs {
    /// Errors if a value does not fit another one, with what would.
    fn experiment(&self) -> Result<Experiment> {
        let arithmetic = self.arithmetic.resolve()?;
        arithmetic.can_compute_here()?;
        let head_dim = match self.head_dim {
            Some(head_dim) => head_dim,
            None if self.hidden.is_multiple_of(self.heads) => self.hidden / self.heads,
            None => bail!(
                "--hidden {} does not divide among --heads {}; name --head-dim, or heads that divide it",
                self.hidden,
                self.heads
            ),
        };
        let layout = |group: &u32| {
            ensure!(
                self.heads.is_multiple_of(*group),
                "--groups {group}: {} query heads do not make whole groups of {group}; of this many heads, {} do",
                self.heads,
                listed(&divisors(self.heads))
            );
            HeadLayout::new(self.heads, self.heads / group, head_dim)
                .with_context(|| format!("--heads {} --head-dim {head_dim} --groups {group}", self.heads))
        };
        let groups = match self.groups.as_slice() {
            [] => divisors(self.heads),
            named => ascending(named),
        };
        let threads = self.threads.unwrap_or_else(|| {
            let cores = thread::available_parallelism().map_or(1, NonZero::get) as u32;
            (cores / self.ranks).max(1)
        });
        Ok(Experiment {
            hidden_size: self.hidden,
            ffn_size: self
                .ffn
                .unwrap_or((self.hidden * 8).div_ceil(3).next_multiple_of(FFN_MULTIPLE)),
            layouts: groups.iter().map(layout).collect::<Result<_>>()?,
            num_layers: self.layers,
            points: self.points()?,
            feed: Feed {
                batch: self.batch,
                tokens: self.tokens,
                every_token: self.every_token,
            },
            kv_dtype: self.kv_dtype,
            weight_mode: self.weights_dtype,
            arithmetic,
            block_size: self.block_size,
            ranks: self.ranks,
            threads,
            rounds: self.rounds,
        })
    }

    fn points(&self) -> Result<Vec<u32>> {
        let mut points = self.points.clone();
        if points.is_empty() {
            points = std::iter::successors(Some(POINT_MIN), |point| point.checked_mul(2))
                .take_while(|point| *point < self.context)
                .collect();
            points.push(self.context);
        }
        if let Some(beyond) = points.iter().find(|point| **point > self.context) {
            bail!(
                "--points {beyond} is beyond --context {}; name a longer context",
                self.context
            );
        }
        Ok(ascending(&points))
    }
}

fn divisors(count: u32) -> Vec<u32> {
    (1..=count).filter(|divisor| count.is_multiple_of(*divisor)).collect()
}

fn listed(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: GqaArgs,
    }

    fn experiment(line: &str) -> Result<Experiment> {
        let words = std::iter::once("gqa").chain(line.split_whitespace());
        Line::try_parse_from(words)?.args.experiment()
    }

    #[test]
    fn the_default_is_the_block_of_4096_with_32_heads() {
        let experiment = experiment("").unwrap();
        assert_eq!((experiment.hidden_size, experiment.ffn_size), (4096, 11_008));
        let kv_heads: Vec<u32> = experiment.layouts.iter().map(HeadLayout::num_kv_heads).collect();
        assert_eq!(kv_heads, [32, 16, 8, 4, 2, 1]);
        assert_eq!(experiment.points, [256, 512, 1024, 2048, 4096, 8192]);
    }

    #[test]
    fn what_does_not_fit_is_named_with_what_would() {
        for (line, named) in [
            ("--groups 3", "1, 2, 4, 8, 16, 32 do"),
            ("--hidden 100", "--hidden 100"),
            ("--head-dim 24", "24"),
            ("--points 9000", "--points 9000"),
            ("--device gpu", "cuda:N"),
        ] {
            let message = format!("{:#}", experiment(line).err().unwrap());
            assert!(message.contains(named), "{line}: {message}");
        }
    }
}
