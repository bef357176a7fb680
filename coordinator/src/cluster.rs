//! The coordinator's state machine: takes events, returns effects. No clock, no I/O, no randomness.
//!
//! It joins the parts: workers, the group's epochs, the scheduler, the detector. A part says what is the case; here is
//! decided what follows. Losses are in `loss`, the snapshot of the status in `snapshot`.

use kvasir_kv::{
    CORRUPT_CELL, FromWorker, GroupId, LoadReport, Progress, Rank, StepId, StepOutput, ToWorker, UnitLayout, WorkerInfo,
};

use crate::{
    ClusterConfig, Effect, Event, LossCause, Now, SessionId,
    detector::{Steady, SteadyClock},
    formation::form,
    group::{Group, Stage},
    scheduler::Scheduler,
    workers::{JoinRefused, Workers},
};

#[derive(Debug)]
pub struct Cluster {
    pub(crate) config: ClusterConfig,
    pub(crate) layout: UnitLayout,
    pub(crate) workers: Workers,
    pub(crate) group: Group,
    pub(crate) scheduler: Scheduler,
    pub(crate) clock: SteadyClock,
    pub(crate) formed_once: bool,
    pub(crate) nonces: u64,
    /// Epochs in a row that ended before they completed a step.
    pub(crate) failures: u32,
    pub(crate) retry_at: Steady,
    /// Since when no group serves; `None` while one does.
    pub(crate) outage_since: Option<Now>,
    /// Why the live workers form no group.
    pub(crate) cause: Option<String>,
    pub(crate) now: Now,
    pub(crate) effects: Vec<Effect>,
}

impl Cluster {
    /// `sequences_max` and `chunk_tokens_max` are lowered to `step_tokens_max`, and limits of 0 raised to 1.
    pub fn new(config: ClusterConfig, layout: UnitLayout) -> Self {
        Self {
            workers: Workers::default(),
            group: Group::new(GroupId(0), config.stall_min),
            scheduler: Scheduler::new(&config, layout.shape().context_len),
            clock: SteadyClock::new(config.tick_interval * 2),
            formed_once: false,
            nonces: 0,
            failures: 0,
            retry_at: Steady::default(),
            outage_since: Some(Now::default()),
            cause: None,
            now: Now::default(),
            effects: Vec::new(),
            config,
            layout,
        }
    }

    pub fn config(&self) -> &ClusterConfig {
        &self.config
    }

    pub fn layout(&self) -> &UnitLayout {
        &self.layout
    }

    /// Effects are to be carried out in order. `now` never goes back.
    pub fn on(&mut self, event: Event, now: Now) -> Vec<Effect> {
        self.now = now;
        self.clock.advance(now);
        match event {
            Event::WorkerJoined { session, info } => self.on_joined(session, info),
            Event::WorkerGone { session } => self.on_gone(session),
            Event::FromWorker { session, message } => self.on_message(session, message),
            Event::Submit {
                sequence,
                request,
                deadline,
            } => self
                .scheduler
                .submit(sequence, request, deadline, now, &mut self.effects),
            Event::Cancel { sequence, reason } => self.scheduler.cancel(sequence, reason, &mut self.effects),
            Event::Stop { sequence, last_index } => self.scheduler.stop(sequence, last_index, &mut self.effects),
            Event::Tick => self.on_tick(),
        }
        self.try_form();
        self.send_steps();
        if cfg!(debug_assertions) {
            self.check_invariants();
        }
        std::mem::take(&mut self.effects)
    }

    /// # Panics
    /// If the books of the group are not in order.
    pub fn check_invariants(&self) {
        self.scheduler.check_invariants();
        for member in self.group.active.iter().flat_map(|active| &active.members) {
            assert!(self.workers.get(member.session).is_some(), "a rank without a session");
        }
    }

