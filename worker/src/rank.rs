//! One rank: takes what the coordinator says, one message after the other, and answers.
//!
//! It runs on a thread of its own and blocks in collectives. Whoever holds its [`RankControl`] can abort an epoch and
//! read the progress meanwhile. A failed epoch is over; the rank waits for the next one.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::Receiver,
    },
    time::{Duration, Instant},
};

use kvasir_kv::{
    BlockId, CORRUPT_CELL, Epoch, EpochSpec, FromWorker, LoadReport, Progress, PromptLogprob, Rank, ScoredPrompt,
    SequenceId, ShardPlan, StepOutput, StepPlan, StepTimes, ToWorker, TokenId,
};

use crate::{
    backend::{Backend, BackendError, ForwardOutput},
    collective::{Abort, Collective, CollectiveError, Endpoint, EpochNonce, Listening, Seat, Terms},
    rank_books::{RankBooks, WorkInput},
    sampler::{LogitsShare, Picked, SampleRow, Sampler},
    scorer::score,
};

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

/// What others may do to a rank while it works.
#[derive(Debug, Default)]
pub struct RankControl {
    state: Mutex<ControlState>,
    steps_done: AtomicU64,
    entered: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct ControlState {
    epoch: Epoch,
    abort: Option<Abort>,
    /// No epoch up to this one may begin or go on.
    aborted: Option<Epoch>,
    term_max: u64,
}

impl RankControl {
    /// Ends `epoch` and all before it, also if the rank has not heard of it yet. Waiting collectives return soon.
    pub fn abort(&self, epoch: Epoch) {
        let mut state = self.lock();
        state.aborted = state.aborted.max(Some(epoch));
        if state.epoch <= epoch
            && let Some(abort) = &state.abort
        {
            abort.abort();
        }
    }

    pub fn progress(&self) -> Progress {
        let epoch = self.lock().epoch;
        let steps_done = self.steps_done.load(Ordering::Relaxed);
        Progress {
            epoch,
            steps_done,
            collectives_entered: self.entered.load(Ordering::Relaxed),
        }
    }

    /// Highest term that this worker has obeyed.
    pub fn term_max(&self) -> u64 {
        self.lock().term_max
    }

