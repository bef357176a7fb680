//! Resharding: a group goes on with other ranks, or more, or fewer, without stopping what it tells.
//!
//! The next epoch is *prepared* beside the one that works: its ranks load the units they lack and meet each other. Then the
//! full blocks of running sequences are *copied* to the ranks that will have their KV heads. When little is left, the group
//! stands still: it gets no more plans, the rest is copied behind the steps that are out, and when that has come all ranks
//! *switch*. Blocks keep their ids; the first plan of the new epoch admits every running sequence with all that was
//! computed. Whatever goes wrong before the switch drops what was prepared, and the group goes on as it was.

use std::{collections::BTreeMap, time::Duration};

use kvasir_kv::{
    BlockCopy, BlockId, BlockTag, Epoch, FromWorker, GroupId, Rank, TaggedBlock, ToWorker, TransferFault, WorkerId,
    transfer_routes,
};

use crate::{
    Cluster, Effect, Now, SessionId,
    cluster::mix,
    event::{OrderId, ReshardError, ReshardOutcome, ReshardReport},
    formation::form,
    group::{Active, Stage as EpochStage, specs},
    sequence::Sequence,
    status::ReshardStatus,
    transfer::{Arrived, Transfer},
};

/// What a client waits for may take so long, and each round before it so long.
const STANDSTILL_DEADLINE: Duration = Duration::from_secs(5);
const COPY_DEADLINE: Duration = Duration::from_secs(60);
const ROUNDS_MAX: u32 = 16;
/// A group that could not take a spare in tries again after so long.
const GROW_RETRY: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Reshard {
    order: Option<OrderId>,
    group: GroupId,
    from_ranks: u32,
    ranks: u32,
    /// It is to have so many ranks from now on, whatever becomes of them.
    size: Option<u32>,
    source: Epoch,
    epoch: Epoch,
    /// Of the epoch to come; its members answer as those of any epoch that forms.
    next: Active,
    transfer: Transfer,
    stage: Stage,
    /// Full blocks that were copied ahead.
    sent: BTreeMap<BlockId, BlockTag>,
    began: Now,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Preparing,
    Copying,
    /// Since the last token of the old epoch is known, if it is.
    Frozen {
        drained: Option<Now>,
    },
    /// The new epoch works; its first step is awaited.
    Switched {
        drained: Now,
    },
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Copying => "copying",
            Self::Frozen { .. } => "frozen",
            Self::Switched { .. } => "switched",
        }
    }
}

impl Cluster {
    /// An operator wants a group to have so many ranks from now on.
    pub(crate) fn reshard(&mut self, order: OrderId, group: GroupId, ranks: u32) {
        let begun = self.begin_reshard(group, ranks, &[], Some(order));
        if let Err(error) = begun {
            let result = Err(error);
            self.effects.push(Effect::ReshardOrderEnded { order, result });
        }
    }

