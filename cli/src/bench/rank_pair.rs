//! Two ranks in this process, each with its own backend and thread, and the transfer of cells from one to the other: the
//! same rank, sender, listener and cells as in a worker, without a coordinator.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use kvasir_kv::{
    AdmittedSequence, BlockCopy, BlockId, BlockTag, CellLayout, CellSet, CellsIn, CellsOut, Epoch, EpochSpec,
    FromWorker, GroupId, NumericsId, Rank, RankCapacity, RankShare, Sampling, SequenceId, SequenceWork, ShardPlan,
    StepId, StepPlan, TaggedBlock, Ticket, ToWorker, TokenId, TransferId, Transport,
};
use kvasir_model::Checkpoint;
use kvasir_worker::{
    backend::Backend,
    canonical::Canonical,
    rank::{RankConfig, RankInput, RankWorker},
    transfer::{TransferHub, listen},
};

use crate::engine_options::EngineOptions;

/// Nothing that is asked of a rank here takes so long.
const ANSWER_MAX: Duration = Duration::from_secs(120);
const NUMERICS: NumericsId = NumericsId([0; 16]);

/// Which way cells take.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Lane {
    Connection,
    SharedMemory,
}

impl Lane {
    /// One transfer each.
    fn transfer(self) -> TransferId {
        match self {
            Self::Connection => TransferId(1),
            Self::SharedMemory => TransferId(2),
        }
    }
}

#[derive(Debug)]
pub struct RankPair {
    source: PairRank,
    target: PairRank,
    num_heads: u32,
    num_blocks: u32,
    block_size: u32,
    /// Of the blocks at the target: those of each round are newer.
    rounds: u32,
    pub cell_bytes: usize,
}

#[derive(Debug)]
struct PairRank {
    epoch: Epoch,
    inbox: Sender<RankInput>,
    answers: Receiver<FromWorker>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl RankPair {
    /// The source has computed so many blocks of one sequence.
    pub fn start(engine: &EngineOptions, num_blocks: u32) -> Result<Self> {
        let checkpoint = Checkpoint::open(&engine.model);
        let checkpoint = Arc::new(checkpoint.with_context(|| format!("cannot open {}", engine.model.display()))?);
        let spec = checkpoint.spec();
        let cell = CellLayout::new(spec.num_layers, spec.head_dim, engine.block_size, engine.kv_dtype)?;
        let num_tokens = num_blocks * engine.block_size;
        if num_tokens > spec.context_len {
            bail!(
                "{num_blocks} blocks of {} tokens are more than the model's context of {}",
                engine.block_size,
                spec.context_len
            );
        }
        let start = |number| {
            let epoch = Epoch { term: 1, number };
            PairRank::start(engine, Arc::clone(&checkpoint), cell, (epoch, num_blocks))
        };
        let (source, shares) = start(1)?;
        let (target, _) = start(2)?;
        source.compute(num_tokens, engine.block_size)?;
        Ok(Self {
            source,
            target,
            num_heads: shares[0].attention.len() as u32,
            num_blocks,
            block_size: engine.block_size,
            rounds: 0,
            cell_bytes: cell.cell_bytes(),
        })
    }

    /// Of all cells.
    pub fn bytes(&self) -> usize {
        (self.num_blocks * self.num_heads) as usize * self.cell_bytes
    }

    /// Copies all cells; returns how long it took from the order to the last cell's arrival.
    pub fn copy(&mut self, lane: Lane) -> Result<Duration> {
        self.rounds += 1;
        let (ticket, cells) = (self.ticket(lane), self.cells());
        let begun = Instant::now();
        self.target.tell(ToWorker::ReceiveCells(CellsIn {
            ticket,
            round: self.rounds,
            source_rank: Rank(0),
            cells: cells.clone(),
            starts_after: Vec::new(),
        }))?;
        self.source.tell(ToWorker::SendCells(CellsOut {
            ticket,
            round: self.rounds,
            source_rank: Rank(0),
            target_rank: Rank(0),
            address: self.target.address.to_string(),
            same_host: lane == Lane::SharedMemory,
            urgent: false,
            cells,
        }))?;
        let (bytes, shared_bytes) = match self.target.answer()? {
            FromWorker::CellsArrived {
                bytes, shared_bytes, ..
            } => (bytes, shared_bytes),
            other => bail!("cells were to arrive; instead: {other:?}"),
        };
        let took = begun.elapsed();
        let expected = if lane == Lane::SharedMemory { bytes } else { 0 };
        if shared_bytes != expected {
            bail!("{shared_bytes} of {bytes} bytes came through shared memory; expected {expected}");
        }
        Ok(took)
    }

    fn ticket(&self, lane: Lane) -> Ticket {
        Ticket {
            transfer: lane.transfer(),
            secret: 1,
            source: self.source.epoch,
            target: self.target.epoch,
        }
    }

    fn cells(&self) -> CellSet {
        let copy = |id| BlockCopy {
            source: block(id, 1),
            target: block(id, self.rounds),
            written: self.block_size,
        };
        CellSet {
            heads: 0..self.num_heads,
            blocks: (0..self.num_blocks).map(copy).collect(),
        }
    }
}

fn block(id: u32, tag: u32) -> TaggedBlock {
    TaggedBlock {
        id: BlockId(id),
        tag: BlockTag(tag),
    }
}

impl PairRank {
    /// A rank that is a whole group.
    fn start(
        engine: &EngineOptions,
        checkpoint: Arc<Checkpoint>,
        cell: CellLayout,
        (epoch, num_blocks): (Epoch, u32),
    ) -> Result<(Self, Vec<RankShare>)> {
        let backend = Canonical::new(checkpoint, engine.weights_dtype, cell, 1)?;
        let shares = ShardPlan::balance(backend.layout(), &[RankCapacity::default()], 0)?
            .shares()
            .to_vec();
        let (inbox, inputs) = channel();
        let (answer, answers) = channel();
        let (wake, notify) = (inbox.clone(), inbox.clone());
        let hub = Arc::new(TransferHub::new(NUMERICS, cell.cell_bytes(), move || {
            // Fails only when the rank has ended.
            let _ = wake.send(RankInput::Wake);
        }));
        let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let address = listen(localhost, Arc::clone(&hub))?;
        let worker = RankWorker::new(
            RankConfig::new(localhost),
            Box::new(backend),
            Arc::default(),
            // Fails only when the measurement has ended.
            move |message| drop(answer.send(message)),
        )
        .with_transfers(hub, move |input| drop(notify.send(input)));
        let thread = std::thread::Builder::new()
            .name("kvasir-rank".to_owned())
            .spawn(move || worker.run(&inputs))?;
        let rank = Self {
            epoch,
            inbox,
            answers,
            address,
            thread: Some(thread),
        };
        rank.form(&shares, num_blocks, cell.block_size())?;
        Ok((rank, shares))
    }

