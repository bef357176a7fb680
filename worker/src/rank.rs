//! One rank: takes what the coordinator says, one message after the other, and answers.
//!
//! It runs on a thread of its own and blocks in collectives. Whoever holds its [`RankControl`] can abort an epoch and
//! read the progress meanwhile. A failed epoch is over; the rank waits for the next one.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError},
    },
    time::{Duration, Instant},
};

use kvasir_kv::{
    BlockId, CORRUPT_CELL, Epoch, EpochSpec, FromWorker, PromptLogprob, Rank, ScoredPrompt, SequenceId, ShardPlan,
    StepOutput, StepPlan, StepTimes, ToWorker, TokenId,
};

use kvasir_model::{Checkpoint, TokenMask};
use kvasir_runtime::tls::PeerDoor;
use opentelemetry::Context;

pub use crate::rank_control::RankControl;
use crate::{
    acknowledgements::Acknowledgements,
    backend::{Backend, BackendError, ForwardOutput},
    collective::{Collective, CollectiveError, Endpoint, EpochNonce, Listening, Seat, Terms},
    constrained::Constrained,
    prepared_epoch::{Notify, PrepareError, PreparedEpoch, PreparedOutcome},
    rank_books::{RankBooks, WorkInput},
    rank_meter::RankMeter,
    running_epoch::{Inherited, RunningEpoch, intersection},
    sampler::{LogitsShare, Picked, SampleRow, Sampler},
    scorer::score,
    transfer::{RankTransfers, Sides, TransferHub},
};

/// Of a step's time, what transfers that nobody waits for may take after it.
const TRANSFER_SHARE: u32 = 8;

/// What a rank's thread is woken for.
#[derive(Debug)]
pub enum RankInput {
    FromCoordinator(ToWorker),
    /// The step that comes next is part of a trace, here.
    Traced(Context),
    /// A transfer has something to be done; see [`TransferHub`].
    Wake,
    /// An epoch is prepared, or cannot be.
    Prepared(Box<PreparedOutcome>),
    /// No more work; a hub's `wake` may keep the channel open.
    End,
}

/// How a rank waits for its peers.
#[derive(Clone, Copy, Debug)]
pub struct RankConfig {
    /// Where it listens for peers when the group reduces over TCP.
    pub listen_ip: IpAddr,
    pub connect_deadline: Duration,
    /// A backstop: the coordinator notices a stuck peer sooner.
    pub collective_deadline: Duration,
}

impl RankConfig {
    pub fn new(listen_ip: IpAddr) -> Self {
        Self {
            listen_ip,
            connect_deadline: Duration::from_secs(30),
            collective_deadline: Duration::from_secs(30),
        }
    }
}

/// Why an epoch ended on this rank.
#[derive(Debug, thiserror::Error)]
enum EpochError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    #[error("step refused: {0}")]
    Refused(#[from] kvasir_kv::StepRefused),
    #[error("bad epoch: {0}")]
    Spec(String),
    #[error("{CORRUPT_CELL}: block {block} of local KV head {head} has changed since it was filled")]
    CorruptCell { block: BlockId, head: usize },
}

impl From<PrepareError> for EpochError {
    fn from(error: PrepareError) -> Self {
        match error {
            PrepareError::Backend(error) => Self::Backend(error),
            PrepareError::Collective(error) => Self::Collective(error),
        }
    }
}

impl EpochError {
    fn is_abort(&self) -> bool {
        matches!(
            self,
            Self::Collective(CollectiveError::Aborted)
                | Self::Backend(BackendError::Collective(CollectiveError::Aborted))
        )
    }

    fn missing(&self) -> Vec<Rank> {
        let (Self::Collective(error) | Self::Backend(BackendError::Collective(error))) = self else {
            return Vec::new();
        };
        match error {
            CollectiveError::DeadlineExceeded { missing, .. } => {
                missing.iter().map(|rank| Rank(*rank as u32)).collect()
            }
            // A peer that left may itself have left because of another: a hint is no blame.
            _ => Vec::new(),
        }
    }
}