    /// Begins to move a group to `ranks` ranks: those it has, as far as they are not to `leave`, and free ones.
    pub(crate) fn begin_reshard(
        &mut self,
        id: GroupId,
        ranks: u32,
        leave: &[SessionId],
        order: Option<OrderId>,
    ) -> Result<(), ReshardError> {
        let groups = self.groups.len() as u32;
        let group = self.groups.get(id.0 as usize);
        let group = group.ok_or(ReshardError::UnknownGroup { group: id, groups })?;
        let active = group.active.as_ref().filter(|_| group.serves());
        let active = active.ok_or(ReshardError::NotServing(id))?;
        if ranks == 0 {
            return Err(ReshardError::NoRanks);
        }
        if self.reshards.contains_key(&id) {
            return Err(ReshardError::UnderWay(id));
        }
        let current = active.formation.sessions.clone();
        let candidates = self.reshard_candidates(id, &current, leave);
        let formation = form(&self.config, &self.layout, ranks, &candidates);
        let formation = formation.map_err(|error| ReshardError::Impossible(error.to_string()))?;
        if formation.sessions.len() < ranks as usize {
            let available = candidates.len() as u32;
            return Err(ReshardError::TooFewWorkers { ranks, available });
        }
        if formation.sessions == current {
            return Err(ReshardError::AsItIs { group: id, ranks });
        }
        let transfers = |session: &SessionId| {
            let worker = self.workers.get(*session)?;
            worker.info.transfer_address.is_empty().then(|| worker.info.id.clone())
        };
        if let Some(worker) = formation.sessions.iter().find_map(transfers) {
            return Err(ReshardError::NoTransfers(worker));
        }
        let scheduler = &group.scheduler;
        if let Some(error) = scheduler.sequences().find_map(|sequence| {
            let fits = scheduler.fits_blocks(&sequence.request, formation.num_blocks);
            fits.err()
        }) {
            return Err(ReshardError::TooSmall(error.to_string()));
        }

        let routes = transfer_routes(&active.formation.plan, &formation.plan, |source, target| {
            current[source.0 as usize] == formation.sessions[target.0 as usize]
        });
        let lanes = self.lanes(routes, &current, &formation.sessions);
        let epoch = Epoch {
            term: self.next_term().max(group.epoch.term),
            number: self.epochs_begun + 1,
        };
        let ticket = self.next_ticket(group.epoch, epoch);
        let nonce = mix(self.config.nonce_seed, epoch.number);
        let num_ids = scheduler.num_block_ids().max(formation.num_blocks);
        let sessions = formation.sessions.clone();
        let specs = specs(id, epoch, nonce, &formation, num_ids, &self.config);
        let reshard = Reshard {
            order,
            group: id,
            from_ranks: current.len() as u32,
            ranks,
            size: order.map(|_| ranks),
            source: group.epoch,
            epoch,
            next: Active::forming(formation, epoch, self.clock.read()),
            transfer: Transfer::new(ticket, lanes, self.now),
            stage: Stage::Preparing,
            sent: BTreeMap::new(),
            began: self.now,
        };
        self.epochs_begun += 1;
        self.transfers_begun += 1;
        self.counters.reshards_begun += 1;
        self.effects.push(Effect::ReshardBegan {
            group: id,
            from_ranks: reshard.from_ranks,
            ranks,
        });
        self.effects
            .extend(sessions.into_iter().zip(specs).map(|(session, spec)| Effect::Send {
                session,
                message: ToWorker::PrepareEpoch(spec),
            }));
        self.reshards.insert(id, reshard);
        Ok(())
    }

    /// The group's own ranks in their order, then workers that are free.
    pub(crate) fn reshard_candidates(
        &self,
        group: GroupId,
        current: &[SessionId],
        leave: &[SessionId],
    ) -> Vec<(SessionId, &kvasir_kv::WorkerInfo)> {
        let leaves = |session: &SessionId| self.workers.get(*session).is_none_or(|worker| worker.leaves);
        let stays = current
            .iter()
            .filter(|session| !leave.contains(session) && !leaves(session));
        let mut candidates: Vec<_> = stays
            .filter_map(|session| Some((*session, &self.workers.get(*session)?.info)))
            .collect();
        candidates.extend(self.workers.candidates(group, |session, worker| {
            self.is_free(session) && !self.is_awaited_elsewhere(worker, group) && !leave.contains(&session)
        }));
        candidates
    }

    /// No rank of a group, nor of one that is being prepared.
    pub(crate) fn is_free(&self, session: SessionId) -> bool {
        let mut prepared = self.reshards.values().filter(|reshard| !reshard.is_switched());
        self.seat_of(session).is_none() && !prepared.any(|reshard| reshard.rank_of(session).is_some())
    }

    /// Brings each reshard as far as it can get now.
    pub(crate) fn advance_reshards(&mut self) {
        let groups: Vec<GroupId> = self.reshards.keys().copied().collect();
        for group in groups {
            let reshard = self.reshards.remove(&group).expect("just listed");
            match self.advance_reshard(reshard) {
                Ok(reshard) => {
                    self.reshards.insert(group, reshard);
                }
                Err((reshard, outcome)) => self.end_reshard(reshard, outcome),
            }
        }
    }

