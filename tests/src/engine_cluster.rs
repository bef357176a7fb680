//! The coordinator's own machine and real ranks in one process: its effects go to the ranks' threads, what they answer
//! comes back as events. Nobody may be lost here, and after each event the books must balance.
//!
//! Its clock moves with the events and no tick ever comes, so nothing depends on how fast the ranks are. When several
//! ranks have answered, chance takes one of them: some ranks' acknowledgements come late.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use kvasir_coordinator::{
    Cluster, ClusterConfig, ClusterStatus, Effect, Event, Now, SequenceError, SessionId, Usage, status::GroupStatus,
};
use kvasir_kv::{
    Epoch, FinishReason, FromWorker, NumericsId, PromptLogprob, Rank, Request, SampledToken, SequenceId, StepPlan,
    ToWorker, WorkerId, WorkerInfo,
};
use kvasir_model::{BackendKind, Checkpoint, WeightMode, numerics_id};
use kvasir_worker::rank::{RankConfig, RankControl, RankInput, RankWorker};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};

use crate::{
    rank_group::{Answer, GroupOptions, backend},
    sim::checks::PlanWatch,
};

/// No step of these models takes nearly as long, on however busy a machine.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
const TIME_PER_EVENT: Duration = Duration::from_micros(1);

/// How a cluster is built. All of it must leave the bits alone.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    pub config: ClusterConfig,
    /// Of each rank.
    pub threads: usize,
    /// Draws whose answer is taken first.
    pub seed: u64,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Ending {
    Finished { reason: FinishReason, usage: Usage },
    Failed(SequenceError),
}

/// What became of a request.
#[derive(Clone, PartialEq, Debug)]
pub struct Served {
    pub request: Request,
    pub answer: Answer,
    pub ending: Option<Ending>,
    /// How often the ranks were told of it: once, and again after each preemption.
    pub admissions: u32,
    /// Those of them after tokens of its answer.
    pub resumptions: u32,
    /// Its parts of plans that left some of its prompt to a later one.
    pub chunks: u32,
}

#[allow(missing_debug_implementations)] // threads and channels, never printed
pub struct EngineCluster {
    cluster: Cluster,
    /// As of the last event.
    status: ClusterStatus,
    now: Duration,
    /// By session.
    ranks: Vec<RankThread>,
    from_ranks: Receiver<(usize, FromWorker)>,
    /// Answers that are here and not yet taken, by session.
    answers: Vec<VecDeque<FromWorker>>,
    random: ChaCha8Rng,
    /// A second opinion on every plan.
    watch: Option<PlanWatch>,
    is_serving: bool,
    served: BTreeMap<SequenceId, Served>,
    /// Tokens delivered, all sequences together.
    tokens: u64,
}

struct RankThread {
    inbox: Sender<RankInput>,
    control: Arc<RankControl>,
    thread: JoinHandle<()>,
    steps_sent: u64,
    steps_acknowledged: u64,
}

impl EngineCluster {
    /// Starts as many ranks as the configuration wants, and returns when they serve.
    pub fn start(checkpoint: &Arc<Checkpoint>, options: EngineOptions) -> Self {
        let EngineOptions { config, threads, seed } = options;
        let layout = checkpoint
            .unit_layout(WeightMode::File)
            .expect("a model that is served");
        let (to_us, from_ranks) = channel();
        let ranks: Vec<RankThread> = (0..config.workers_wanted() as usize)
            .map(|session| {
                let to_us = to_us.clone();
                let answer = move |message| drop(to_us.send((session, message)));
                RankThread::start(checkpoint, &config, threads, answer)
            })
            .collect();
        let kv_dtype = config.cell.dtype();
        let content = checkpoint.content_hash();
        let numerics = numerics_id(&content, BackendKind::Canonical, kv_dtype, WeightMode::File);
        let infos: Vec<WorkerInfo> = (0..ranks.len())
            .map(|session| worker_info(session, &config, numerics))
            .collect();
        let mut engine = Self {
            cluster: Cluster::new(config, layout),
            status: ClusterStatus::default(),
            now: Duration::ZERO,
            answers: vec![VecDeque::new(); ranks.len()],
            ranks,
            from_ranks,
            random: ChaCha8Rng::seed_from_u64(seed),
            watch: None,
            is_serving: false,
            served: BTreeMap::new(),
            tokens: 0,
        };
        for (session, info) in (0..).map(SessionId).zip(infos) {
            engine.on(Event::WorkerJoined { session, info });
        }
        while !engine.is_serving {
            engine.wait();
        }
        engine
    }

