//! How long ranks take for a step, without coordinator, client and processes: threads of this process, each with its share.
//!
//! `cargo run -p kvasir-worker --example forward -- MODEL [RANKS] [THREADS] [CASE]` prints milliseconds a step for one token after
//! some contexts, for several streams, and for prompts: the tenth percentile, which other work on the machine hardly
//! touches, and the median.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kvasir_kv::{BlockId, CellLayout, KvDtype, KvHead, RankCapacity, Sampling, SequenceId, ShardPlan, TokenId};
use kvasir_model::{BackendKind, Checkpoint, WeightMode};
use kvasir_worker::{
    BackendConfig,
    backend::BackendError,
    open_backend,
    rank_books::WorkInput,
    rank_threads::{GroupPlan, RankThread, RankThreads},
};

type AnyResult<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const BLOCK_SIZE: u32 = 64;
const NUM_BLOCKS: u32 = 160;
/// Twice, it is 0.065 as f16.
const SOME_BYTE: u8 = 0x2c;

/// Streams, tokens of each in a step, context before them, and how many steps.
type Case = (u32, u32, u32, usize);

const CASES: [Case; 7] = [
    (1, 1, 64, 600),
    (1, 1, 1000, 300),
    (1, 1, 4096, 200),
    (8, 1, 64, 100),
    (16, 1, 64, 70),
    (32, 1, 64, 50),
    (1, 512, 0, 20),
];

fn main() -> AnyResult<()> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().ok_or("the first argument is a model file")?;
    let mut number = || arguments.next().map(|argument| argument.parse::<usize>()).transpose();
    let (ranks, threads) = (number()?.unwrap_or(1), number()?.unwrap_or(1));
    let cases = match number()? {
        Some(case) => CASES
            .get(case..=case)
            .ok_or("the last argument is the number of a case, from 0")?,
        None => &CASES,
    };
    let checkpoint = Arc::new(Checkpoint::open(model)?);
    let mut ranks = start(&checkpoint, ranks, threads)?;
    let cases = cases.to_vec();
    let measured = cases.clone();
    let mut took = ranks.run(move |rank| {
        let of_case = |(streams, tokens, context, steps): &Case| {
            let work: Vec<WorkInput> = (0..*streams).map(|stream| work(stream, *tokens, *context)).collect();
            measure(rank, &work, *steps)
        };
        measured.iter().map(of_case).collect::<Result<Vec<_>, _>>()
    })?;
    for ((streams, tokens, context, _), mut took) in cases.iter().zip(took.swap_remove(0)) {
        took.sort_unstable();
        let ms = |percent: usize| took[took.len() * percent / 100].as_secs_f64() * 1e3;
        println!(
            "{streams:2} streams, {tokens:3} tokens after {context:4}: {:7.3} ms a step, median {:7.3}; {:6.0} tokens/s",
            ms(10),
            ms(50),
            f64::from(*streams * *tokens) / ms(10) * 1e3,
        );
    }
    Ok(())
}

fn start(checkpoint: &Arc<Checkpoint>, ranks: usize, threads: usize) -> AnyResult<RankThreads> {
    let layout = checkpoint.unit_layout(WeightMode::File)?;
    let shape = *layout.shape();
    let cell = CellLayout::new(shape.num_layers, shape.heads.head_dim(), BLOCK_SIZE, KvDtype::F16)?;
    let plan = GroupPlan {
        shares: ShardPlan::balance(&layout, &vec![RankCapacity::default(); ranks], 0)?
            .shares()
            .to_vec(),
        num_blocks: NUM_BLOCKS,
        block_size: BLOCK_SIZE,
        step_tokens_max: 4096,
    };
    let config = BackendConfig {
        kind: BackendKind::Canonical,
        gpu_ordinal: 0,
        weight_mode: WeightMode::File,
        threads,
        kv_memory_bytes: 0,
    };
    let checkpoint = Arc::clone(checkpoint);
    let mut ranks = RankThreads::start(&plan, move || open_backend(&config, Arc::clone(&checkpoint), cell))?;
    ranks.run(move |rank| {
        let heads = rank.share.attention.clone();
        for (head, block) in heads.flat_map(|head| (0..NUM_BLOCKS).map(move |block| (head, block))) {
            // Memory that nobody has written is one page of zeros, which caches hold.
            let mut fill = |cell: &mut [u8]| {
                cell.fill(SOME_BYTE);
                true
            };
            rank.backend
                .fill_cell(KvHead(head), BlockId(block), cell.cell_bytes(), &mut fill)?;
        }
        Ok(())
    })?;
    Ok(ranks)
}

/// Always the same step: its cells are written anew each time.
fn measure(rank: &mut RankThread, work: &[WorkInput], steps: usize) -> Result<Vec<Duration>, BackendError> {
    let mut took = Vec::with_capacity(steps);
    for step in 0..steps + 2 {
        let begun = Instant::now();
        rank.step(work)?;
        if step >= 2 {
            took.push(begun.elapsed());
        }
    }
    Ok(took)
}

fn work(stream: u32, tokens: u32, context: u32) -> WorkInput {
    let end = context + tokens;
    let num_blocks = end.div_ceil(BLOCK_SIZE);
    WorkInput {
        sequence: SequenceId(u64::from(stream)),
        tokens: (0..tokens).map(|token| TokenId(1000 + 7 * token)).collect(),
        start: context,
        blocks: (0..num_blocks)
            .map(|block| BlockId(stream * num_blocks + block))
            .collect(),
        samples: true,
        sampling: Sampling::default(),
        prompt_len: end,
        ..WorkInput::default()
    }
}
