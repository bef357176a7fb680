//! The coordinator's state machine: takes events, returns effects. No clock, no I/O, no randomness.
//!
//! It joins the parts: workers, groups with their epochs and schedulers, the detector. A part says what is the case; here
//! is decided what follows. Requests come in through `router`, losses are in `loss`, the snapshot of the status in
//! `snapshot`.

use std::collections::BTreeMap;

use kvasir_kv::{
    CORRUPT_CELL, FromWorker, GroupId, LoadReport, Progress, Rank, StepId, StepOutput, ToWorker, TransferId,
    UnitLayout, WorkerInfo,
};

use crate::{
    ClusterConfig, Effect, Event, LossCause, Now, SessionId,
    copy_cost::CopyCost,
    detector::SteadyClock,
    event::OrderId,
    formation::{Formation, form},
    group::{Group, Stage},
    migration::Migration,
    migration_order::Order,
    prefix_copy::PrefixCopy,
    reshard::Reshard,
    status::Counters,
    transfer::Arrived,
    workers::{JoinRefused, Worker, Workers},
};

/// Where a worker is a rank.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seat {
    pub group: GroupId,
    pub rank: Rank,
}

#[derive(Debug)]
pub struct Cluster {
    pub(crate) config: ClusterConfig,
    pub(crate) layout: UnitLayout,
    pub(crate) workers: Workers,
    /// By id.
    pub(crate) groups: Vec<Group>,
    pub(crate) clock: SteadyClock,
    /// Epochs of all groups: no two have the same number.
    pub(crate) epochs_begun: u64,
    pub(crate) arrivals: u64,
    pub(crate) transfers_begun: u64,
    pub(crate) migrations: BTreeMap<TransferId, Migration>,
    pub(crate) prefix_copies: BTreeMap<TransferId, PrefixCopy>,
    /// From one group to another.
    pub(crate) copy_costs: BTreeMap<(GroupId, GroupId), CopyCost>,
    /// What operators asked for and has not ended.
    pub(crate) orders: BTreeMap<OrderId, Order>,
    pub(crate) reshards: BTreeMap<GroupId, Reshard>,
    /// What no group counts.
    pub(crate) counters: Counters,
    /// Of the first event.
    begun: Option<Now>,
    /// Blocks that the events since the last check of the books count for.
    unchecked: u64,
    pub(crate) now: Now,
    pub(crate) effects: Vec<Effect>,
}