    /// `sequence` is fresh.
    pub fn submit(&mut self, sequence: SequenceId, request: Request) {
        let served = Served {
            request: request.clone(),
            answer: Answer::default(),
            ending: None,
            admissions: 0,
            resumptions: 0,
            chunks: 0,
        };
        assert!(
            self.served.insert(sequence, served).is_none(),
            "{sequence} is not fresh"
        );
        let deadline = None;
        self.on(Event::Submit {
            sequences: vec![sequence],
            request,
            deadline,
        });
    }

    /// Its client goes away.
    pub fn cancel(&mut self, sequence: SequenceId) {
        let reason = FinishReason::Cancelled;
        self.on(Event::Cancel { sequence, reason });
    }

    /// Hands one answer of a rank to the coordinator. Panics with the status if none comes for a long time.
    pub fn wait(&mut self) {
        while let Ok((session, message)) = self.from_ranks.try_recv() {
            self.answers[session].push_back(message);
        }
        if self.answers.iter().all(VecDeque::is_empty) {
            let received = self.from_ranks.recv_timeout(ANSWER_DEADLINE);
            let Ok((session, message)) = received else {
                panic!("no rank answers for {ANSWER_DEADLINE:?}: {:#?}", self.status);
            };
            self.answers[session].push_back(message);
        }
        let (session, message) = self.take_answer();
        self.note_answer(session, &message);
        let session = SessionId(session as u64);
        self.on(Event::FromWorker { session, message });
    }

    /// Waits until every rank has done every step.
    pub fn settle(&mut self) {
        while self.ranks.iter().any(|rank| rank.steps_acknowledged < rank.steps_sent) {
            self.wait();
        }
    }

    pub fn status(&self) -> &ClusterStatus {
        &self.status
    }

    pub fn group(&self) -> &GroupStatus {
        &self.status.groups[0]
    }

    /// Panics if it was never submitted.
    pub fn served(&self, sequence: SequenceId) -> &Served {
        &self.served[&sequence]
    }

    pub fn all_served(&self) -> impl Iterator<Item = &Served> {
        self.served.values()
    }

    /// Tokens delivered, all sequences together.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// True if it lives and holds no blocks.
    pub fn is_waiting(&self, sequence: SequenceId) -> bool {
        let mut live = self.status.sequences.iter();
        live.any(|status| status.sequence == sequence && !status.running)
    }

    fn take_answer(&mut self) -> (usize, FromWorker) {
        let draw = self.random.next_u32() as usize;
        let mut ready = (0..self.answers.len()).filter(|session| !self.answers[*session].is_empty());
        let num_ready = ready.clone().count();
        let session = ready.nth(draw % num_ready).expect("an answer is here");
        let message = self.answers[session].pop_front().expect("an answer is here");
        (session, message)
    }

    fn note_answer(&mut self, session: usize, message: &FromWorker) {
        if let FromWorker::StepDone { step, .. } = message {
            let watch = self.watch.as_mut().expect("an epoch was formed");
            let rank = Rank(session as u32);
            watch.hear(rank, message);
            watch.see(rank, step.0 + 1);
            // And all before it.
            self.ranks[session].steps_acknowledged = step.0 + 1;
        }
    }

    fn on(&mut self, event: Event) {
        self.now += TIME_PER_EVENT;
        for effect in self.cluster.on(event, Now(self.now)) {
            self.carry_out(effect);
        }
        self.cluster.check_invariants();
        self.status = self.cluster.status();
        for group in &self.status.groups {
            assert_eq!(group.blocks.unaccounted(), 0, "{group:?}");
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Send { session, message } => self.send(session.0 as usize, message),
            Effect::Token { sequence, index, token } => self.deliver(sequence, index, token),
            Effect::PromptLogprobs {
                sequence,
                position,
                logprobs,
            } => self.deliver_scores(sequence, position, logprobs),
            Effect::Finished {
                sequence,
                reason,
                usage,
            } => self.end(sequence, Ending::Finished { reason, usage }),
            Effect::Failed { sequence, error } => self.end(sequence, Ending::Failed(error)),
            Effect::EpochStarted { .. } => self.is_serving = true,
            other => panic!("nobody was to be lost: {other:?}"),
        }
    }

    fn send(&mut self, session: usize, message: ToWorker) {
        match &message {
            ToWorker::FormEpoch(spec) => self.watch = Some(PlanWatch::new(spec)),
            ToWorker::Step(plan) => {
                self.ranks[session].steps_sent += 1;
                // All ranks get the same.
                if session == 0 {
                    self.note_plan(plan);
                }
            }
            _ => {}
        }
        let sent = self.ranks[session].inbox.send(RankInput::FromCoordinator(message));
        sent.expect("a rank lives as long as its inbox");
    }