#[allow(missing_debug_implementations)] // a thread's state, never printed
pub struct RankWorker<F> {
    config: RankConfig,
    peers: PeerDoor,
    backend: Box<dyn Backend>,
    control: Arc<RankControl>,
    send: F,
    epoch: Option<RunningEpoch>,
    /// Gets ready beside it.
    prepared: Option<PreparedEpoch>,
    notify: Option<Notify>,
    sampler: Sampler,
    constrained: Constrained,
    forward: ForwardOutput,
    transfers: RankTransfers,
    acknowledgements: Acknowledgements,
    meter: RankMeter,
}

impl<F: FnMut(FromWorker)> RankWorker<F> {
    /// `send` takes the answers; it may block, and may drop them once nobody listens.
    pub fn new(config: RankConfig, backend: Box<dyn Backend>, control: Arc<RankControl>, send: F) -> Self {
        let (sampler, constrained, forward) = Default::default();
        Self {
            config,
            peers: PeerDoor::default(),
            backend,
            control,
            send,
            epoch: None,
            prepared: None,
            notify: None,
            sampler,
            constrained,
            forward,
            transfers: RankTransfers::default(),
            acknowledgements: Acknowledgements::default(),
            meter: RankMeter::default(),
        }
    }

    /// Tells of its steps and of what it holds.
    pub fn with_meter(mut self, meter: RankMeter) -> Self {
        self.meter = meter;
        self
    }

    /// Follows constraints; without, a sequence that has one cannot be answered.
    pub fn with_constraints(mut self, checkpoint: Arc<Checkpoint>) -> Self {
        self.constrained = Constrained::new(checkpoint);
        self
    }

    /// How its peers are met over TCP; in the open if nothing is said.
    pub fn with_peers(mut self, peers: PeerDoor) -> Self {
        self.peers = peers;
        self
    }

    /// Takes part in transfers, and in epochs that are prepared beside others. The hub's `wake` sends [`RankInput::Wake`];
    /// `notify` puts something into the inbox, from any thread.
    pub fn with_transfers(mut self, hub: Arc<TransferHub>, notify: impl Fn(RankInput) + Send + Sync + 'static) -> Self {
        self.transfers = RankTransfers::new(hub);
        self.notify = Some(Arc::new(notify));
        self
    }

    /// Works until [`RankInput::End`], or until all senders of `inbox` are dropped.
    pub fn run(mut self, inbox: &Receiver<RankInput>) {
        let mut idle = false;
        // What the last step has left for transfers: what is asked for behind it counts as its own.
        let mut allowance = Duration::ZERO;
        loop {
            // While there is something to move, nobody sleeps; whoever comes meanwhile waits for one cell at most.
            let input = match idle {
                true => inbox.recv().map_err(|_| TryRecvError::Disconnected),
                false => inbox.try_recv(),
            };
            if let Ok(RankInput::Traced(context)) = input {
                self.meter.trace_next(context);
                continue;
            }
            let may_wait = match &input {
                Ok(RankInput::FromCoordinator(ToWorker::Step(plan))) => self.acknowledgements.may_wait_for(plan),
                _ => false,
            };
            if !may_wait {
                self.acknowledge();
            }
            match input {
                Ok(RankInput::FromCoordinator(message)) => {
                    let is_step = matches!(message, ToWorker::Step(_));
                    let begun = Instant::now();
                    self.on(message);
                    if is_step {
                        allowance = begun.elapsed() / TRANSFER_SHARE;
                    }
                    let spent = self.transfer_beside(allowance);
                    allowance = allowance.saturating_sub(spent);
                    idle = false;
                }
                Ok(RankInput::Wake | RankInput::Traced(_)) => idle = false,
                Ok(RankInput::Prepared(outcome)) => {
                    self.on_prepared(*outcome);
                    idle = false;
                }
                Err(TryRecvError::Empty) => idle = !self.transfer(true),
                Ok(RankInput::End) | Err(TryRecvError::Disconnected) => return,
            }
        }
    }