impl Cluster {
    /// `sequences_max` and `chunk_tokens_max` are lowered to `step_tokens_max`, and limits of 0 raised to 1. Without a
    /// group size there is one group of one rank.
    pub fn new(mut config: ClusterConfig, layout: UnitLayout) -> Self {
        if config.group_sizes.is_empty() {
            config.group_sizes.push(1);
        }
        let sizes = config.group_sizes.iter().zip(0..);
        let groups = sizes.map(|(size, id)| Group::new(GroupId(id), *size, &config));
        Self {
            workers: Workers::default(),
            groups: groups.collect(),
            clock: SteadyClock::new(config.tick_interval * 2),
            epochs_begun: 0,
            arrivals: 0,
            transfers_begun: 0,
            migrations: BTreeMap::new(),
            prefix_copies: BTreeMap::new(),
            copy_costs: BTreeMap::new(),
            orders: BTreeMap::new(),
            reshards: BTreeMap::new(),
            counters: Counters::default(),
            begun: None,
            unchecked: 0,
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
        self.begun.get_or_insert(now);
        self.clock.advance(now);
        match event {
            Event::WorkerJoined { session, info } => self.on_joined(session, info),
            Event::WorkerGone { session } => self.on_gone(session),
            Event::FromWorker { session, message } => self.on_message(session, message),
            Event::Submit {
                sequences,
                request,
                deadline,
            } => self.submit(&sequences, &request, deadline),
            Event::Cancel { sequence, reason } => {
                for group in &mut self.groups {
                    group.scheduler.cancel(sequence, reason, &mut self.effects);
                }
            }
            Event::Stop { sequence, last_index } => {
                for group in &mut self.groups {
                    group.scheduler.stop(sequence, last_index, &mut self.effects);
                }
            }
            Event::LetGo { worker } => {
                self.let_go(&worker);
            }
            Event::Reshard { order, group, ranks } => self.reshard(order, group, ranks),
            Event::Migrate { order, request, target } => self.migrate(order, &request, target),
            Event::RaiseTerm { term } => self.config.term_min = self.config.term_min.max(term),
            Event::Tick => {
                self.on_tick();
                self.even_load();
            }
        }
        self.advance_migrations();
        self.advance_prefix_copies();
        self.advance_reshards();
        self.deal_workers();
        self.drain();
        self.try_form();
        self.grow();
        self.leave_idle_groups();
        self.copy_prefixes();
        self.send_steps();
        self.even_out();
        self.hand_off();
        self.rebalance();
        self.report_recoveries();
        if cfg!(debug_assertions) {
            self.check_in_turn();
        }
        std::mem::take(&mut self.effects)
    }

    /// Checks after each event as long as there are few blocks; of many so seldom that it costs no more.
    fn check_in_turn(&mut self) {
        const BLOCKS_PER_EVENT: u64 = 64;
        let groups = self.groups.iter();
        let num_blocks: u64 = groups
            .map(|group| u64::from(group.scheduler.block_counts().total))
            .sum();
        self.unchecked += BLOCKS_PER_EVENT;
        if self.unchecked >= num_blocks {
            self.unchecked = 0;
            self.check_invariants();
        }
    }

    /// # Panics
    /// If the books of a group are not in order.
    pub fn check_invariants(&self) {
        self.check_migrations();
        self.check_prefix_copies();
        self.check_reshards();
        let mut seated = std::collections::BTreeSet::new();
        for group in &self.groups {
            group.scheduler.check_invariants();
            for member in group.active.iter().flat_map(|active| &active.members) {
                assert!(self.workers.get(member.session).is_some(), "a rank without a session");
                assert!(seated.insert(member.session), "a worker is a rank of two groups");
            }
        }
    }

    pub(crate) fn group(&self, id: GroupId) -> &Group {
        &self.groups[id.0 as usize]
    }

    pub(crate) fn group_mut(&mut self, id: GroupId) -> &mut Group {
        &mut self.groups[id.0 as usize]
    }

    pub(crate) fn seat_of(&self, session: SessionId) -> Option<Seat> {
        self.groups.iter().find_map(|group| {
            let rank = group.rank_of(session)?;
            Some(Seat { group: group.id, rank })
        })
    }

    fn on_joined(&mut self, session: SessionId, info: WorkerInfo) {
        if let Err(refusal) = self.acceptable(&info) {
            let reason = refusal.to_string();
            self.counters.workers_refused += 1;
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
        self.forget_causes();
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
            Some(expected) if expected != info.numerics_id => Err(JoinRefused::Numerics {
                worker,
                expected,
                found: info.numerics_id,
            }),
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

    /// The set of free workers has changed: what could not be formed may be possible now.
    pub(crate) fn forget_causes(&mut self) {
        self.groups.iter_mut().for_each(|group| group.cause = None);
    }

    fn on_message(&mut self, session: SessionId, message: FromWorker) {
        let steady = self.clock.read();
        if !self.workers.heard(session, steady) {
            self.counters.messages_stale += 1;
            return;
        }
        let seat = self.seat_of(session);
        if message == FromWorker::Leaving {
            self.workers.let_go(session);
            return;
        }
        if let FromWorker::Heartbeat(progress) = message {
            return self.on_heartbeat(seat, progress);
        }
        if self.on_prepared_message(session, &message) {
            return;
        }
        match seat {
            Some(seat) if message.epoch() == self.group(seat.group).epoch => {
                self.on_rank_message(session, seat, message);
            }
            _ => self.counters.messages_stale += 1,
        }
    }

    fn on_heartbeat(&mut self, seat: Option<Seat>, progress: Progress) {
        let steady = self.clock.read();
        if let Some(Seat { group, rank }) = seat
            && let Some(active) = self.group_mut(group).active.as_mut()
        {
            active.members[rank.0 as usize].watch.observe(progress, steady);
        }
    }

    fn on_rank_message(&mut self, session: SessionId, seat: Seat, message: FromWorker) {
        let outcome = match message {
            FromWorker::EndpointReady { endpoint, .. } => self.on_endpoint(seat, endpoint),
            FromWorker::EpochReady { load, .. } => self.on_ready(seat, load),
            FromWorker::StepDone { step, output, .. } => self.on_step_done(seat, step, output),
            FromWorker::EpochFailed { reason, missing, .. } => {
                self.on_epoch_failed(session, seat, reason, &missing);
                Ok(())
            }
            FromWorker::CellsArrived {
                transfer,
                round,
                source_rank,
                cells,
                bytes,
                shared_bytes,
                ..
            } => {
                let arrived = Arrived {
                    round,
                    source: source_rank,
                    cells,
                    bytes,
                    shared_bytes,
                };
                self.on_cells_arrived(seat.rank, transfer, arrived);
                Ok(())
            }
            FromWorker::TransferFailed {
                transfer,
                fault,
                reason,
                ..
            } => {
                self.on_transfer_failed(transfer, fault, reason);
                Ok(())
            }
            FromWorker::Leaving | FromWorker::Heartbeat(_) => Ok(()),
        };
        if let Err(reason) = outcome {
            self.give_up(vec![self.loss(session, LossCause::Failed, reason)]);
        }
    }

    fn on_endpoint(&mut self, seat: Seat, endpoint: String) -> Result<(), String> {
        let steady = self.clock.read();
        let group = self.group_mut(seat.group);
        let epoch = group.epoch;
        let active = group.active.as_mut().expect("the sender has a rank");
        let effects = active.on_endpoint(seat.rank, endpoint, epoch, steady);
        self.effects.extend(effects.map_err(|error| error.to_string())?);
        Ok(())
    }

    fn on_ready(&mut self, seat: Seat, load: LoadReport) -> Result<(), String> {
        let steady = self.clock.read();
        let group = self.group_mut(seat.group);
        let active = group.active.as_mut().expect("the sender has a rank");
        let all_ready = active.on_ready(seat.rank, load, steady);
        if all_ready.map_err(|error| error.to_string())? {
            self.start_epoch(seat.group);
        }
        Ok(())
    }

    fn start_epoch(&mut self, id: GroupId) {
        let numerics_id = self.config.numerics_id.expect("the first worker that joined decided");
        let group = &mut self.groups[id.0 as usize];
        let active = group.active.as_ref().expect("its ranks are ready");
        let (num_blocks, world_size) = (active.formation.num_blocks, active.world_size());
        group.outage_since = None;
        self.effects.push(Effect::EpochStarted {
            group: id,
            epoch: group.epoch,
            world_size: world_size as u32,
            transport: active.formation.transport,
            num_blocks,
        });
        group.scheduler.counters.epochs += 1;
        group.scheduler.key_prefixes(&numerics_id);
        group.scheduler.start_epoch(group.epoch, num_blocks, world_size);
        self.move_misfits(id);
    }

    fn on_step_done(&mut self, seat: Seat, step: StepId, output: Option<StepOutput>) -> Result<(), String> {
        let steady = self.clock.read();
        let group = &mut self.groups[seat.group.0 as usize];
        let active = group.active.as_mut().expect("the sender has a rank");
        if active.stage != Stage::Running {
            return Err(format!("step {step} done before the group runs"));
        }
        active.members[seat.rank.0 as usize].watch.touch(steady);
        let took = group
            .scheduler
            .on_step_done(seat.rank, step, output, steady, &mut self.effects)
            .map_err(|violation| violation.to_string())?;
        if let Some(took) = took {
            group.usual_step.observe(took);
            self.note_proven(seat.group);
        }
        Ok(())
    }

    /// A step was completed: whoever failed before has made up for it.
    fn note_proven(&mut self, id: GroupId) {
        let group = &mut self.groups[id.0 as usize];
        let active = group.active.as_mut().expect("a step was completed");
        if active.proven {
            return;
        }
        active.proven = true;
        group.failures = 0;
        for member in &active.members {
            if let Some(worker) = self.workers.get(member.session) {
                let id = worker.info.id.clone();
                self.workers.forgive(&id);
            }
        }
    }

    fn on_epoch_failed(&mut self, session: SessionId, seat: Seat, reason: String, missing: &[Rank]) {
        let rank = seat.rank;
        self.counters.cells_corrupt += u64::from(reason.starts_with(CORRUPT_CELL));
        let active = self.group(seat.group).active.as_ref().expect("the sender has a rank");
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
            self.end_epoch(seat.group, &[], Some(id), reason);
        }
    }

    /// Begins the next epoch of each group that has none, if there are workers for it.
    fn try_form(&mut self) {
        let steady = self.clock.read();
        for index in 0..self.groups.len() {
            let group = &self.groups[index];
            if group.active.is_some() || group.cause.is_some() || steady < group.retry_at {
                continue;
            }
            let candidates = self.workers.candidates(group.id, |session, worker| {
                self.is_free(session) && !self.is_awaited_elsewhere(worker, group.id)
            });
            let too_few = !group.formed_once && candidates.len() < group.size as usize;
            let gathers = too_few && self.gathers();
            if gathers || self.workers.len() == 0 {
                continue;
            }
            let formed = form(&self.config, &self.layout, group.size, &candidates);
            match formed {
                Ok(formation) => self.begin_epoch(index, formation),
                Err(error) => self.groups[index].cause = Some(error.to_string()),
            }
        }
    }

    /// A group that re-forms is given back its own workers.
    pub(crate) fn is_awaited_elsewhere(&self, worker: &Worker, group: GroupId) -> bool {
        let home = worker.home.filter(|home| *home != group);
        home.map(|home| self.group(home))
            .is_some_and(|home| home.active.is_none() && home.cause.is_none())
    }

    /// Of those that never formed.
    fn gathers(&self) -> bool {
        let begun = self.begun.unwrap_or(self.now);
        let max = self.config.gather_max;
        max.is_none_or(|max| self.now.since(begun) < max)
    }

    /// Above all that workers have obeyed before they joined.
    pub(crate) fn next_term(&self) -> u64 {
        self.workers.term_max().saturating_add(1).max(self.config.term_min)
    }

    /// The highest that an epoch has, or is prepared with.
    pub fn term_max(&self) -> u64 {
        let begun = self.groups.iter().map(|group| group.epoch.term);
        let prepared = self.reshards.values().map(|reshard| reshard.epoch().term);
        begun.chain(prepared).max().unwrap_or(0)
    }

    fn begin_epoch(&mut self, index: usize, formation: Formation) {
        let (steady, term) = (self.clock.read(), self.next_term());
        let group = &mut self.groups[index];
        group.formed_once = true;
        self.workers.settle(&formation.sessions, group.id);
        self.epochs_begun += 1;
        let number = self.epochs_begun;
        let nonce = mix(self.config.nonce_seed, number);
        let effects = group.form(term, number, nonce, formation, &self.config, steady);
        self.effects.extend(effects);
    }

    pub(crate) fn send_steps(&mut self) {
        for index in 0..self.groups.len() {
            self.send_steps_of(index);
        }
    }

    fn send_steps_of(&mut self, index: usize) {
        let steady = self.clock.read();
        let group = &mut self.groups[index];
        let Some(active) = group.active.as_mut().filter(|active| active.stage == Stage::Running) else {
            return;
        };
        let mut idle: Vec<bool> = (0..active.world_size() as u32)
            .map(|rank| !group.scheduler.is_busy(Rank(rank)))
            .collect();
        while let Some(plan) = group.scheduler.next_plan(steady) {
            group.scheduler.note_first_steps(&plan, self.now);
            // A rank that had nothing to do begins to be measured now.
            active.touch(&idle, steady);
            idle.fill(false);
            self.effects.extend(active.send_step(plan));
        }
    }

    fn report_recoveries(&mut self) {
        let went_on = self.groups.iter_mut().flat_map(|group| group.scheduler.take_went_on());
        for (sequence, recomputed) in went_on.collect::<Vec<_>>() {
            for recovery in self.groups.iter_mut().filter_map(|group| group.recovery.as_mut()) {
                recovery.went_on(sequence, recomputed);
            }
        }
        for group in &mut self.groups {
            let serves = group.serves();
            if let Some(recovery) = group.recovery.take_if(|recovery| recovery.is_over(serves)) {
                self.counters.recoveries += 1;
                self.effects.push(recovery.report(group.id, group.epoch, self.now));
            }
        }
    }
}

/// A number that depends on seed and counter in all bits (SplitMix64).
pub(crate) fn mix(seed: u64, counter: u64) -> u64 {
    let mut z = seed.wrapping_add(counter.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
