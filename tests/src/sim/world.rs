//! Virtual time and everything in it: events happen in order of time, then in the order in which they were caused.

use std::{collections::BTreeMap, time::Duration};

use kvasir_coordinator::{Cluster, Effect, Event, Now, SessionId};
use kvasir_kv::{Epoch, EpochSpec, FromWorker, GroupId, NumericsId, Rank, StepPlan, ToWorker, WorkerId};

use super::{
    clients::{self, Client},
    dice::Dice,
    faults::Fault,
    forgery::Forgery,
    lives::Lives,
    network::Network,
    plant::Plant,
    rank::{Inside, Meeting, SimWorker},
    report::Report,
    scenario::{MS, SECOND, Scenario},
    status_watch::StatusWatch,
};

/// Virtual time that a run may take once all is well again.
const CALM_MAX: u64 = 240 * SECOND;
/// How long nothing must be left over before the end.
const QUIET: u64 = 3 * SECOND;

#[derive(Clone, Debug)]
pub(super) enum Happening {
    Tick,
    /// Something reaches the coordinator over a connection.
    Arrive {
        session: SessionId,
        event: Event,
    },
    /// The coordinator notices that a connection is broken.
    NoticeGone {
        session: SessionId,
        coordinator_life: u32,
    },
    /// Something reaches a worker; `None` is the end of the connection.
    Reach {
        worker: usize,
        life: u32,
        session: SessionId,
        message: Option<ToWorker>,
    },
    Inside {
        worker: usize,
        life: u32,
        what: Inside,
    },
    Submit(usize),
    Cancel(usize),
    Stop(usize, u32),
    /// An operator moves somebody's request.
    Migrate,
    /// An operator gives a group other ranks.
    Reshard,
    Fault(Fault),
    CoordinatorWakes(u32),
}

#[derive(Debug)]
pub(super) struct World {
    pub now: u64,
    pub dice: Dice,
    pub scenario: Scenario,
    pub plant: Option<Plant>,
    pub workers: Vec<SimWorker>,
    pub network: Network,
    /// By epoch and nonce: a cluster of new processes only may count its epochs from the start again.
    pub meetings: BTreeMap<(Epoch, u64), Meeting>,
    pub clients: Vec<Client>,
    pub coordinator_life: u32,
    pub report: Report,
    pub runs: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    causes: u64,
    cluster: Cluster,
    /// What came while the coordinator's process was stopped.
    inbox: Vec<Event>,
    asleep: bool,
    awake_since: u64,
    pub lives: Lives,
    status: StatusWatch,
    pub forgery: Forgery,
    violation: Option<String>,
    tracing: bool,
}

impl World {
    pub fn new(seed: u64, plant: Option<Plant>, tracing: bool) -> Self {
        let mut dice = Dice::new(seed);
        let mut scenario = Scenario::draw(&mut dice).with_migrations(seed);
        if plant == Some(Plant::LateCell) {
            scenario.bad_cells *= 3;
        }
        let num_hosts = scenario.num_hosts;
        let worker = |index| SimWorker::new(index, index as u64 % num_hosts);
        let mut workers: Vec<SimWorker> = (0..scenario.num_workers as usize).map(worker).collect();
        if scenario.misfit {
            let mut misfit = worker(workers.len());
            misfit.numerics = NumericsId([8; 16]);
            workers.push(misfit);
        }
        let documents = clients::draw_documents(&mut dice, &scenario);
        let clients = (0..scenario.num_requests)
            .map(|index| Client::draw(&mut dice, &scenario, &documents, index))
            .collect();
        Self {
            now: 0,
            cluster: Cluster::new(scenario.config.clone(), scenario.layout.clone()),
            dice,
            scenario,
            plant,
            workers,
            network: Network::default(),
            meetings: BTreeMap::new(),
            clients,
            coordinator_life: 0,
            report: Report::default(),
            runs: 0,
            queue: BTreeMap::new(),
            causes: 0,
            inbox: Vec::new(),
            asleep: false,
            awake_since: 0,
            lives: Lives::since(0),
            status: StatusWatch::default(),
            forgery: Forgery::default(),
            violation: None,
            tracing,
        }
    }

