//! A TP group of real ranks in this process, driven step by step: for parity tests that choose the batch, the chunks
//! and the plan themselves. The ranks are the worker's own; only the coordinator is played here.

#![allow(clippy::unwrap_used)] // a test's own ranks: a failure is the test's failure

use std::{
    net::{IpAddr, Ipv4Addr},
    ops::Range,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
};

use kvasir_kv::{
    AdmittedSequence, BlockId, BlockTag, CellLayout, Epoch, EpochSpec, FromWorker, GroupId, KvDtype, PromptLogprob,
    Rank, RankCapacity, Sampling, SequenceId, SequenceWork, ShardPlan, StepId, StepPlan, TaggedBlock, ToWorker,
    TokenId, Transport,
};
use kvasir_model::{BackendKind, Checkpoint, WeightMode};
use kvasir_worker::{
    arith::Kernels,
    backend::Backend,
    canonical::Canonical,
    gpu::{Arithmetic, Gpu, test_device},
    oracle::Oracle,
    rank::{RankConfig, RankControl, RankInput, RankWorker},
};

/// How a group is built. All of it must leave the bits alone, but for `kv_dtype`, `weight_mode` and `backend`.
#[derive(Clone, Debug)]
pub struct GroupOptions {
    pub ranks: usize,
    pub threads: usize,
    /// `None` takes shared memory, or solo for one rank.
    pub transport: Option<Transport>,
    pub kv_dtype: KvDtype,
    pub weight_mode: WeightMode,
    pub backend: BackendKind,
    pub block_size: u32,
    pub num_blocks: u32,
    /// `None` takes the fastest.
    pub kernels: Option<Kernels>,
}

impl Default for GroupOptions {
    fn default() -> Self {
        Self {
            ranks: 1,
            threads: 1,
            transport: None,
            kv_dtype: KvDtype::F16,
            weight_mode: WeightMode::File,
            backend: BackendKind::Canonical,
            block_size: 64,
            num_blocks: 64,
            kernels: None,
        }
    }
}

/// What to generate. No stop tokens: exactly `max_tokens`.
#[derive(Clone, Debug)]
pub struct Generation {
    pub prompt: Vec<TokenId>,
    pub max_tokens: usize,
    pub sampling: Sampling,
    /// Score the prompt, with so many likeliest tokens at each position.
    pub prompt_logprobs: Option<u32>,
}

impl Generation {
    pub fn greedy(prompt: &[u32], max_tokens: usize) -> Self {
        let prompt = prompt.iter().copied().map(TokenId).collect();
        Self {
            prompt,
            max_tokens,
            sampling: Sampling::default(),
            prompt_logprobs: None,
        }
    }

    /// The positions of the prompt that the rows from `start` to `end` are to score.
    fn scored_by(&self, start: usize, end: usize) -> Range<u32> {
        let scored = start + 1..self.prompt.len().min(end + 1);
        match self.prompt_logprobs.is_some() && !scored.is_empty() {
            true => scored.start as u32..scored.end as u32,
            false => 0..0,
        }
    }
}

#[derive(Clone, PartialEq, Debug, Default)]
pub struct Answer {
    pub tokens: Vec<TokenId>,
    pub logprobs: Vec<f32>,
    pub top_logprobs: Vec<Vec<(TokenId, f32)>>,
    /// From position 1 on; empty where nobody asked.
    pub prompt_logprobs: Vec<PromptLogprob>,
    pub poisoned: bool,
}

#[allow(missing_debug_implementations)] // threads and channels, never printed
pub struct RankGroup {
    ranks: Vec<(Sender<RankInput>, JoinHandle<()>)>,
    from_ranks: Receiver<(usize, FromWorker)>,
    epoch: Epoch,
    next_step: u64,
    next_sequence: u64,
    options: GroupOptions,
    tags: Vec<u32>,
    pub steps: u64,
}

impl RankGroup {
    /// Starts the ranks and waits until they are connected and loaded.
    pub fn start(checkpoint: &Arc<Checkpoint>, options: GroupOptions) -> Self {
        let layout = checkpoint.unit_layout(options.weight_mode).unwrap();
        let plan = ShardPlan::balance(&layout, &vec![RankCapacity::default(); options.ranks], 0).unwrap();
        Self::start_with_plan(checkpoint, options, &plan)
    }