    /// Moves all cells that somebody waits for, and others as long as the time allows.
    /// Returns how long it took.
    fn transfer_beside(&mut self, time: Duration) -> Duration {
        let begun = Instant::now();
        while self.transfer(begun.elapsed() < time) {}
        begun.elapsed()
    }

    /// Moves one cell, or does another thing that transfers want done. False if there is none.
    fn transfer(&mut self, any: bool) -> bool {
        let mut report = Vec::new();
        let mut sides = Sides {
            running: self.epoch.as_mut().map(RunningEpoch::side),
            prepared: self.prepared.as_mut().map(PreparedEpoch::side),
        };
        let worked = self.transfers.work(&mut sides, self.backend.as_mut(), any, &mut report);
        report.into_iter().for_each(&mut self.send);
        worked
    }

    fn on(&mut self, message: ToWorker) {
        let (epoch, result) = match message {
            ToWorker::FormEpoch(spec) => (spec.epoch, self.form(spec)),
            ToWorker::ConnectEpoch { epoch, endpoints } => (epoch, self.connect(epoch, endpoints)),
            ToWorker::Step(plan) => (plan.epoch, self.step(&plan)),
            ToWorker::AbortEpoch { epoch } => {
                self.control.abort(epoch);
                self.drop_epoch(|running| running <= epoch);
                return;
            }
            ToWorker::PrepareEpoch(spec) => (spec.epoch, self.prepare(spec)),
            ToWorker::SwitchEpoch { epoch, held } => (epoch, self.switch(epoch, &held)),
            ToWorker::DropEpoch { epoch } => {
                self.prepared.take_if(|prepared| prepared.epoch() <= epoch);
                return;
            }
            ToWorker::SendCells(_) | ToWorker::ReceiveCells(_) | ToWorker::EndTransfer { .. } => {
                return self.on_transfer(message);
            }
            ToWorker::Released | ToWorker::Refuse { .. } => return,
        };
        if let Err(error) = result {
            self.drop_epoch(|running| running == epoch);
            self.prepared.take_if(|prepared| prepared.epoch() == epoch);
            self.fail(epoch, &error);
        }
    }

    fn acknowledge(&mut self) {
        self.acknowledgements.take().into_iter().for_each(&mut self.send);
    }

    fn fail(&mut self, epoch: Epoch, error: &EpochError) {
        self.acknowledge();
        if !error.is_abort() {
            tracing::warn!(%epoch, %error, "epoch failed");
            let (reason, missing) = (error.to_string(), error.missing());
            (self.send)(FromWorker::EpochFailed { epoch, reason, missing });
        }
    }

    fn drop_epoch(&mut self, which: impl Fn(Epoch) -> bool) {
        if self.epoch.take_if(|running| which(running.spec.epoch)).is_some() {
            self.constrained.forget_all();
            self.transfers.end_all();
        }
    }

    fn on_transfer(&mut self, message: ToWorker) {
        let mut sides = Sides {
            running: self.epoch.as_mut().map(RunningEpoch::side),
            prepared: self.prepared.as_mut().map(PreparedEpoch::side),
        };
        let failed = match message {
            ToWorker::SendCells(out) => self.transfers.send(&mut sides, out),
            ToWorker::ReceiveCells(cells) => self.transfers.receive(&mut sides, cells),
            ToWorker::EndTransfer { transfer } => {
                self.transfers.end(transfer, &mut sides);
                None
            }
            _ => None,
        };
        failed.into_iter().for_each(&mut self.send);
    }

    /// Opens an endpoint and tells it at once, so that loading happens while the coordinator collects the others.
    fn form(&mut self, spec: EpochSpec) -> Result<(), EpochError> {
        self.drop_epoch(|_| true);
        self.prepared = None;
        let epoch = spec.epoch;
        let Some(terms) = self.terms_of(epoch) else {
            return Ok(());
        };
        self.control
            .begin(epoch, terms.abort.clone(), Arc::clone(&terms.entered));
        let listening = self.listen(&spec)?;
        let load = self.backend.begin_epoch(&spec)?;
        self.meter.begin_epoch(&spec, &load);
        let books = RankBooks::new(&spec);
        self.epoch = Some(RunningEpoch {
            spec,
            listening: Some(listening),
            terms,
            collective: None,
            books,
            seals: BTreeMap::new(),
            inherited: None,
            load,
        });
        Ok(())
    }