    fn note_plan(&mut self, plan: &StepPlan) {
        let watch = self.watch.as_mut().expect("an epoch was formed");
        let tenant_of = |sequence: SequenceId| self.served[&sequence].request.tenant.clone();
        if let Err(broken) = watch.check(plan, self.cluster.config(), tenant_of) {
            panic!("step {}: {broken}", plan.step);
        }
        for admitted in &plan.admitted {
            let served = self.served.get_mut(&admitted.sequence).expect("it was submitted");
            let told = admitted.tokens.len() - served.request.prompt.len();
            let known = served.answer.tokens.len();
            assert_eq!(
                told, known,
                "answer tokens in step {} of {}",
                plan.step, admitted.sequence
            );
            served.admissions += 1;
            served.resumptions += u32::from(told > 0);
        }
        for work in &plan.work {
            let served = self.served.get_mut(&work.sequence).expect("it was submitted");
            let leaves_some = work.start + work.num_tokens < served.request.prompt.len() as u32;
            served.chunks += u32::from(leaves_some);
        }
    }

    fn deliver(&mut self, sequence: SequenceId, index: u32, token: SampledToken) {
        let served = self.served.get_mut(&sequence).expect("it was submitted");
        assert_eq!(served.ending, None, "a token after the end of {sequence}");
        assert_eq!(index as usize, served.answer.tokens.len(), "token index of {sequence}");
        served.answer.tokens.push(token.token);
        served.answer.logprobs.push(token.logprob);
        served.answer.top_logprobs.push(token.top_logprobs);
        self.tokens += 1;
    }

    fn deliver_scores(&mut self, sequence: SequenceId, position: u32, logprobs: Vec<PromptLogprob>) {
        let served = self.served.get_mut(&sequence).expect("it was submitted");
        assert_eq!(
            served.ending, None,
            "logprobs of the prompt after the end of {sequence}"
        );
        let answer = &mut served.answer;
        assert!(
            answer.tokens.is_empty(),
            "logprobs of the prompt after a token of {sequence}"
        );
        assert_eq!(position as usize, answer.prompt_logprobs.len() + 1, "of {sequence}");
        answer.prompt_logprobs.extend(logprobs);
    }

    fn end(&mut self, sequence: SequenceId, ending: Ending) {
        let served = self.served.get_mut(&sequence).expect("it was submitted");
        assert_eq!(served.ending.replace(ending), None, "{sequence} ends twice");
    }
}

impl Drop for EngineCluster {
    fn drop(&mut self) {
        let last = Epoch {
            term: u64::MAX,
            number: u64::MAX,
        };
        for rank in &self.ranks {
            // After a failure some may wait for others in a collective.
            rank.control.abort(last);
        }
        for RankThread { inbox, thread, .. } in self.ranks.drain(..) {
            drop(inbox);
            let joined = thread.join();
            assert!(joined.is_ok() || std::thread::panicking(), "a rank panicked");
        }
    }
}

impl RankThread {
    fn start(
        checkpoint: &Arc<Checkpoint>,
        config: &ClusterConfig,
        threads: usize,
        answer: impl FnMut(FromWorker) + Send + 'static,
    ) -> Self {
        let options = GroupOptions {
            threads,
            block_size: config.cell.block_size(),
            kv_dtype: config.cell.dtype(),
            ..GroupOptions::default()
        };
        let backend = backend(checkpoint, &options);
        let control = Arc::new(RankControl::default());
        let (inbox, messages) = channel();
        let rank_config = RankConfig::new(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let its_control = Arc::clone(&control);
        let run = move || RankWorker::new(rank_config, backend, its_control, answer).run(&messages);
        Self {
            inbox,
            control,
            thread: std::thread::spawn(run),
            steps_sent: 0,
            steps_acknowledged: 0,
        }
    }
}

/// They share this process, and have room for any pool.
fn worker_info(session: usize, config: &ClusterConfig, numerics_id: NumericsId) -> WorkerInfo {
    WorkerInfo {
        id: WorkerId(format!("w{session}")),
        pid: std::process::id(),
        address: "127.0.0.1".to_owned(),
        host: "here".to_owned(),
        numerics_id,
        term_max: 0,
        weight: 1.0,
        threads: 1,
        backend: BackendKind::Canonical.name().to_owned(),
        kv_memory_bytes: 1 << 40,
        block_size: config.cell.block_size(),
        kv_dtype: config.cell.dtype(),
        transfer_address: String::new(),
    }
}