    pub fn start_with_plan(checkpoint: &Arc<Checkpoint>, options: GroupOptions, plan: &ShardPlan) -> Self {
        let (to_us, from_ranks) = channel();
        let ranks = (0..options.ranks)
            .map(|rank| {
                let (send, inbox) = channel();
                let backend = backend(checkpoint, &options);
                let to_us = to_us.clone();
                let thread = std::thread::spawn(move || {
                    let config = RankConfig::new(IpAddr::V4(Ipv4Addr::LOCALHOST));
                    let answer = move |message| drop(to_us.send((rank, message)));
                    RankWorker::new(config, backend, Arc::new(RankControl::default()), answer).run(&inbox);
                });
                (send, thread)
            })
            .collect();
        let tags = vec![0; options.num_blocks as usize];
        let epoch = Epoch { term: 1, number: 0 };
        let mut group = Self {
            ranks,
            from_ranks,
            epoch,
            next_step: 0,
            next_sequence: 0,
            options,
            tags,
            steps: 0,
        };
        group.form(plan);
        group
    }

    /// Starts the next epoch with `plan`, on the same ranks.
    pub fn form(&mut self, plan: &ShardPlan) {
        self.epoch = self.epoch.next();
        self.next_step = 0;
        let transport = match (self.options.ranks, self.options.transport) {
            (1, _) => Transport::Solo,
            (_, Some(transport)) => transport,
            _ => Transport::SharedMemory,
        };
        for (rank, (send, _)) in self.ranks.iter().enumerate() {
            let spec = EpochSpec {
                group: GroupId(0),
                epoch: self.epoch,
                rank: Rank(rank as u32),
                transport,
                nonce: 0x6b76_6173 + self.epoch.number,
                shares: plan.shares().to_vec(),
                num_blocks: self.options.num_blocks,
                block_size: self.options.block_size,
                step_tokens_max: 4096,
            };
            send.send(RankInput::FromCoordinator(ToWorker::FormEpoch(spec)))
                .unwrap();
        }
        let mut endpoints = vec![String::new(); self.options.ranks];
        for _ in 0..self.options.ranks {
            match self.from_ranks.recv().unwrap() {
                (rank, FromWorker::EndpointReady { endpoint, .. }) => endpoints[rank] = endpoint,
                (rank, other) => panic!("rank {rank}: {other:?}"),
            }
        }
        for (send, _) in &self.ranks {
            let connect = ToWorker::ConnectEpoch {
                epoch: self.epoch,
                endpoints: endpoints.clone(),
            };
            send.send(RankInput::FromCoordinator(connect)).unwrap();
        }
        for _ in 0..self.options.ranks {
            match self.from_ranks.recv().unwrap() {
                (_, FromWorker::EpochReady { .. }) => {}
                (rank, other) => panic!("rank {rank}: {other:?}"),
            }
        }
    }

    /// Generates all answers in one batch; `chunk(sequence, start)` says how many prompt tokens a step may compute.
    pub fn generate(
        &mut self,
        generations: &[Generation],
        mut chunk: impl FnMut(usize, usize) -> usize,
    ) -> Vec<Answer> {
        let mut sequences: Vec<Played> = generations.iter().map(|generation| self.admit(generation)).collect();
        let mut next_block = 0;
        loop {
            let mut plan = StepPlan {
                epoch: self.epoch,
                step: StepId(self.next_step),
                admitted: Vec::new(),
                work: Vec::new(),
                retired: Vec::new(),
                adopted: Vec::new(),
            };
            for (index, sequence) in sequences.iter_mut().enumerate() {
                if sequence.answer.tokens.len() >= generations[index].max_tokens {
                    continue;
                }
                if sequence.computed == 0 {
                    plan.admitted.push(sequence.admitted.clone());
                }
                let left = sequence.known - sequence.computed;
                let num_tokens = chunk(index, sequence.computed).clamp(1, left);
                let end = sequence.computed + num_tokens;
                let mut new_blocks = Vec::new();
                while (sequence.blocks * self.options.block_size) < end as u32 {
                    self.tags[next_block as usize] += 1;
                    let tag = BlockTag(self.tags[next_block as usize]);
                    new_blocks.push(TaggedBlock {
                        id: BlockId(next_block),
                        tag,
                    });
                    next_block += 1;
                    sequence.blocks += 1;
                }
                plan.work.push(SequenceWork {
                    sequence: sequence.admitted.sequence,
                    start: sequence.computed as u32,
                    num_tokens: num_tokens as u32,
                    new_blocks,
                    samples: end == sequence.known,
                    scored: generations[index].scored_by(sequence.computed, end),
                });
                sequence.computed = end;
            }
            if plan.work.is_empty() {
                break;
            }
            self.run_step(plan, &mut sequences);
        }
        // One more plan forgets the sequences, so that the group can be used again.
        let retired = sequences.iter().map(|sequence| sequence.admitted.sequence).collect();
        let (admitted, work) = Default::default();
        let plan = StepPlan {
            epoch: self.epoch,
            step: StepId(self.next_step),
            admitted,
            work,
            retired,
            adopted: Vec::new(),
        };
        self.run_step(plan, &mut []);
        sequences.into_iter().map(|sequence| sequence.answer).collect()
    }

