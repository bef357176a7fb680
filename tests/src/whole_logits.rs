//! Whole logits of a forward pass, from backends driven directly: no sampler, no books, no coordinator.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use kvasir_kv::{
    BlockId, Epoch, EpochSpec, GroupId, Rank, RankCapacity, Sampling, SequenceId, ShardPlan, TokenId, Transport,
};
use kvasir_model::Checkpoint;
use kvasir_worker::{
    backend::ForwardOutput,
    collective::{Abort, Collective, Endpoint, EpochNonce, Listening, Seat, Terms},
    rank_books::WorkInput,
};

use crate::rank_group::{GroupOptions, backend};

const DEADLINE: Duration = Duration::from_secs(60);

/// What came of one sequence's rows of a step.
#[derive(Clone, PartialEq, Debug)]
pub struct WholeRow {
    /// `[vocab_size]`, after the last token.
    pub logits: Vec<f32>,
    pub poisoned: bool,
}

/// Computes `steps` on a group of its own. Each step is a list of (sequence, number of its next tokens); each of them
/// gives a row. The blocks of the sequences alternate.
pub fn whole_logits(
    checkpoint: &Arc<Checkpoint>,
    options: &GroupOptions,
    sequences: &[Vec<TokenId>],
    steps: &[Vec<(usize, usize)>],
) -> Vec<WholeRow> {
    let steps = works(options, sequences, steps);
    let ranks = std::thread::scope(|scope| {
        let threads: Vec<_> = epochs(checkpoint, options)
            .into_iter()
            .zip(collectives(options.ranks))
            .map(|(spec, connect)| scope.spawn(|| run_rank(checkpoint, options, spec, connect, &steps)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a rank that does not panic"))
            .collect()
    });
    join_shares(ranks)
}

fn works(options: &GroupOptions, sequences: &[Vec<TokenId>], steps: &[Vec<(usize, usize)>]) -> Vec<Vec<WorkInput>> {
    let mut computed = vec![0; sequences.len()];
    let mut work = |&(sequence, num_tokens): &(usize, usize)| {
        let start = computed[sequence];
        let end = start + num_tokens;
        computed[sequence] = end;
        let num_blocks = (end as u32).div_ceil(options.block_size);
        WorkInput {
            sequence: SequenceId(sequence as u64),
            tokens: sequences[sequence][start..end].to_vec(),
            start: start as u32,
            blocks: (0..num_blocks)
                .map(|block| BlockId(block * sequences.len() as u32 + sequence as u32))
                .collect(),
            samples: true,
            // Whole logits are only left behind for a sampler that asks for the likeliest.
            sampling: Sampling {
                top_logprobs: 1,
                ..Sampling::default()
            },
            prompt_len: end as u32,
            ..WorkInput::default()
        }
    };
    steps.iter().map(|step| step.iter().map(&mut work).collect()).collect()
}

/// One spec per rank.
pub fn epochs(checkpoint: &Checkpoint, options: &GroupOptions) -> Vec<EpochSpec> {
    let layout = checkpoint
        .unit_layout(options.weight_mode)
        .expect("a checkpoint that opened");
    let capacities = vec![RankCapacity::default(); options.ranks];
    let plan = ShardPlan::balance(&layout, &capacities, 0).expect("no limits");
    let spec = |rank| EpochSpec {
        group: GroupId(0),
        epoch: Epoch { term: 1, number: 1 },
        rank: Rank(rank as u32),
        transport: transport(options.ranks),
        nonce: 1,
        shares: plan.shares().to_vec(),
        num_blocks: options.num_blocks,
        block_size: options.block_size,
        step_tokens_max: 4096,
    };
    (0..options.ranks).map(spec).collect()
}

fn transport(ranks: usize) -> Transport {
    match ranks {
        1 => Transport::Solo,
        _ => Transport::SharedMemory,
    }
}

/// What connects each rank to the others; to be called on threads of their own.
pub fn collectives(ranks: usize) -> Vec<impl FnOnce() -> Box<dyn Collective> + Send> {
    let seat = |rank| Seat {
        nonce: EpochNonce(1),
        rank,
        world_size: ranks,
        listen_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    let (listening, endpoints): (Vec<Listening>, Vec<Endpoint>) = (0..ranks)
        .map(|rank| Listening::prepare(transport(ranks), seat(rank)).expect("room for a segment"))
        .unzip();
    let connect = |listening: Listening| {
        let endpoints = endpoints.clone();
        let terms = Terms {
            connect_deadline: DEADLINE,
            call_deadline: DEADLINE,
            abort: Abort::default(),
            entered: Arc::new(AtomicU64::new(0)),
        };
        move || listening.connect(&endpoints, terms).expect("all ranks are here")
    };
    listening.into_iter().map(connect).collect()
}

fn run_rank(
    checkpoint: &Arc<Checkpoint>,
    options: &GroupOptions,
    spec: EpochSpec,
    connect: impl FnOnce() -> Box<dyn Collective>,
    steps: &[Vec<WorkInput>],
) -> Vec<ForwardOutput> {
    let mut backend = backend(checkpoint, options);
    backend.begin_epoch(&spec).expect("the share loads");
    let mut collective = connect();
    let mut run = |work: &Vec<WorkInput>| {
        let mut output = ForwardOutput::default();
        backend
            .forward(work, collective.as_mut(), &mut output)
            .expect("a step that fits");
        output
    };
    steps.iter().map(&mut run).collect()
}

/// ranks: `[ranks][steps]`
fn join_shares(ranks: Vec<Vec<ForwardOutput>>) -> Vec<WholeRow> {
    let mut rows = Vec::new();
    for step in 0..ranks[0].len() {
        for (row, poisoned) in ranks[0][step].poisoned.iter().enumerate() {
            let agree = ranks.iter().all(|rank| rank[step].poisoned[row] == *poisoned);
            assert!(agree, "ranks disagree on poison of row {row} of step {step}");
            let shares = ranks.iter().flat_map(|rank| &rank[step].logits[row]);
            rows.push(WholeRow {
                logits: shares.copied().collect(),
                poisoned: *poisoned,
            });
        }
    }
    rows
}
