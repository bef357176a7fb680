//! The one group that `kvasir bench steps` measures, with a coordinator and without: who holds what, and how many blocks.

use anyhow::{Context, Result, ensure};
use kvasir_kv::{CellLayout, RankCapacity, RankShare, ShardPlan, Transport};
use kvasir_model::Checkpoint;
use kvasir_runtime::ByteSize;

use super::decode_plans::DecodePlans;
use crate::{engine_options::EngineOptions, worker::WorkerSize};

/// A coordinator's default, unless more streams want a token each.
const STEP_TOKENS_MIN: u32 = 512;

#[derive(Clone, Debug)]
pub struct GroupShape {
    /// In rank order.
    pub shares: Vec<RankShare>,
    /// As many as the largest run takes.
    pub num_blocks: u32,
    pub block_size: u32,
    pub step_tokens_max: u32,
    pub streams_max: u32,
    /// What the ranks add up in one reduce of a step with one token: the hidden state, and whether it is poisoned.
    pub sums_len: usize,
}

impl GroupShape {
    /// As a coordinator would plan it. Errors if the model or the cells do not hold so much.
    pub fn new(engine: &EngineOptions, size: &WorkerSize, ranks: u32, streams_max: u32, tokens: u32) -> Result<Self> {
        let checkpoint = Checkpoint::open(&engine.model);
        let checkpoint = checkpoint.with_context(|| format!("cannot open {}", engine.model.display()))?;
        let spec = checkpoint.spec();
        ensure!(
            tokens < spec.context_len,
            "--tokens {tokens}: with one prompt token they exceed the model's context of {}; at most {} would fit",
            spec.context_len,
            spec.context_len - 1
        );
        let cell = CellLayout::new(spec.num_layers, spec.head_dim, engine.block_size, engine.kv_dtype)?;
        let layout = checkpoint.unit_layout(engine.weights_dtype)?;
        let capacities = vec![RankCapacity::default(); ranks as usize];
        let shape = Self {
            shares: ShardPlan::balance(&layout, &capacities, 0)?.shares().to_vec(),
            num_blocks: DecodePlans::num_blocks(streams_max, tokens, engine.block_size),
            block_size: engine.block_size,
            step_tokens_max: streams_max.max(STEP_TOKENS_MIN),
            streams_max,
            sums_len: layout.shape().hidden_size as usize + 1,
        };
        shape.check_memory(&cell, size)?;
        Ok(shape)
    }

    pub fn transport(&self) -> Transport {
        match self.shares.len() {
            1 => Transport::Solo,
            _ => Transport::SharedMemory,
        }
    }

    fn check_memory(&self, cell: &CellLayout, size: &WorkerSize) -> Result<()> {
        let heads = self.shares.iter().map(RankShare::num_kv_heads).max().unwrap_or(0);
        let needed = u64::from(heads) * u64::from(self.num_blocks) * cell.cell_bytes() as u64;
        ensure!(
            needed <= size.kv_memory.0,
            "--kv-memory {}: {} streams at once need {} on a rank; that much, or fewer --streams, would work",
            size.kv_memory,
            self.streams_max,
            ByteSize(needed)
        );
        Ok(())
    }
}