    /// None if the epoch was aborted already, or is not newer than the last one.
    fn begin(&self, epoch: Epoch) -> Option<Abort> {
        let mut state = self.lock();
        if state.aborted.is_some_and(|aborted| epoch <= aborted) {
            return None;
        }
        let abort = Abort::new();
        state.epoch = epoch;
        state.term_max = state.term_max.max(epoch.term);
        state.abort = Some(abort.clone());
        self.steps_done.store(0, Ordering::Relaxed);
        self.entered.store(0, Ordering::Relaxed);
        Some(abort)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ControlState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

/// An epoch that has begun; without a collective it waits for its peers' endpoints.
struct RunningEpoch {
    spec: EpochSpec,
    listening: Option<Listening>,
    terms: Terms,
    collective: Option<Box<dyn Collective>>,
    books: RankBooks,
    /// Checksums of full blocks, taken when they were filled.
    seals: BTreeMap<BlockId, Vec<u32>>,
    load: LoadReport,
}

#[allow(missing_debug_implementations)] // a thread's state, never printed
pub struct RankWorker<F> {
    config: RankConfig,
    backend: Box<dyn Backend>,
    control: Arc<RankControl>,
    send: F,
    epoch: Option<RunningEpoch>,
    sampler: Sampler,
    forward: ForwardOutput,
}

impl<F: FnMut(FromWorker)> RankWorker<F> {
    /// `send` takes the answers; it may block, and may drop them once nobody listens.
    pub fn new(config: RankConfig, backend: Box<dyn Backend>, control: Arc<RankControl>, send: F) -> Self {
        let (sampler, forward) = Default::default();
        Self {
            config,
            backend,
            control,
            send,
            epoch: None,
            sampler,
            forward,
        }
    }

    /// Works until the sender of `inbox` is dropped.
    pub fn run(mut self, inbox: &Receiver<ToWorker>) {
        for message in inbox {
            self.on(message);
        }
    }

    fn on(&mut self, message: ToWorker) {
        let (epoch, result) = match message {
            ToWorker::FormEpoch(spec) => (spec.epoch, self.form(spec)),
            ToWorker::ConnectEpoch { epoch, endpoints } => (epoch, self.connect(epoch, endpoints)),
            ToWorker::Step(plan) => (plan.epoch, self.step(&plan)),
            ToWorker::AbortEpoch { epoch } => {
                self.control.abort(epoch);
                self.epoch.take_if(|running| running.spec.epoch <= epoch);
                return;
            }
            ToWorker::Refuse { .. } => return,
        };
        if let Err(error) = result {
            self.epoch.take_if(|running| running.spec.epoch == epoch);
            if !error.is_abort() {
                tracing::warn!(%epoch, %error, "epoch failed");
                let (reason, missing) = (error.to_string(), error.missing());
                (self.send)(FromWorker::EpochFailed { epoch, reason, missing });
            }
        }
    }

    /// Opens an endpoint and tells it at once, so that loading happens while the coordinator collects the others.
    fn form(&mut self, spec: EpochSpec) -> Result<(), EpochError> {
        self.epoch = None;
        let epoch = spec.epoch;
        let Some(abort) = self.control.begin(epoch) else {
            return Ok(());
        };
        ShardPlan::from_shares(self.backend.layout(), spec.shares.clone())
            .map_err(|error| EpochError::Spec(error.to_string()))?;
        if spec.rank.0 as usize >= spec.shares.len() {
            return Err(EpochError::Spec(format!("rank {} of {}", spec.rank, spec.shares.len())));
        }
        let terms = Terms {
            connect_deadline: self.config.connect_deadline,
            call_deadline: self.config.collective_deadline,
            abort,
            entered: Arc::clone(&self.control.entered),
        };
        let seat = Seat {
            nonce: EpochNonce(spec.nonce),
            rank: spec.rank.0 as usize,
            world_size: spec.shares.len(),
            listen_ip: self.config.listen_ip,
        };
        let (listening, endpoint) = Listening::prepare(spec.transport, seat)?;
        (self.send)(FromWorker::EndpointReady {
            epoch,
            endpoint: endpoint.0,
        });
        let load = self.backend.begin_epoch(&spec)?;
        let books = RankBooks::new(&spec);
        self.epoch = Some(RunningEpoch {
            spec,
            listening: Some(listening),
            terms,
            collective: None,
            books,
            seals: BTreeMap::new(),
            load,
        });
        Ok(())
    }

    fn connect(&mut self, epoch: Epoch, endpoints: Vec<String>) -> Result<(), EpochError> {
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
        let Some(collective) = running.collective.as_deref_mut() else {
            return Ok(());
        };
        let begun = Instant::now();
        let input = running.books.apply(plan)?;
        check_seals(self.backend.as_ref(), &running.seals, &input.shared)?;
        // A step without work only retires sequences; every rank sees it the same way.
        if !input.work.is_empty() {
            self.backend.forward(&input.work, collective, &mut self.forward)?;
        }
        for block in &input.filled {
            running.seals.insert(*block, self.backend.checksums(*block));
        }
        let scores = score(&self.forward.scored, collective)?;
        let picked = sample(
            &mut self.sampler,
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
        self.control.steps_done.fetch_add(1, Ordering::Relaxed);
        let first = running.spec.rank == Rank(0);
        let output = first.then(|| step_output(plan, &input.work, scores, picked, &self.forward, begun));
        (self.send)(FromWorker::StepDone {
            epoch: plan.epoch,
            step: plan.step,
            output,
        });
        Ok(())
    }
}

/// A sequence is about to start from what earlier steps left in these blocks: it must still be that.
fn check_seals(
    backend: &dyn Backend,
    seals: &BTreeMap<BlockId, Vec<u32>>,
    shared: &[BlockId],
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
    backend: &dyn Backend,
    work: &[WorkInput],
    forward: &ForwardOutput,
    collective: &mut dyn Collective,
) -> Result<Vec<(SequenceId, Picked)>, CollectiveError> {
    let sampled = work.iter().zip(&forward.poisoned).filter(|(work, _)| work.samples);
    let rows: Vec<SampleRow<'_>> = sampled
        .map(|(work, &poisoned)| SampleRow {
            sequence: work.sequence,
            sampling: &work.sampling,
            seen: &work.seen,
            index: work.answer_index(),
            poisoned,
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

fn step_output(
    plan: &StepPlan,
    work: &[WorkInput],
    scores: Vec<Option<PromptLogprob>>,
    picked: Vec<(SequenceId, Picked)>,
    forward: &ForwardOutput,
    begun: Instant,
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
    let total_us = begun.elapsed().as_micros() as u32;
    let times = StepTimes {
        compute_us: total_us.saturating_sub(forward.reduce_us),
        reduce_us: forward.reduce_us,
        total_us,
    };
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
mod tests {
    use std::{net::Ipv4Addr, sync::mpsc::channel};

    use kvasir_kv::{
        AdmittedSequence, BlockTag, GroupId, HeadLayout, ModelShape, Sampling, SequenceWork, StepId, TaggedBlock,
        Transport, UnitBytes, UnitLayout,
    };

    use super::*;
    use crate::sampler::UnitRows;

    /// Its cells hold one number, which a test may change behind its back.
    struct OneCell {
        layout: UnitLayout,
        content: Arc<AtomicU64>,
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

        fn checksums(&self, _: BlockId) -> Vec<u32> {
            vec![7, self.content.load(Ordering::Relaxed) as u32]
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

    #[test]
    fn a_cell_that_changed_since_it_was_filled_ends_the_epoch_and_not_in_a_wrong_answer() {
        let content = Arc::new(AtomicU64::new(1));
        let backend = OneCell {
            layout: layout(),
            content: Arc::clone(&content),
        };
        let plan = ShardPlan::balance(backend.layout(), &[kvasir_kv::RankCapacity::default()], 0).unwrap();
        let (send, answers) = channel();
        let config = RankConfig::new(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let mut rank = RankWorker::new(config, Box::new(backend), Arc::default(), move |message| {
            send.send(message).unwrap();
        });
        let epoch = Epoch { term: 1, number: 1 };
        rank.on(ToWorker::FormEpoch(EpochSpec {
            group: GroupId(0),
            epoch,
            rank: Rank(0),
            transport: Transport::Solo,
            nonce: 1,
            shares: plan.shares().to_vec(),
            num_blocks: 8,
            block_size: 16,
            step_tokens_max: 64,
        }));
        let Ok(FromWorker::EndpointReady { endpoint, .. }) = answers.recv() else {
            panic!("no endpoint");
        };
        let endpoints = vec![endpoint];
        rank.on(ToWorker::ConnectEpoch { epoch, endpoints });
        assert!(matches!(answers.recv(), Ok(FromWorker::EpochReady { .. })));

        // Sequence 0 fills block 0; the others start after it.
        let step = |sequence: u64| {
            let block = |id: u64| TaggedBlock {
                id: BlockId(id as u32),
                tag: BlockTag(1),
            };
            let (start, num_tokens) = if sequence == 0 { (0, 16) } else { (16, 3) };
            let new_blocks = [0, sequence].into_iter().take(1 + sequence.min(1) as usize);
            ToWorker::Step(StepPlan {
                epoch,
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
            })
        };
        for sequence in [0, 1] {
            rank.on(step(sequence));
            assert!(matches!(answers.recv(), Ok(FromWorker::StepDone { .. })));
        }
        content.store(2, Ordering::Relaxed);
        rank.on(step(2));
        let Ok(FromWorker::EpochFailed { reason, missing, .. }) = answers.recv() else {
            panic!("a changed cell was used");
        };
        assert!(reason.starts_with(CORRUPT_CELL) && missing.is_empty(), "{reason}");
        assert!(reason.contains("block 0 of local KV head 1"), "{reason}");
    }
}