    fn admit(&mut self, generation: &Generation) -> Played {
        self.next_sequence += 1;
        let admitted = AdmittedSequence {
            sequence: SequenceId(self.next_sequence),
            tokens: generation.prompt.clone(),
            prompt_len: generation.prompt.len() as u32,
            sampling: generation.sampling.clone(),
            prompt_top_logprobs: generation.prompt_logprobs.unwrap_or(0),
        };
        Played {
            known: admitted.tokens.len(),
            admitted,
            computed: 0,
            blocks: 0,
            answer: Answer::default(),
        }
    }

    fn run_step(&mut self, plan: StepPlan, sequences: &mut [Played]) {
        for (send, _) in &self.ranks {
            let step = ToWorker::Step(plan.clone());
            send.send(RankInput::FromCoordinator(step)).unwrap();
        }
        self.next_step += 1;
        self.steps += 1;
        for _ in 0..self.options.ranks {
            let output = match self.from_ranks.recv().unwrap() {
                (_, FromWorker::StepDone { output, .. }) => output,
                (rank, other) => panic!("rank {rank}: {other:?}"),
            };
            for scored in output.iter().flat_map(|output| &output.scored) {
                let mut played = sequences.iter_mut();
                let sequence = played.find(|s| s.admitted.sequence == scored.sequence).unwrap();
                let known = &mut sequence.answer.prompt_logprobs;
                assert_eq!(
                    scored.start as usize,
                    known.len() + 1,
                    "a gap in what the prompt scores"
                );
                known.extend(scored.logprobs.iter().cloned());
            }
            for sampled in output.iter().flat_map(|output| &output.sampled) {
                let index = sequences
                    .iter()
                    .position(|s| s.admitted.sequence == sampled.sequence)
                    .unwrap();
                let sequence = &mut sequences[index];
                sequence.known += 1;
                sequence.answer.tokens.push(sampled.token);
                sequence.answer.logprobs.push(sampled.logprob);
                sequence.answer.top_logprobs.push(sampled.top_logprobs.clone());
            }
            for poisoned in output.iter().flat_map(|output| &output.poisoned) {
                let index = sequences.iter().position(|s| s.admitted.sequence == *poisoned).unwrap();
                let sequence = &mut sequences[index];
                sequence.answer.poisoned = true;
                // The ranks go on with token 0; so does this driver's count.
                sequence.known += usize::from(sequence.computed == sequence.known);
                sequence.answer.tokens.push(TokenId(0));
                sequence.answer.logprobs.push(f32::NAN);
            }
        }
    }
}

impl Drop for RankGroup {
    fn drop(&mut self) {
        for (send, thread) in self.ranks.drain(..) {
            drop(send);
            let joined = thread.join();
            assert!(joined.is_ok() || std::thread::panicking(), "a rank panicked");
        }
    }
}

struct Played {
    admitted: AdmittedSequence,
    known: usize,
    computed: usize,
    blocks: u32,
    answer: Answer,
}

/// The backend of one rank, with nothing loaded yet.
pub fn backend(checkpoint: &Arc<Checkpoint>, options: &GroupOptions) -> Box<dyn Backend> {
    let spec = checkpoint.spec();
    let cell = CellLayout::new(spec.num_layers, spec.head_dim, options.block_size, options.kv_dtype).unwrap();
    match options.backend {
        BackendKind::Canonical => {
            let canonical = Canonical::new(Arc::clone(checkpoint), options.weight_mode, cell, options.threads).unwrap();
            Box::new(match options.kernels {
                Some(kernels) => canonical.with_kernels(kernels),
                None => canonical,
            })
        }
        BackendKind::Candle => Box::new(Oracle::new(Arc::clone(checkpoint), options.weight_mode, cell).unwrap()),
        BackendKind::CudaExact => on_device(Arithmetic::Exact, checkpoint, options, cell),
        BackendKind::CudaFast => on_device(Arithmetic::Fast, checkpoint, options, cell),
    }
}

fn on_device(
    arithmetic: Arithmetic,
    checkpoint: &Arc<Checkpoint>,
    options: &GroupOptions,
    cell: CellLayout,
) -> Box<dyn Backend> {
    let device = test_device::open().unwrap();
    let checkpoint = Arc::clone(checkpoint);
    Box::new(Gpu::new(device, arithmetic, checkpoint, options.weight_mode, cell).unwrap())
}