    #[allow(clippy::result_large_err)] // the error is the value itself, handed back
    fn advance_reshard(&mut self, mut reshard: Reshard) -> Result<Reshard, (Reshard, ReshardOutcome)> {
        if let Stage::Switched { drained } = reshard.stage {
            return self.settle_reshard(reshard, drained);
        }
        if let Some(outcome) = self.reshard_obstacle(&reshard) {
            return Err((reshard, outcome));
        }
        if reshard.stage == Stage::Preparing && reshard.next.stage == EpochStage::Running {
            reshard.stage = Stage::Copying;
            reshard.transfer.moved = self.now;
        }
        if reshard.stage == Stage::Copying && reshard.transfer.is_complete() {
            self.copy_or_freeze(&mut reshard);
        }
        if let Stage::Frozen { drained } = reshard.stage {
            let scheduler = &mut self.groups[reshard.group.0 as usize].scheduler;
            if !scheduler.awaits_any() {
                let drained = drained.unwrap_or(self.now);
                reshard.stage = Stage::Frozen { drained: Some(drained) };
                if reshard.transfer.is_complete() {
                    self.switch(&mut reshard, drained);
                }
            }
        }
        Ok(reshard)
    }

    fn reshard_obstacle(&self, reshard: &Reshard) -> Option<ReshardOutcome> {
        let group = self.group(reshard.group);
        if group.epoch != reshard.source || !group.serves() {
            return Some(ReshardOutcome::SourceLost);
        }
        let is_gone = |session: &SessionId| self.workers.get(*session).is_none();
        if reshard.next.formation.sessions.iter().any(is_gone) {
            return Some(ReshardOutcome::TargetLost);
        }
        let fits = |sequence: &Sequence| {
            group
                .scheduler
                .fits_blocks(&sequence.request, reshard.next.formation.num_blocks)
        };
        if let Some(error) = group.scheduler.sequences().find_map(|sequence| fits(sequence).err()) {
            return Some(ReshardOutcome::TooSmall(error.to_string()));
        }
        let steady = self.clock.read();
        let late = !reshard.next.overdue(&self.config, steady).is_empty();
        let deadline = match reshard.stage {
            Stage::Frozen { .. } => STANDSTILL_DEADLINE,
            _ => COPY_DEADLINE,
        };
        let stands = reshard.stage != Stage::Preparing && self.now.since(reshard.transfer.moved) > deadline;
        (late || stands).then(|| ReshardOutcome::Failed {
            fault: TransferFault::Deadline,
            reason: format!("it was {} for too long", reshard.stage.name()),
        })
    }

    /// Asks for the full blocks that are new, or stops the group and asks for all that is left.
    fn copy_or_freeze(&mut self, reshard: &mut Reshard) {
        let block_size = self.config.cell.block_size();
        let scheduler = &self.group(reshard.group).scheduler;
        let held = scheduler.held_blocks();
        let is_sent = |block: &TaggedBlock| reshard.sent.get(&block.id) == Some(&block.tag);
        let fresh = held
            .iter()
            .filter(|(block, written)| *written == block_size && !is_sent(block));
        let fresh: Vec<BlockCopy> = fresh.map(|(block, written)| copy(*block, *written)).collect();
        let few = 1 + scheduler.num_running() as usize / 4;
        // Who has come from another group and is in no plan yet: its cells are not the ranks' own, who would refuse them.
        let arrives = scheduler.has_arrivals();
        let waits = self.has_transfers(reshard.group) || arrives;
        let freezes = !waits && (fresh.len() <= few || reshard.transfer.num_rounds >= ROUNDS_MAX);
        if !freezes {
            if fresh.len() > few && !arrives {
                reshard
                    .sent
                    .extend(fresh.iter().map(|copy| (copy.source.id, copy.source.tag)));
                self.effects.extend(reshard.transfer.ask(&fresh, false, self.now));
            }
            return;
        }
        let rest = held
            .iter()
            .filter(|(block, written)| *written < block_size || !is_sent(block));
        let rest: Vec<BlockCopy> = rest.map(|(block, written)| copy(*block, *written)).collect();
        reshard.stage = Stage::Frozen { drained: None };
        self.effects.extend(reshard.transfer.ask(&rest, true, self.now));
        self.groups[reshard.group.0 as usize].scheduler.stand_still(true);
    }

