//! What `lab gqa` found: for people, as JSON, and as CSV.

use anyhow::{Context, Result};
use kvasir_kv::{CellLayout, HeadLayout};
use kvasir_runtime::ByteSize;
use serde::Serialize;

use super::{
    experiment::Experiment,
    measured::{Measured, Times},
};
use crate::{
    bench::spread::Spread,
    lab::table::{Table, or_dash},
};

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub kvasir_version: &'static str,
    pub hidden_size: u32,
    pub ffn_size: u32,
    pub q_heads: u32,
    pub head_dim: u32,
    pub layers: u32,
    pub batch: u32,
    pub kv_dtype: String,
    pub weights_dtype: String,
    pub backend: &'static str,
    pub block_size: u32,
    pub ranks: u32,
    /// Of each rank.
    pub threads: u32,
    /// Timed at each point in each round.
    pub tokens: u32,
    pub rounds: u32,
    pub every_token: bool,
    /// What as many threads read from memory at most, measured between the rounds. `None` on a GPU.
    pub memory_gb_per_s: Option<Spread>,
    /// By group size, then by context.
    pub rows: Vec<Row>,
}

/// One group size with so many tokens in the cache.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// G: query heads for each KV head.
    pub group_size: u32,
    pub kv_heads: u32,
    /// Tokens of each sequence in the cache.
    pub context: u32,
    /// What the ranks' cells of the blocks that are held take. `None` where a backend keeps no cells.
    pub cache_bytes: Option<u64>,
    /// `batch * layers * 2 * kv_heads * context * row_bytes(head_dim)`
    pub formula_bytes: u64,
    /// Positions of the last blocks that no token has filled.
    pub rounding_bytes: u64,
    /// A step of all blocks: one token of each sequence.
    pub step: Option<Times>,
    /// Of it, K and V written and attended to.
    pub attention: Option<Times>,
    /// The same arithmetic over the cells of one block, which caches hold.
    pub attention_cached: Option<Times>,
}

impl Row {
    pub fn new(heads: &HeadLayout, cell: &CellLayout, context: u32, batch: u32, measured: &Measured) -> Self {
        let of_tokens = |tokens: u32| {
            let bytes = u64::from(tokens) * cell.token_bytes() as u64;
            u64::from(batch) * u64::from(heads.num_kv_heads()) * bytes
        };
        let rounded = cell.blocks_for(context) * cell.block_size();
        Self {
            group_size: heads.group_size(),
            kv_heads: heads.num_kv_heads(),
            context,
            cache_bytes: measured.held_bytes,
            formula_bytes: of_tokens(context),
            rounding_bytes: of_tokens(rounded - context),
            step: Times::of(&measured.step_ns),
            attention: Times::of(&measured.attend_ns),
            attention_cached: Times::of(&measured.cached_attend_ns),
        }
    }
}

impl Report {
    /// rates: of the memory, 10^9 bytes a second.
    pub fn new(experiment: &Experiment, rows: Vec<Row>, rates: &[f64]) -> Result<Self> {
        let layout = experiment.layouts.first().context("no group size was given")?;
        Ok(Self {
            kvasir_version: env!("CARGO_PKG_VERSION"),
            hidden_size: experiment.hidden_size,
            ffn_size: experiment.ffn_size,
            q_heads: layout.num_q_heads(),
            head_dim: layout.head_dim(),
            layers: experiment.num_layers,
            batch: experiment.feed.batch,
            kv_dtype: experiment.kv_dtype.to_string(),
            weights_dtype: experiment.weight_mode.to_string(),
            backend: experiment.arithmetic.backend.name(),
            block_size: experiment.block_size,
            ranks: experiment.ranks,
            threads: experiment.threads,
            tokens: experiment.feed.tokens,
            rounds: experiment.rounds,
            every_token: experiment.feed.every_token,
            memory_gb_per_s: Spread::of(rates),
            rows,
        })
    }

    /// Rows of one group size each, in order.
    pub fn groups(&self) -> impl Iterator<Item = &[Row]> {
        self.rows.chunk_by(|one, other| one.group_size == other.group_size)
    }

    /// Of the longest context.
    pub fn longest(&self) -> impl Iterator<Item = &Row> + Clone {
        let context = self.rows.iter().map(|row| row.context).max();
        self.rows.iter().filter(move |row| Some(row.context) == context)
    }

    pub fn print(&self) {
        let heads = [
            "G",
            "KV heads",
            "tokens",
            "cache",
            "of it, empty",
            "token, us",
            "attention, us",
            "from caches, us",
        ];
        let mut table = Table::new(self.title(), heads.map(str::to_owned));
        let us = |times: Option<Times>| or_dash(times.map(|times| format!("{:.1}", times.median_us)));
        for row in &self.rows {
            table.row([
                row.group_size.to_string(),
                row.kv_heads.to_string(),
                row.context.to_string(),
                or_dash(row.cache_bytes.map(ByteSize)),
                ByteSize(row.rounding_bytes).to_string(),
                us(row.step),
                us(row.attention),
                us(row.attention_cached),
            ]);
        }
        print!("{}", table.text());
        if let Some(Spread { median, min, max, .. }) = &self.memory_gb_per_s {
            println!("memory is read at {median:.1} GB/s ({min:.1}-{max:.1})");
        }
    }

    pub fn title(&self) -> String {
        let blocks = match self.layers {
            1 => "one block".to_owned(),
            layers => format!("{layers} blocks"),
        };
        let by = match (self.ranks, self.threads) {
            (1, 1) => "one thread".to_owned(),
            (1, threads) => format!("{threads} threads"),
            (ranks, threads) => format!("{ranks} ranks of {threads}"),
        };
        let batch = match self.batch {
            1 => String::new(),
            batch => format!(", {batch} sequences"),
        };
        format!(
            "{blocks}, hidden size {}, {} query heads of {}, {} cache, {} weights, {}, {by}{batch}",
            self.hidden_size, self.q_heads, self.head_dim, self.kv_dtype, self.weights_dtype, self.backend
        )
    }

    pub fn csv(&self) -> String {
        let mut csv =
            "group_size,kv_heads,context,cache_bytes,formula_bytes,rounding_bytes,step_p10_us,step_median_us,\
                       step_p90_us,attention_p10_us,attention_median_us,attention_p90_us,attention_cached_median_us\n"
                .to_owned();
        for row in &self.rows {
            let times = |times: Option<Times>| match times {
                Some(times) => [times.p10_us, times.median_us, times.p90_us].map(|us| us.to_string()),
                None => Default::default(),
            };
            let cells = [
                vec![
                    row.group_size.to_string(),
                    row.kv_heads.to_string(),
                    row.context.to_string(),
                ],
                vec![row.cache_bytes.map(|bytes| bytes.to_string()).unwrap_or_default()],
                vec![row.formula_bytes.to_string(), row.rounding_bytes.to_string()],
                times(row.step).to_vec(),
                times(row.attention).to_vec(),
                vec![times(row.attention_cached)[1].clone()],
            ];
            csv.push_str(&cells.concat().join(","));
            csv.push('\n');
        }
        csv
    }
}
