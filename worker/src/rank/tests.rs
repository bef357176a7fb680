//! A rank refuses cells that are not what was computed into them.

use std::{
    net::Ipv4Addr,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::channel,
    },
};

use kvasir_kv::{
    AdmittedSequence, BlockTag, CellSet, CellsIn, GroupId, HeadLayout, KvHead, LoadReport, ModelShape, NumericsId,
    Sampling, SequenceWork, StepId, TaggedBlock, Ticket, TransferId, Transport, UnitBytes, UnitLayout,
};

use super::*;
use crate::backend::{Preload, Preloaded};
use crate::sampler::UnitRows;

/// Its cells hold one number, which a test may change behind its back.
pub(crate) struct OneCell {
    layout: UnitLayout,
    content: Arc<AtomicU64>,
}

impl OneCell {
    pub fn holding(content: &Arc<AtomicU64>) -> Self {
        let content = Arc::clone(content);
        let layout = layout();
        Self { layout, content }
    }
}

impl Backend for OneCell {
    fn layout(&self) -> &UnitLayout {
        &self.layout
    }

    fn begin_epoch(&mut self, _: &EpochSpec) -> Result<LoadReport, BackendError> {
        Ok(LoadReport::default())
    }

    fn vocab_units(&self) -> &[UnitRows] {
        &[]
    }

    fn held_bytes(&self, _: &[BlockId]) -> Option<u64> {
        None
    }

    fn checksums(&self, _: BlockId) -> Vec<u32> {
        vec![7, self.content.load(Ordering::Relaxed) as u32]
    }

    fn prepare_epoch(&mut self, _: &EpochSpec) -> Result<(), BackendError> {
        Ok(())
    }

    fn preload(&self, _: &EpochSpec) -> Option<Preload> {
        None
    }

    fn switch_epoch(
        &mut self,
        spec: &EpochSpec,
        _: Option<Preloaded>,
        _: &[BlockId],
    ) -> Result<LoadReport, BackendError> {
        self.begin_epoch(spec)
    }

    fn export_cell(&mut self, _: KvHead, _: BlockId, _: &mut [u8]) -> Result<(), BackendError> {
        Ok(())
    }

    fn import_cell(&mut self, _: KvHead, _: BlockId, _: &[u8]) -> Result<(), BackendError> {
        Ok(())
    }

    fn forward(
        &mut self,
        work: &[WorkInput],
        _: &mut dyn Collective,
        output: &mut ForwardOutput,
    ) -> Result<(), BackendError> {
        output.poisoned = vec![false; work.len()];
        Ok(())
    }
}

fn layout() -> UnitLayout {
    let shape = ModelShape {
        num_layers: 1,
        hidden_size: 96,
        heads: HeadLayout::new(6, 3, 16).unwrap(),
        intermediate_size: 256,
        vocab_size: 256,
        context_len: 100,
    };
    let bytes = UnitBytes {
        attention: 1000,
        ffn_per_column: 10,
        vocab_per_row: 2,
        embedding_per_row: 0,
        replicated: 100,
    };
    UnitLayout::new(shape, bytes)
}

type Rank0 = RankWorker<Box<dyn FnMut(FromWorker)>>;

const EPOCH: Epoch = Epoch { term: 1, number: 1 };