    fn terms_of(&self, epoch: Epoch) -> Option<Terms> {
        let (abort, entered) = self.control.terms_of(epoch)?;
        Some(Terms {
            connect_deadline: self.config.connect_deadline,
            call_deadline: self.config.collective_deadline,
            abort,
            entered,
        })
    }

    /// Checks an epoch's plan, opens an endpoint for it and tells it.
    fn listen(&mut self, spec: &EpochSpec) -> Result<Listening, EpochError> {
        ShardPlan::from_shares(self.backend.layout(), spec.shares.clone())
            .map_err(|error| EpochError::Spec(error.to_string()))?;
        if spec.rank.0 as usize >= spec.shares.len() {
            return Err(EpochError::Spec(format!("rank {} of {}", spec.rank, spec.shares.len())));
        }
        let seat = Seat {
            nonce: EpochNonce(spec.nonce),
            rank: spec.rank.0 as usize,
            world_size: spec.shares.len(),
            listen_ip: self.config.listen_ip,
        };
        let (listening, endpoint) = Listening::prepare(spec.transport, seat)?;
        (self.send)(FromWorker::EndpointReady {
            epoch: spec.epoch,
            endpoint: endpoint.0,
        });
        Ok(listening.behind(self.peers.clone()))
    }

    /// Makes ready for an epoch beside the one that runs.
    fn prepare(&mut self, spec: EpochSpec) -> Result<(), EpochError> {
        self.prepared = None;
        let Some(terms) = self.terms_of(spec.epoch) else {
            return Ok(());
        };
        let notify = Arc::clone(self.notify.as_ref().ok_or_else(|| {
            let reason = "this rank has no way to be told when it is prepared";
            EpochError::Spec(reason.to_owned())
        })?);
        let listening = self.listen(&spec)?;
        self.backend.prepare_epoch(&spec)?;
        let preload = self.backend.preload(&spec);
        let beside = self.epoch.as_ref().map(|running| running.spec.epoch);
        let prepared = PreparedEpoch::start(spec, beside, listening, terms, preload, notify);
        self.prepared = Some(prepared.map_err(|error| EpochError::Spec(error.to_string()))?);
        Ok(())
    }

    /// The thread that prepares an epoch has come to its end.
    fn on_prepared(&mut self, outcome: PreparedOutcome) {
        let Some(prepared) = self
            .prepared
            .as_mut()
            .filter(|prepared| prepared.epoch() == outcome.epoch)
        else {
            return;
        };
        let epoch = outcome.epoch;
        match prepared.take(outcome) {
            Ok(load) => (self.send)(FromWorker::EpochReady { epoch, load }),
            Err(error) => {
                self.prepared = None;
                self.fail(epoch, &error.into());
            }
        }
    }

    /// The epoch that was prepared takes the place of the one that ran.
    fn switch(&mut self, epoch: Epoch, held: &[BlockId]) -> Result<(), EpochError> {
        let prepared = self.prepared.take_if(|prepared| prepared.epoch() == epoch);
        let Some((prepared, ready)) = prepared.and_then(PreparedEpoch::into_ready) else {
            return Err(EpochError::Spec(format!("epoch {epoch} begins and was not prepared")));
        };
        let PreparedEpoch {
            spec,
            beside,
            mut books,
            terms,
            ..
        } = prepared;
        if let Some(beside) = beside
            && self.epoch.as_ref().is_none_or(|running| running.spec.epoch != beside)
        {
            return Err(EpochError::Spec(format!(
                "epoch {epoch} begins after {beside} has failed here"
            )));
        }
        let mut inherited = None;
        if let Some(before) = self.epoch.take() {
            let heads = before.heads();
            let kept = intersection(&heads, &spec.shares[spec.rank.0 as usize].attention);
            books.inherit(&before.books, kept.len() as u32);
            let seals = before.seals;
            inherited = Some(Inherited { heads, seals });
        }
        self.transfers.close_all(epoch);
        let load = self.backend.switch_epoch(&spec, ready.preloaded, held)?;
        self.meter.begin_epoch(&spec, &load);
        self.control
            .begin(epoch, terms.abort.clone(), Arc::clone(&terms.entered));
        self.epoch = Some(RunningEpoch {
            spec,
            listening: None,
            terms,
            collective: Some(ready.collective),
            books,
            seals: BTreeMap::new(),
            inherited,
            load,
        });
        Ok(())
    }