    fn on_joined(&mut self, session: SessionId, info: WorkerInfo) {
        if let Err(refusal) = self.acceptable(&info) {
            let reason = refusal.to_string();
            self.scheduler.counters.workers_refused += 1;
            let refuse = ToWorker::Refuse {
                kind: refusal.kind(),
                reason: reason.clone(),
            };
            self.effects.push(Effect::Send {
                session,
                message: refuse,
            });
            self.effects.push(Effect::CloseSession { session, reason });
            return;
        }
        // The same worker on a new connection: the old one is dead, only we have not heard of it.
        if let Some(old) = self.workers.session_of(&info.id) {
            let reason = format!("worker {} joined again", info.id);
            self.effects.push(Effect::CloseSession {
                session: old,
                reason: reason.clone(),
            });
            self.give_up(vec![self.loss(old, LossCause::Closed, reason)]);
        }
        self.config.numerics_id.get_or_insert(info.numerics_id);
        self.workers.join(session, info, self.clock.read());
        // The set of workers has changed: what could not be formed may be possible now.
        self.cause = None;
    }

    fn acceptable(&self, info: &WorkerInfo) -> Result<(), JoinRefused> {
        let worker = info.id.clone();
        let expected = self.config.cell.block_size();
        if expected != info.block_size {
            let found = info.block_size;
            return Err(JoinRefused::BlockSize {
                worker,
                expected,
                found,
            });
        }
        // Part of the numerics too, but named more plainly.
        let expected = self.config.cell.dtype();
        if expected != info.kv_dtype {
            let found = info.kv_dtype;
            return Err(JoinRefused::KvDtype {
                worker,
                expected,
                found,
            });
        }
        match self.config.numerics_id {
            Some(expected) if expected != info.numerics_id => {
                let found = info.numerics_id;
                return Err(JoinRefused::Numerics {
                    worker,
                    expected,
                    found,
                });
            }
            _ => Ok(()),
        }
    }

    fn on_gone(&mut self, session: SessionId) {
        if self.workers.get(session).is_some() {
            self.give_up(vec![self.loss(
                session,
                LossCause::Closed,
                "its connection ended".to_owned(),
            )]);
        }
    }

    fn on_message(&mut self, session: SessionId, message: FromWorker) {
        let steady = self.clock.read();
        if !self.workers.heard(session, steady) {
            self.scheduler.counters.messages_stale += 1;
            return;
        }
        let rank = self.group.rank_of(session);
        if let FromWorker::Heartbeat(progress) = message {
            return self.on_heartbeat(rank, progress);
        }
        match rank {
            Some(rank) if message.epoch() == self.group.epoch => self.on_rank_message(session, rank, message),
            _ => self.scheduler.counters.messages_stale += 1,
        }
    }

    fn on_heartbeat(&mut self, rank: Option<Rank>, progress: Progress) {
        let steady = self.clock.read();
        if let (Some(rank), Some(active)) = (rank, self.group.active.as_mut()) {
            active.members[rank.0 as usize].watch.observe(progress, steady);
        }
    }

    fn on_rank_message(&mut self, session: SessionId, rank: Rank, message: FromWorker) {
        let outcome = match message {
            FromWorker::EndpointReady { endpoint, .. } => self.on_endpoint(rank, endpoint),
            FromWorker::EpochReady { load, .. } => self.on_ready(rank, load),
            FromWorker::StepDone { step, output, .. } => self.on_step_done(rank, step, output),
            FromWorker::EpochFailed { reason, missing, .. } => {
                self.on_epoch_failed(session, rank, reason, &missing);
                Ok(())
            }
            FromWorker::Heartbeat(_) => Ok(()),
        };
        if let Err(reason) = outcome {
            self.give_up(vec![self.loss(session, LossCause::Failed, reason)]);
        }
    }

    fn on_endpoint(&mut self, rank: Rank, endpoint: String) -> Result<(), String> {
        let steady = self.clock.read();
        let active = self.group.active.as_mut().expect("the sender has a rank");
        let effects = active.on_endpoint(rank, endpoint, self.group.epoch, steady);
        self.effects.extend(effects.map_err(|error| error.to_string())?);
        Ok(())
    }

    fn on_ready(&mut self, rank: Rank, load: LoadReport) -> Result<(), String> {
        let steady = self.clock.read();
        let active = self.group.active.as_mut().expect("the sender has a rank");
        if !active.on_ready(rank, load, steady).map_err(|error| error.to_string())? {
            return Ok(());
        }
        let (num_blocks, world_size) = (active.formation.num_blocks, active.world_size());
        self.outage_since = None;
        self.scheduler.counters.epochs += 1;
        self.effects.push(Effect::EpochStarted {
            group: self.group.id,
            epoch: self.group.epoch,
            world_size: world_size as u32,
            transport: active.formation.transport,
            num_blocks,
        });
        let numerics_id = self.config.numerics_id.expect("the first worker that joined decided");
        self.scheduler.key_prefixes(&numerics_id);
        self.scheduler
            .start_epoch(self.group.epoch, num_blocks, world_size, self.now, &mut self.effects);
        Ok(())
    }