    /// Everything has come, nothing is out: all ranks go over to the new epoch.
    fn switch(&mut self, reshard: &mut Reshard, drained: Now) {
        let steady = self.clock.read();
        let group = &mut self.groups[reshard.group.0 as usize];
        let num_blocks = reshard.next.formation.num_blocks;
        let world_size = reshard.next.world_size();
        let held = group.scheduler.switch_epoch(reshard.epoch, num_blocks, world_size);
        let before = group.active.take().expect("it serves");
        let leaving = before.members.iter().map(|member| member.session);
        let leaving = leaving.filter(|session| reshard.rank_of(*session).is_none());
        self.effects.extend(leaving.map(|session| Effect::Send {
            session,
            message: ToWorker::AbortEpoch { epoch: reshard.source },
        }));
        let next = std::mem::replace(
            &mut reshard.next,
            Active::forming(before.formation, reshard.source, steady),
        );
        let switch = ToWorker::SwitchEpoch {
            epoch: reshard.epoch,
            held,
        };
        self.effects.extend(next.send_all(&switch));
        self.effects.push(Effect::EpochSwitched {
            group: reshard.group,
            from: reshard.source,
            epoch: reshard.epoch,
            world_size: world_size as u32,
            transport: next.formation.transport,
            num_blocks,
        });
        group.epoch = reshard.epoch;
        group.size = reshard.size.unwrap_or(group.size);
        group.floor = reshard.size.unwrap_or(group.floor);
        group.scheduler.counters.epochs += 1;
        self.workers.settle(&next.formation.sessions, group.id);
        group.active = Some(next);
        for member in group.active.iter_mut().flat_map(|active| &mut active.members) {
            member.watch = crate::detector::RankWatch::new(reshard.epoch, steady);
        }
        reshard.stage = Stage::Switched { drained };
        self.counters.cells_planned += reshard.transfer.cells_planned;
        self.counters.cells_adopted += reshard.transfer.cells_arrived;
        self.counters.transfer_bytes += reshard.transfer.bytes;
        self.counters.transfer_shared_bytes += reshard.transfer.shared_bytes;
        self.forget_causes();
    }

    #[allow(clippy::result_large_err)]
    fn settle_reshard(&self, reshard: Reshard, drained: Now) -> Result<Reshard, (Reshard, ReshardOutcome)> {
        let group = self.group(reshard.group);
        let active = group.active.as_ref().filter(|_| group.epoch == reshard.epoch);
        let idle = !group.scheduler.has_steps_out() && group.scheduler.num_running() == 0;
        match active {
            Some(active) if !active.proven && !idle => Ok(reshard),
            _ => {
                let pause = self.now.since(drained);
                Err((reshard, ReshardOutcome::Switched { pause }))
            }
        }
    }

    fn end_reshard(&mut self, reshard: Reshard, outcome: ReshardOutcome) {
        let report = ReshardReport {
            group: reshard.group,
            from_ranks: reshard.from_ranks,
            ranks: reshard.ranks,
            epoch: reshard.epoch,
            outcome,
            cells: reshard.transfer.cells_arrived,
            bytes: reshard.transfer.bytes,
            rounds: reshard.transfer.num_rounds,
            took: self.now.since(reshard.began),
        };
        match report.outcome {
            ReshardOutcome::Switched { pause } => {
                self.counters.reshards_switched += 1;
                self.counters.reshard_pause_us += pause.as_micros() as u64;
            }
            _ => {
                self.counters.reshards_failed += 1;
                self.drop_prepared(&reshard);
            }
        }
        if let Some(order) = reshard.order {
            let result = Ok(report.clone());
            self.effects.push(Effect::ReshardOrderEnded { order, result });
        }
        self.effects.push(Effect::ReshardEnded(report));
    }