    fn connect(&mut self, epoch: Epoch, endpoints: Vec<String>) -> Result<(), EpochError> {
        if let Some(prepared) = self.prepared.as_mut().filter(|prepared| prepared.epoch() == epoch) {
            prepared.connect(endpoints);
            return Ok(());
        }
        let Some(running) = self.epoch.as_mut().filter(|running| running.spec.epoch == epoch) else {
            return Ok(());
        };
        let Some(listening) = running.listening.take() else {
            return Ok(());
        };
        let endpoints: Vec<Endpoint> = endpoints.into_iter().map(Endpoint).collect();
        running.collective = Some(listening.connect(&endpoints, running.terms.clone())?);
        (self.send)(FromWorker::EpochReady {
            epoch,
            load: running.load,
        });
        Ok(())
    }

    fn step(&mut self, plan: &StepPlan) -> Result<(), EpochError> {
        // A step of an epoch that is over on this rank: the coordinator knows or will know.
        let Some(running) = self.epoch.as_mut().filter(|running| running.spec.epoch == plan.epoch) else {
            return Ok(());
        };
        if running.collective.is_none() {
            return Ok(());
        }
        let begun = Instant::now();
        let input = running.books.apply(plan)?;
        for block in &input.adopted {
            let came = self.transfers.take_sums(running.spec.epoch, *block);
            let seal = |head| {
                came.get(&head)
                    .copied()
                    .or_else(|| running.inherited.as_ref()?.seal(block.id, head))
            };
            let seals: Option<Vec<u32>> = running.heads().map(seal).collect();
            let seals = seals.unwrap_or_else(|| self.backend.checksums(block.id));
            running.seals.insert(block.id, seals);
        }
        let epoch = running.spec.epoch;
        let is_new = |block: &&BlockId| !self.transfers.has_checked(epoch, **block, &running.books);
        let unchecked = input.shared.iter().filter(is_new);
        check_seals(self.backend.as_ref(), &running.seals, unchecked)?;
        let collective = running.collective.as_deref_mut().expect("just seen");
        // A step without work only retires sequences; every rank sees it the same way.
        if !input.work.is_empty() {
            self.backend.forward(&input.work, collective, &mut self.forward)?;
        }
        for block in &input.filled {
            running.seals.insert(*block, self.backend.checksums(*block));
        }
        let scores = score(&self.forward.scored, collective)?;
        self.constrained.forget(&plan.retired);
        let masks = self.constrained.masks(input.work.iter().filter(|work| work.samples));
        let picked = sample(
            &mut self.sampler,
            &masks,
            self.backend.as_ref(),
            &input.work,
            &self.forward,
            collective,
        )?;
        let tokens: Vec<(SequenceId, TokenId)> = picked
            .iter()
            .map(|(sequence, picked)| (*sequence, picked.token()))
            .collect();
        running.books.commit(&tokens);
        self.control.note_step();
        let (epoch, step, rank) = (plan.epoch, plan.step, running.spec.rank);
        let times = step_times(begun, self.forward.reduce_us);
        self.meter.note_step(plan, rank, begun, times);
        if rank == Rank(0) {
            let output = step_output(plan, &input.work, scores, picked, &self.forward, times);
            let output = Some(output);
            (self.send)(FromWorker::StepDone { epoch, step, output });
        } else {
            self.acknowledgements.note_done(epoch, step);
        }
        Ok(())
    }
}