/// A rank alone whose epoch has begun, what it answers, and what its cells hold.
fn serving() -> (Rank0, Receiver<FromWorker>, Arc<AtomicU64>) {
    let content = Arc::new(AtomicU64::new(1));
    let backend = OneCell::holding(&content);
    let plan = ShardPlan::balance(backend.layout(), &[kvasir_kv::RankCapacity::default()], 0).unwrap();
    let (send, answers) = channel();
    let config = RankConfig::new(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let send: Box<dyn FnMut(FromWorker)> = Box::new(move |message| send.send(message).unwrap());
    let hub = Arc::new(TransferHub::new(NumericsId([0; 16]), 96, || ()));
    let mut rank = RankWorker::new(config, Box::new(backend), Arc::default(), send).with_transfers(hub, |_| ());
    let epoch = EPOCH;
    rank.on(ToWorker::FormEpoch(alone(&plan)));
    let Ok(FromWorker::EndpointReady { endpoint, .. }) = answers.recv() else {
        panic!("no endpoint");
    };
    let endpoints = vec![endpoint];
    rank.on(ToWorker::ConnectEpoch { epoch, endpoints });
    assert!(matches!(answers.recv(), Ok(FromWorker::EpochReady { .. })));

    (rank, answers, content)
}

fn alone(plan: &ShardPlan) -> EpochSpec {
    EpochSpec {
        group: GroupId(0),
        epoch: EPOCH,
        rank: Rank(0),
        transport: Transport::Solo,
        nonce: 1,
        shares: plan.shares().to_vec(),
        num_blocks: 8,
        block_size: 16,
        step_tokens_max: 64,
    }
}

fn block(id: u64) -> TaggedBlock {
    TaggedBlock {
        id: BlockId(id as u32),
        tag: BlockTag(1),
    }
}

/// Sequence 0 fills block 0; the others start after it.
fn step(sequence: u64) -> ToWorker {
    let (start, num_tokens) = if sequence == 0 { (0, 16) } else { (16, 3) };
    let new_blocks = [0, sequence].into_iter().take(1 + sequence.min(1) as usize);
    ToWorker::Step(StepPlan {
        epoch: EPOCH,
        step: StepId(sequence),
        admitted: vec![AdmittedSequence {
            sequence: SequenceId(sequence),
            tokens: vec![TokenId(1); 30],
            prompt_len: 30,
            sampling: Sampling::default(),
            prompt_top_logprobs: 0,
        }],
        work: vec![SequenceWork {
            sequence: SequenceId(sequence),
            start,
            num_tokens,
            new_blocks: new_blocks.map(block).collect(),
            samples: false,
            scored: 0..0,
        }],
        retired: Vec::new(),
        adopted: Vec::new(),
    })
}

fn assert_refused(answers: &Receiver<FromWorker>) {
    let Ok(FromWorker::EpochFailed { reason, missing, .. }) = answers.recv() else {
        panic!("a changed cell was used");
    };
    assert!(reason.starts_with(CORRUPT_CELL) && missing.is_empty(), "{reason}");
    assert!(reason.contains("block 0 of local KV head 1"), "{reason}");
}

#[test]
fn a_cell_that_changed_since_it_was_filled_ends_the_epoch_and_not_in_a_wrong_answer() {
    let (mut rank, answers, content) = serving();
    for sequence in [0, 1] {
        rank.on(step(sequence));
        assert!(matches!(answers.recv(), Ok(FromWorker::StepDone { .. })));
    }
    content.store(2, Ordering::Relaxed);
    rank.on(step(2));
    assert_refused(&answers);
}

/// What a transfer's sequence starts after is looked at while its cells come, and not once more when it has come.
#[test]
fn a_block_is_looked_at_ahead_for_as_long_as_its_transfer_lasts_and_only_if_it_is_that_block() {
    for (tag, is_taken) in [(1, true), (2, false)] {
        let (mut rank, answers, content) = serving();
        rank.on(step(0));
        assert!(matches!(answers.recv(), Ok(FromWorker::StepDone { .. })));
        let tag = BlockTag(tag);
        rank.on(receive(TaggedBlock { tag, ..block(0) }));
        assert!(rank.transfer(true), "it is looked at");
        assert!(!rank.transfer(true), "once");
        content.store(2, Ordering::Relaxed);
        rank.on(step(1));
        if !is_taken {
            assert_refused(&answers);
            continue;
        }
        assert!(matches!(answers.recv(), Ok(FromWorker::StepDone { .. })));
        rank.on(ToWorker::EndTransfer {
            transfer: TransferId(1),
        });
        rank.on(step(2));
        assert_refused(&answers);
    }
}

#[test]
fn a_block_that_is_found_changed_ahead_is_refused_when_it_is_wanted() {
    let (mut rank, answers, content) = serving();
    rank.on(step(0));
    assert!(matches!(answers.recv(), Ok(FromWorker::StepDone { .. })));
    content.store(2, Ordering::Relaxed);
    rank.on(receive(block(0)));
    assert!(rank.transfer(true));
    rank.on(step(1));
    assert_refused(&answers);
}

fn receive(starts_after: TaggedBlock) -> ToWorker {
    let source = Epoch { term: 1, number: 2 };
    ToWorker::ReceiveCells(CellsIn {
        ticket: Ticket {
            transfer: TransferId(1),
            secret: 1,
            source,
            target: EPOCH,
        },
        round: 0,
        source_rank: Rank(0),
        cells: CellSet {
            heads: 0..1,
            blocks: Vec::new(),
        },
        starts_after: vec![starts_after],
    })
}

/// Two ranks take many short steps one behind the other: rank 0 tells of each, rank 1 of several at once and of the last.
#[test]
fn a_rank_without_output_tells_of_several_steps_at_once_and_holds_nothing_back_at_the_end() {
    const STEPS: u64 = 64;
    let capacities = [kvasir_kv::RankCapacity::default(); 2];
    let plan = ShardPlan::balance(&layout(), &capacities, 0).unwrap();
    let ranks: Vec<_> = (0..2)
        .map(|rank| {
            let (to_rank, inbox) = channel();
            let (send, answers) = channel();
            let backend = Box::new(OneCell::holding(&Arc::new(AtomicU64::new(1))));
            let config = RankConfig::new(IpAddr::V4(Ipv4Addr::LOCALHOST));
            let spec = EpochSpec {
                rank: Rank(rank),
                transport: Transport::SharedMemory,
                shares: plan.shares().to_vec(),
                ..alone(&plan)
            };
            let worker = move || {
                let send = move |message| drop(send.send(message));
                RankWorker::new(config, backend, Arc::default(), send).run(&inbox);
            };
            let thread = std::thread::spawn(worker);
            let tell = move |message| to_rank.send(RankInput::FromCoordinator(message)).unwrap();
            tell(ToWorker::FormEpoch(spec));
            (tell, answers, thread)
        })
        .collect();
    let endpoint = |answers: &Receiver<FromWorker>| match answers.recv() {
        Ok(FromWorker::EndpointReady { endpoint, .. }) => endpoint,
        other => panic!("no endpoint: {other:?}"),
    };
    let endpoints: Vec<String> = ranks.iter().map(|(_, answers, _)| endpoint(answers)).collect();
    for (tell, ..) in &ranks {
        let (epoch, endpoints) = (EPOCH, endpoints.clone());
        tell(ToWorker::ConnectEpoch { epoch, endpoints });
        (0..STEPS).for_each(|step| tell(empty_step(step)));
    }
    let told = ranks.into_iter().map(|(tell, answers, thread)| {
        assert!(matches!(answers.recv(), Ok(FromWorker::EpochReady { .. })));
        let mut told = Vec::new();
        while told.last() != Some(&(STEPS - 1)) {
            match answers.recv() {
                Ok(FromWorker::StepDone { step, .. }) => told.push(step.0),
                other => panic!("no step: {other:?}"),
            }
        }
        drop(tell);
        thread.join().unwrap();
        told
    });
    let told: Vec<Vec<u64>> = told.collect();
    assert_eq!(told[0], (0..STEPS).collect::<Vec<_>>());
    assert!(told[1].len() < STEPS as usize && told[1].is_sorted(), "{:?}", told[1]);
}

fn empty_step(step: u64) -> ToWorker {
    ToWorker::Step(StepPlan {
        epoch: EPOCH,
        step: StepId(step),
        admitted: Vec::new(),
        work: Vec::new(),
        retired: Vec::new(),
        adopted: Vec::new(),
    })
}