    fn drop_prepared(&mut self, reshard: &Reshard) {
        let group = &mut self.groups[reshard.group.0 as usize];
        group.scheduler.stand_still(false);
        group.grow_at = crate::detector::Steady(self.clock.read().0 + GROW_RETRY);
        let transfer = reshard.transfer.id();
        let mut sessions = reshard.next.formation.sessions.clone();
        let drop = ToWorker::DropEpoch { epoch: reshard.epoch };
        let end = ToWorker::EndTransfer { transfer };
        let dropped = sessions.iter().map(|session| Effect::Send {
            session: *session,
            message: drop.clone(),
        });
        let dropped: Vec<Effect> = dropped.collect();
        if let Some(active) = group.active.as_ref().filter(|_| group.epoch == reshard.source) {
            sessions.extend(active.members.iter().map(|member| member.session));
        }
        sessions.sort();
        sessions.dedup();
        sessions.retain(|session| self.workers.get(*session).is_some());
        self.effects.extend(sessions.into_iter().map(|session| Effect::Send {
            session,
            message: end.clone(),
        }));
        let lives = |effect: &Effect| match effect {
            Effect::Send { session, .. } => self.workers.get(*session).is_some(),
            _ => true,
        };
        self.effects.extend(dropped.into_iter().filter(lives));
        self.forget_causes();
    }

    /// A message that speaks of an epoch which is being prepared. False if there is none such.
    pub(crate) fn on_prepared_message(&mut self, session: SessionId, message: &FromWorker) -> bool {
        let of_epoch = |reshard: &&mut Reshard| reshard.epoch == message.epoch() && !reshard.is_switched();
        let Some(reshard) = self.reshards.values_mut().find(of_epoch) else {
            return false;
        };
        let Some(rank) = reshard.rank_of(session) else {
            return false;
        };
        let steady = self.clock.read();
        let failed = match message {
            FromWorker::EndpointReady { endpoint, .. } => {
                let told = reshard.next.on_endpoint(rank, endpoint.clone(), reshard.epoch, steady);
                told.map(|effects| self.effects.extend(effects))
                    .err()
                    .map(|error| error.to_string())
            }
            FromWorker::EpochReady { load, .. } => reshard
                .next
                .on_ready(rank, *load, steady)
                .err()
                .map(|error| error.to_string()),
            FromWorker::CellsArrived {
                round,
                source_rank,
                cells,
                bytes,
                shared_bytes,
                ..
            } => {
                let arrived = Arrived {
                    round: *round,
                    source: *source_rank,
                    cells: *cells,
                    bytes: *bytes,
                    shared_bytes: *shared_bytes,
                };
                reshard.transfer.on_arrived(rank, arrived, self.now);
                None
            }
            FromWorker::TransferFailed { fault, reason, .. } => {
                self.counters.count_refused(*fault);
                Some(reason.clone())
            }
            FromWorker::EpochFailed { reason, .. } => Some(reason.clone()),
            FromWorker::StepDone { .. } => Some("a step done before the epoch began".to_owned()),
            FromWorker::Leaving | FromWorker::Heartbeat(_) => None,
        };
        if let Some(reason) = failed {
            self.fail_reshard_of(message.epoch(), TransferFault::Connection, reason);
        }
        true
    }

    pub(crate) fn is_reshard_transfer(&self, transfer: kvasir_kv::TransferId) -> bool {
        self.reshards.values().any(|reshard| reshard.transfer.id() == transfer)
    }