    fn on_step_done(&mut self, rank: Rank, step: StepId, output: Option<StepOutput>) -> Result<(), String> {
        let steady = self.clock.read();
        let active = self.group.active.as_mut().expect("the sender has a rank");
        if active.stage != Stage::Running {
            return Err(format!("step {step} done before the group runs"));
        }
        active.members[rank.0 as usize].watch.touch(steady);
        let took = self
            .scheduler
            .on_step_done(rank, step, output, self.now, steady, &mut self.effects)
            .map_err(|violation| violation.to_string())?;
        if let Some(took) = took {
            self.group.usual_step.observe(took);
            self.note_proven();
        }
        Ok(())
    }

    /// A step was completed: whoever failed before has made up for it.
    fn note_proven(&mut self) {
        let active = self.group.active.as_mut().expect("a step was completed");
        if active.proven {
            return;
        }
        active.proven = true;
        self.failures = 0;
        for member in &active.members {
            if let Some(worker) = self.workers.get(member.session) {
                let id = worker.info.id.clone();
                self.workers.forgive(&id);
            }
        }
    }

    fn on_epoch_failed(&mut self, session: SessionId, rank: Rank, reason: String, missing: &[Rank]) {
        self.scheduler.counters.cells_corrupt += u64::from(reason.starts_with(CORRUPT_CELL));
        let active = self.group.active.as_ref().expect("the sender has a rank");
        let blamed: Vec<SessionId> = missing
            .iter()
            .filter(|missing| **missing != rank)
            .filter_map(|missing| active.members.get(missing.0 as usize))
            .map(|member| member.session)
            .collect();
        if !blamed.is_empty() {
            let reason = format!("rank {rank} missed it: {reason}");
            let losses = blamed.into_iter();
            return self.give_up(
                losses
                    .map(|session| self.loss(session, LossCause::Blamed, reason.clone()))
                    .collect(),
            );
        }
        let Some(id) = self.workers.get(session).map(|worker| worker.info.id.clone()) else {
            return;
        };
        if self.workers.strike(&id) {
            self.give_up(vec![self.loss(session, LossCause::Failed, reason)]);
        } else {
            self.end_epoch(&[], Some(id), reason);
        }
    }

    /// Begins the next epoch, if there is none and there are workers for it.
    fn try_form(&mut self) {
        let steady = self.clock.read();
        let too_few = !self.formed_once && self.workers.len() < self.config.workers_wanted() as usize;
        let idle = self.group.active.is_none() && self.cause.is_none() && steady >= self.retry_at;
        if !idle || too_few || self.workers.len() == 0 {
            return;
        }
        match form(&self.config, &self.layout, &self.workers.candidates()) {
            Ok(formation) => {
                self.formed_once = true;
                self.nonces += 1;
                let nonce = mix(self.config.nonce_seed, self.nonces);
                let term = self.workers.term_max().saturating_add(1);
                let effects = self.group.form(term, nonce, formation, &self.config, steady);
                self.effects.extend(effects);
            }
            Err(error) => self.cause = Some(error.to_string()),
        }
    }

    fn send_steps(&mut self) {
        let steady = self.clock.read();
        let Some(active) = self
            .group
            .active
            .as_mut()
            .filter(|active| active.stage == Stage::Running)
        else {
            return;
        };
        let mut idle: Vec<bool> = (0..active.world_size() as u32)
            .map(|rank| !self.scheduler.is_busy(Rank(rank)))
            .collect();
        while let Some(plan) = self.scheduler.next_plan(steady) {
            // A rank that had nothing to do begins to be measured now.
            for (member, _) in active.members.iter_mut().zip(&idle).filter(|(_, idle)| **idle) {
                member.watch.touch(steady);
            }
            idle.fill(false);
            self.effects.extend(active.send_step(plan));
        }
    }
}

/// A number that depends on seed and counter in all bits (SplitMix64).
fn mix(seed: u64, counter: u64) -> u64 {
    let mut z = seed.wrapping_add(counter.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