    pub fn run(mut self) -> Result<Report, String> {
        self.begin();
        let mut busy_at = 0;
        while let Some(((at, _), happening)) = self.queue.pop_first() {
            self.now = at;
            self.happen(happening);
            if let Some(what) = self.violation.take() {
                return Err(format!("at {} ms: {what}", self.now / MS));
            }
            if self.now < self.scenario.calm_after || !self.is_clean() {
                busy_at = self.now;
            } else if self.now - busy_at > QUIET {
                self.count();
                return Ok(self.report);
            }
            if self.now > self.scenario.calm_after + CALM_MAX {
                let left = self.clients.iter().filter(|client| !client.ended).count();
                return Err(format!("{left} requests hang: {:?}", self.cluster.status()));
            }
        }
        Err("nothing happens any more".to_owned())
    }

    fn begin(&mut self) {
        self.trace(|| String::from("begin"));
        if self.tracing {
            eprintln!("{:?}", self.scenario);
        }
        for worker in 0..self.workers.len() {
            self.boot(worker);
        }
        for client in 0..self.clients.len() {
            let at = self.dice.between(0, self.scenario.submit_within);
            self.schedule(at, Happening::Submit(client));
        }
        for _ in 0..self.scenario.num_migrations {
            let at = self.dice.between(0, self.scenario.calm_after + SECOND);
            self.schedule(at, Happening::Migrate);
        }
        for _ in 0..self.scenario.num_reshards {
            let at = self.dice.between(0, self.scenario.calm_after);
            self.schedule(at, Happening::Reshard);
        }
        self.plan_faults();
        self.schedule(0, Happening::Tick);
    }

    /// Nobody waits, every group serves, and every block has come back.
    fn is_clean(&self) -> bool {
        if self.clients.iter().any(|client| !client.ended) {
            return false;
        }
        let status = self.cluster.status();
        let mut blocks = status.groups.iter().map(|group| group.blocks);
        let mut groups = blocks.clone();
        // An operator may have given one group so many workers that another cannot form.
        let serve = match self.scenario.num_reshards {
            0 => groups.all(|blocks| blocks.total > 0),
            _ => groups.any(|blocks| blocks.total > 0),
        };
        serve && blocks.all(|blocks| blocks.available() == blocks.total) && status.sequences.is_empty()
    }

    fn count(&mut self) {
        self.report.counters.add(&self.cluster.status().counters);
    }

    pub(super) fn pause_coordinator(&mut self, duration: u64) {
        if !self.asleep {
            self.asleep = true;
            let life = self.coordinator_life;
            self.schedule(self.now + duration, Happening::CoordinatorWakes(life));
        }
    }

    fn wake_coordinator(&mut self) {
        self.asleep = false;
        self.awake_since = self.now;
        let mut missed = std::mem::take(&mut self.inbox);
        // Timers may come before what lay in the sockets.
        if self.dice.chance(50) {
            missed.sort_by_key(|event| *event != Event::Tick);
        }
        for event in missed {
            self.coordinate(event);
        }
    }

    /// The process ends; another one takes its place and knows nothing.
    pub(super) fn coordinator_dies(&mut self) {
        self.count();
        self.coordinator_life += 1;
        let mut config = self.scenario.config.clone();
        config.nonce_seed = u64::from(self.coordinator_life);
        self.cluster = Cluster::new(config, self.scenario.layout.clone());
        self.inbox.clear();
        self.asleep = false;
        self.awake_since = self.now;
        self.lives = Lives::since(self.now);
        self.status = StatusWatch::default();
        for worker in 0..self.workers.len() {
            self.taint(worker, 0);
        }
        self.coordinator_vanishes();
        self.resubmit_all();
    }