/// A sequence is about to start from what earlier steps left in these blocks: it must still be that.
fn check_seals<'a>(
    backend: &dyn Backend,
    seals: &BTreeMap<BlockId, Vec<u32>>,
    shared: impl Iterator<Item = &'a BlockId>,
) -> Result<(), EpochError> {
    for block in shared {
        let now = backend.checksums(*block);
        let then = &seals[block];
        if let Some(head) = (0..now.len()).find(|head| now.get(*head) != then.get(*head)) {
            return Err(EpochError::CorruptCell { block: *block, head });
        }
    }
    Ok(())
}

impl Picked {
    /// A poisoned sequence goes on with token 0 on the ranks until the coordinator retires it.
    fn token(&self) -> TokenId {
        match self {
            Self::Token(sampled) => sampled.token,
            Self::Poisoned => TokenId(0),
        }
    }
}

/// The tokens of all rows that sample, equal on every rank.
fn sample(
    sampler: &mut Sampler,
    masks: &[Result<Option<TokenMask>, ()>],
    backend: &dyn Backend,
    work: &[WorkInput],
    forward: &ForwardOutput,
    collective: &mut dyn Collective,
) -> Result<Vec<(SequenceId, Picked)>, CollectiveError> {
    let sampled = work.iter().zip(&forward.poisoned).filter(|(work, _)| work.samples);
    let rows: Vec<SampleRow<'_>> = sampled
        .zip(masks)
        .map(|((work, &poisoned), mask)| SampleRow {
            sequence: work.sequence,
            sampling: &work.sampling,
            seen: &work.seen,
            index: work.answer_index(),
            allowed: mask.as_ref().ok().and_then(Option::as_ref),
            poisoned: poisoned || mask.is_err(),
        })
        .collect();
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let units = backend.vocab_units();
    let share = |row: usize| LogitsShare {
        logits: &forward.logits[row],
        summaries: &forward.summaries[row * units.len()..][..units.len()],
        units,
    };
    let picked = sampler.sample(&rows, share, collective)?;
    Ok(rows.iter().map(|row| row.sequence).zip(picked).collect())
}

fn step_times(begun: Instant, reduce_us: u32) -> StepTimes {
    let total_us = begun.elapsed().as_micros() as u32;
    StepTimes {
        compute_us: total_us.saturating_sub(reduce_us),
        reduce_us,
        total_us,
    }
}

fn step_output(
    plan: &StepPlan,
    work: &[WorkInput],
    scores: Vec<Option<PromptLogprob>>,
    picked: Vec<(SequenceId, Picked)>,
    forward: &ForwardOutput,
    times: StepTimes,
) -> StepOutput {
    let mut poisoned: Vec<SequenceId> = work
        .iter()
        .zip(&forward.poisoned)
        .filter(|(_, poisoned)| **poisoned)
        .map(|(work, _)| work.sequence)
        .collect();
    let scored = scored_prompts(work, scores, &mut poisoned);
    let mut sampled = Vec::with_capacity(picked.len());
    for (sequence, picked) in picked {
        match picked {
            Picked::Token(token) => sampled.push(token),
            Picked::Poisoned if !poisoned.contains(&sequence) => poisoned.push(sequence),
            Picked::Poisoned => {}
        }
    }
    StepOutput {
        epoch: plan.epoch,
        step: plan.step,
        sampled,
        scored,
        poisoned,
        times,
    }
}

/// By sequence. One with a score that is not finite is poisoned.
fn scored_prompts(
    work: &[WorkInput],
    scores: Vec<Option<PromptLogprob>>,
    poisoned: &mut Vec<SequenceId>,
) -> Vec<ScoredPrompt> {
    let mut scores = scores.into_iter();
    let mut scored = Vec::new();
    for work in work.iter().filter(|work| !work.targets.is_empty()) {
        let logprobs: Option<Vec<PromptLogprob>> = scores.by_ref().take(work.targets.len()).collect();
        match logprobs {
            Some(logprobs) => scored.push(ScoredPrompt {
                sequence: work.sequence,
                start: work.scored.start,
                logprobs,
            }),
            None if !poisoned.contains(&work.sequence) => poisoned.push(work.sequence),
            None => {}
        }
    }
    scored
}

#[cfg(test)]
pub(crate) mod tests;