    /// A source rank cannot send the cells of a reshard. False if it is none's.
    pub(crate) fn on_reshard_transfer_failed(
        &mut self,
        transfer: kvasir_kv::TransferId,
        fault: TransferFault,
        reason: &str,
    ) -> bool {
        let mut reshards = self.reshards.values();
        let found = reshards.find(|reshard| reshard.transfer.id() == transfer && !reshard.is_switched());
        match found.map(|reshard| reshard.epoch) {
            Some(epoch) => {
                self.fail_reshard_of(epoch, fault, reason.to_owned());
                true
            }
            None => false,
        }
    }

    fn fail_reshard_of(&mut self, epoch: Epoch, fault: TransferFault, reason: String) {
        let found = self.reshards.iter().find(|(_, reshard)| reshard.epoch == epoch);
        if let Some(group) = found.map(|(group, _)| *group) {
            let reshard = self.reshards.remove(&group).expect("just found");
            self.end_reshard(reshard, ReshardOutcome::Failed { fault, reason });
        }
    }

    /// Groups that have fewer ranks than they are to have take free workers in.
    pub(crate) fn grow(&mut self) {
        if !self.config.grow {
            return;
        }
        let steady = self.clock.read();
        for index in 0..self.groups.len() {
            let group = &self.groups[index];
            let Some(active) = group.active.as_ref().filter(|active| active.proven && group.serves()) else {
                continue;
            };
            let (id, ranks) = (group.id, active.world_size() as u32);
            if ranks >= group.size || steady < group.grow_at || self.reshards.contains_key(&id) {
                continue;
            }
            let current = active.formation.sessions.clone();
            let available = self.reshard_candidates(id, &current, &[]).len() as u32;
            let wanted = group.size.min(available);
            if wanted > ranks && self.begin_reshard(id, wanted, &[], None).is_err() {
                self.groups[index].grow_at = crate::detector::Steady(steady.0 + GROW_RETRY);
            }
        }
    }

    pub(crate) fn is_resharding(&self, group: GroupId) -> bool {
        self.reshards.get(&group).is_some_and(|reshard| !reshard.is_switched())
    }

    pub(crate) fn reshard_statuses(&self) -> Vec<ReshardStatus> {
        let worker = |session: &SessionId| Some(self.workers.get(*session)?.info.id.clone());
        let status = |reshard: &Reshard| ReshardStatus {
            group: reshard.group,
            epoch: reshard.epoch,
            stage: reshard.stage.name(),
            from_ranks: reshard.from_ranks,
            workers: reshard
                .next
                .formation
                .sessions
                .iter()
                .filter_map(worker)
                .collect::<Vec<WorkerId>>(),
            cells_planned: reshard.transfer.cells_planned,
            cells_arrived: reshard.transfer.cells_arrived,
            bytes: reshard.transfer.bytes,
            age: self.now.since(reshard.began),
        };
        self.reshards.values().map(status).collect()
    }

    /// # Panics
    /// If a group stands still for no reshard.
    pub(crate) fn check_reshards(&self) {
        for group in &self.groups {
            let frozen = self.reshards.get(&group.id).map(|reshard| reshard.stage);
            let frozen = matches!(frozen, Some(Stage::Frozen { .. }));
            assert!(
                !group.scheduler.stands_still() || frozen,
                "group {} stands still for nothing",
                group.id
            );
        }
    }
}

impl Reshard {
    /// The one to come.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn is_switched(&self) -> bool {
        matches!(self.stage, Stage::Switched { .. })
    }

    fn rank_of(&self, session: SessionId) -> Option<Rank> {
        let mut sessions = self.next.formation.sessions.iter();
        let rank = sessions.position(|other| *other == session)?;
        Some(Rank(rank as u32))
    }
}

/// Under the same name on both sides.
fn copy(block: TaggedBlock, written: u32) -> BlockCopy {
    BlockCopy {
        source: block,
        target: block,
        written,
    }
}