    pub(super) fn schedule(&mut self, at: u64, happening: Happening) {
        self.causes += 1;
        self.queue.insert((at, self.causes), happening);
    }

    pub(super) fn violation(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    fn insist(&mut self, promise: Result<(), String>) {
        if let Err(what) = promise {
            self.violation(what);
        }
    }

    pub(super) fn trace(&self, what: impl Fn() -> String) {
        if self.tracing {
            eprintln!("{:>9.3} ms  {}", self.now as f64 / MS as f64, what());
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Tick => {
                self.coordinate(Event::Tick);
                let interval = self.scenario.config.tick_interval.as_micros() as u64;
                self.schedule(self.now + interval, Happening::Tick);
            }
            Happening::Arrive { session, event } => {
                if self.link_carries(session) {
                    self.arrive(session, event);
                }
            }
            Happening::NoticeGone {
                session,
                coordinator_life,
            } => {
                if coordinator_life == self.coordinator_life {
                    self.coordinate(Event::WorkerGone { session });
                }
            }
            Happening::Reach { worker, life, .. } | Happening::Inside { worker, life, .. } => {
                self.at_worker(worker, life, happening);
            }
            Happening::Submit(client) => self.submit(client),
            Happening::Cancel(client) => self.cancel(client),
            Happening::Stop(client, last_index) => self.stop(client, last_index),
            Happening::Migrate => self.migrate(),
            Happening::Reshard => self.reshard(),
            Happening::Fault(fault) => self.strike(fault),
            Happening::CoordinatorWakes(life) => {
                if life == self.coordinator_life {
                    self.wake_coordinator();
                }
            }
        }
    }

    fn at_worker(&mut self, w: usize, life: u32, happening: Happening) {
        let worker = &mut self.workers[w];
        if worker.life != life || !worker.alive {
            return;
        }
        if worker.paused {
            worker.deferred.push(happening);
            return;
        }
        match happening {
            // The end of a connection is noticed even where its tail was lost.
            Happening::Reach { session, message, .. } if message.is_none() || self.link_carries(session) => {
                self.worker_receives(w, session, message);
            }
            Happening::Inside { what, .. } => self.inside_worker(w, what),
            _ => {}
        }
    }

    fn arrive(&mut self, session: SessionId, event: Event) {
        if let Event::FromWorker { message, .. } = &event {
            let is_output = matches!(message, FromWorker::StepDone { output: Some(_), .. });
            if self.plant == Some(Plant::WakeUpLost) && is_output && self.take_plant(5) {
                return;
            }
        }
        if let Event::WorkerGone { .. } = event {
            self.cut(session);
        }
        self.coordinate(event);
    }

    pub(super) fn coordinate(&mut self, event: Event) {
        if self.asleep {
            self.inbox.push(event);
            return;
        }
        if let Event::FromWorker { session, message } = &event {
            self.lives.hear(*session, message);
        }
        let is_tick = event == Event::Tick;
        let effects = self.cluster.on(event, Now(Duration::from_micros(self.now)));
        self.cluster.check_invariants();
        for effect in effects {
            self.carry_out(effect);
        }
        self.check_status(is_tick);
    }

    fn check_status(&mut self, is_tick: bool) {
        let status = self.cluster.status();
        let mut checked = self.status.check(&status, &self.lives);
        if is_tick {
            checked = checked.and(
                self.status
                    .check_waits(&status, |sequence| self.waits_too_long(sequence)),
            );
        }
        self.status.remember(&status);
        self.insist(checked);
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Send { session, message } => self.send(session, message),
            Effect::CloseSession { session, .. } => self.send_down(session, None),
            Effect::Token { sequence, index, token } => self.client_token(sequence, index, token.token),
            Effect::PromptLogprobs {
                sequence,
                position,
                logprobs,
            } => self.client_scores(sequence, position, &logprobs),
            Effect::Finished {
                sequence,
                reason,
                usage,
            } => self.client_finished(sequence, reason, usage),
            Effect::Failed { sequence, error } => {
                self.trace(|| format!("{sequence} failed: {error}"));
                self.client_failed(sequence, &error);
            }
            fact => self.note(&fact),
        }
    }

