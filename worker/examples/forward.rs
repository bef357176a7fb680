//! How long ranks take for a step, without coordinator, client and processes: threads of this process, each with its share.
//!
//! `cargo run -p kvasir-worker --example forward -- MODEL [RANKS] [THREADS] [CASE]` prints milliseconds a step for one token after
//! some contexts, for several streams, and for prompts: the tenth percentile, which other work on the machine hardly
//! touches, and the median.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use kvasir_kv::{
    BlockId, CellLayout, Epoch, EpochSpec, GroupId, KvDtype, KvHead, Rank, RankCapacity, Sampling, SequenceId,
    ShardPlan, TokenId, Transport,
};
use kvasir_model::{Checkpoint, WeightMode};
use kvasir_worker::{
    backend::{Backend, ForwardOutput},
    canonical::Canonical,
    collective::{Abort, Collective, Endpoint, EpochNonce, Listening, Seat, Terms},
    rank_books::WorkInput,
};

type AnyResult<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const BLOCK_SIZE: u32 = 64;
const NUM_BLOCKS: u32 = 160;
/// Twice, it is 0.065 as f16.
const SOME_BYTE: u8 = 0x2c;
const DEADLINE: Duration = Duration::from_secs(60);

/// Streams, tokens of each in a step, context before them, and how many steps.
type Case = (u32, u32, u32, usize);

const CASES: [Case; 6] = [
    (1, 1, 64, 600),
    (1, 1, 1000, 300),
    (1, 1, 4096, 200),
    (8, 1, 64, 100),
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
    let mut took = std::thread::scope(|scope| {
        let members: Vec<_> = group(&checkpoint, ranks)?
            .into_iter()
            .map(|member| scope.spawn(|| member.run(&checkpoint, threads, cases)))
            .collect();
        let joined = members.into_iter().map(|member| member.join().expect("no panic"));
        joined.collect::<AnyResult<Vec<_>>>()
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

struct Member {
    spec: EpochSpec,
    listening: Listening,
    endpoints: Vec<Endpoint>,
}

fn group(checkpoint: &Checkpoint, ranks: usize) -> AnyResult<Vec<Member>> {
    let layout = checkpoint.unit_layout(WeightMode::File)?;
    let plan = ShardPlan::balance(&layout, &vec![RankCapacity::default(); ranks], 0)?;
    let transport = if ranks == 1 {
        Transport::Solo
    } else {
        Transport::SharedMemory
    };
    let seat = |rank| Seat {
        nonce: EpochNonce(1),
        rank,
        world_size: ranks,
        listen_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    let prepared: Result<Vec<_>, _> = (0..ranks)
        .map(|rank| Listening::prepare(transport, seat(rank)))
        .collect();
    let (listening, endpoints): (Vec<Listening>, Vec<Endpoint>) = prepared?.into_iter().unzip();
    let member = |(rank, listening)| Member {
        spec: EpochSpec {
            group: GroupId(0),
            epoch: Epoch { term: 1, number: 1 },
            rank: Rank(rank as u32),
            transport,
            nonce: 1,
            shares: plan.shares().to_vec(),
            num_blocks: NUM_BLOCKS,
            block_size: BLOCK_SIZE,
            step_tokens_max: 4096,
        },
        listening,
        endpoints: endpoints.clone(),
    };
    Ok(listening.into_iter().enumerate().map(member).collect())
}

impl Member {
    /// How long each step of each case took.
    fn run(self, checkpoint: &Arc<Checkpoint>, threads: usize, cases: &[Case]) -> AnyResult<Vec<Vec<Duration>>> {
        let shape = *checkpoint.unit_layout(WeightMode::File)?.shape();
        let cell = CellLayout::new(shape.num_layers, shape.heads.head_dim(), BLOCK_SIZE, KvDtype::F16)?;
        let mut backend = Canonical::new(Arc::clone(checkpoint), WeightMode::File, cell, threads)?;
        backend.begin_epoch(&self.spec)?;
        let heads = self.spec.shares[self.spec.rank.0 as usize].attention.clone();
        for (head, block) in heads.flat_map(|head| (0..NUM_BLOCKS).map(move |block| (head, block))) {
            // Memory that nobody has written is one page of zeros, which caches hold.
            backend.fill_cell(KvHead(head), BlockId(block), cell.cell_bytes(), &mut |cell| {
                cell.fill(SOME_BYTE);
                true
            })?;
        }
        let terms = Terms {
            connect_deadline: DEADLINE,
            call_deadline: DEADLINE,
            abort: Abort::default(),
            entered: Arc::default(),
        };
        let mut collective = self.listening.connect(&self.endpoints, terms)?;
        let mut took = Vec::new();
        for (streams, tokens, context, steps) in cases.iter().copied() {
            let work: Vec<WorkInput> = (0..streams).map(|stream| work(stream, tokens, context)).collect();
            took.push(measure(&mut backend, collective.as_mut(), &work, steps)?);
        }
        Ok(took)
    }
}

/// Always the same step: its cells are written anew each time.
fn measure(
    backend: &mut Canonical,
    collective: &mut dyn Collective,
    work: &[WorkInput],
    steps: usize,
) -> AnyResult<Vec<Duration>> {
    let mut output = ForwardOutput::default();
    let mut took = Vec::with_capacity(steps);
    for step in 0..steps + 2 {
        let begun = Instant::now();
        backend.forward(work, collective, &mut output)?;
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