    fn form(&self, shares: &[RankShare], num_blocks: u32, block_size: u32) -> Result<()> {
        self.tell(ToWorker::FormEpoch(EpochSpec {
            group: GroupId(0),
            epoch: self.epoch,
            rank: Rank(0),
            transport: Transport::Solo,
            nonce: 1,
            shares: shares.to_vec(),
            num_blocks,
            block_size,
            step_tokens_max: num_blocks * block_size,
        }))?;
        let endpoints = match self.answer()? {
            FromWorker::EndpointReady { endpoint, .. } => vec![endpoint],
            other => bail!("an endpoint was to come; instead: {other:?}"),
        };
        let epoch = self.epoch;
        self.tell(ToWorker::ConnectEpoch { epoch, endpoints })?;
        match self.answer()? {
            FromWorker::EpochReady { .. } => Ok(()),
            other => bail!("the epoch was to begin; instead: {other:?}"),
        }
    }

    /// One sequence of so many tokens.
    fn compute(&self, num_tokens: u32, block_size: u32) -> Result<()> {
        let sequence = SequenceId(0);
        self.tell(ToWorker::Step(StepPlan {
            epoch: self.epoch,
            step: StepId(0),
            admitted: vec![AdmittedSequence {
                sequence,
                tokens: (0..num_tokens).map(|index| TokenId(index % 251)).collect(),
                prompt_len: num_tokens,
                sampling: Sampling::default(),
                prompt_top_logprobs: 0,
            }],
            work: vec![SequenceWork {
                sequence,
                start: 0,
                num_tokens,
                new_blocks: (0..num_tokens / block_size).map(|id| block(id, 1)).collect(),
                samples: true,
                scored: 0..0,
            }],
            retired: Vec::new(),
            adopted: Vec::new(),
        }))?;
        match self.answer()? {
            FromWorker::StepDone { .. } => Ok(()),
            other => bail!("a step was to be done; instead: {other:?}"),
        }
    }

    fn tell(&self, message: ToWorker) -> Result<()> {
        let sent = self.inbox.send(RankInput::FromCoordinator(message));
        sent.map_err(|_| anyhow!("a rank has ended"))
    }

    fn answer(&self) -> Result<FromWorker> {
        self.answers.recv_timeout(ANSWER_MAX).context("a rank says nothing")
    }
}

impl Drop for PairRank {
    fn drop(&mut self) {
        // Fails, both of them, if the rank has ended already.
        let _ = self.inbox.send(RankInput::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