    fn note(&mut self, fact: &Effect) {
        self.trace(|| format!("{fact:?}"));
        match fact {
            Effect::EpochStarted { group, epoch, .. } => {
                let started = self.lives.start(*group, *epoch);
                self.insist(started);
            }
            Effect::EpochSwitched {
                group,
                from,
                epoch,
                num_blocks,
                ..
            } => {
                let switched = self.lives.switch(*group, *from, *epoch, *num_blocks, self.now);
                self.insist(switched);
            }
            Effect::EpochEnded {
                group, epoch, reason, ..
            } => self.end_epoch(*group, *epoch, reason),
            Effect::RankLost {
                worker, how, reason, ..
            } => {
                let lost = self.workers.iter().find(|sim| sim.id == *worker);
                if lost.is_none_or(|sim| sim.tainted_until < self.now) {
                    self.violation(format!(
                        "{worker} is lost ({how:?}) although nothing is wrong with it: {reason}"
                    ));
                }
            }
            _ => {}
        }
    }

    fn end_epoch(&mut self, group: GroupId, epoch: Epoch, reason: &str) {
        match self.lives.end(group, epoch, self.now) {
            Ok(life) => {
                let healthy = |worker: usize| self.workers[worker].tainted_until < self.now;
                // A group whose workers all leave ends when it is empty.
                let left = reason == "its workers were let go";
                if !left && life.workers().all(healthy) {
                    self.violation(format!("epoch {epoch} ends although nothing is wrong: {reason}"));
                }
            }
            Err(what) => self.violation(what),
        }
    }

    fn send(&mut self, session: SessionId, mut message: ToWorker) {
        match &mut message {
            ToWorker::FormEpoch(spec) => self.note_rank(session, spec),
            ToWorker::PrepareEpoch(spec) => {
                let worker = self.worker_of(session).expect("every session has a worker");
                self.lives.prepare(session, worker, spec);
            }
            ToWorker::Step(plan) => self.note_step(session, plan),
            _ => {}
        }
        self.send_down(session, Some(message));
    }

    fn note_rank(&mut self, session: SessionId, spec: &EpochSpec) {
        let worker = self.worker_of(session).expect("every session has a worker");
        let formed = self.lives.form(session, worker, spec, &self.scenario.config);
        self.insist(formed);
    }

    fn note_step(&mut self, session: SessionId, plan: &mut StepPlan) {
        let Some((group, rank)) = self.lives.place_of(session) else {
            return self.violation(format!("session {session} is sent step {} and is no rank", plan.step));
        };
        self.forge_before_check(group, rank, plan);
        if rank == Rank(0) {
            let clients = &self.clients;
            let tenant_of = |sequence| clients::tenant_of(clients, sequence);
            match self.lives.check(group, plan, &self.scenario.config, tenant_of) {
                Ok(blocks_shared) => self.report.blocks_shared += blocks_shared,
                Err(what) => self.violation(what),
            }
            self.check_work(plan);
        }
        self.forge_after_check(group, rank, plan);
    }

    /// The coordinator was awake for so long.
    pub(super) fn awake_for(&self) -> u64 {
        if self.asleep { 0 } else { self.now - self.awake_since }
    }

    /// By group, as the coordinator measures them.
    pub(super) fn usual_steps_ms(&self) -> Vec<f64> {
        let status = self.cluster.status();
        status.groups.iter().map(|group| group.usual_step_ms).collect()
    }

    pub(super) fn counts_on(&self, worker: &WorkerId) -> bool {
        self.cluster.status().workers.iter().any(|live| live.worker == *worker)
    }
}
