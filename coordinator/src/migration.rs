//! Migration: a running sequence goes to another group with all that was computed, and goes on there.
//!
//! Blocks are *copied* while the source goes on decoding. When no full one is left, the sequence is *frozen*: it gets no
//! more steps at the source, and the rest is copied behind the steps that are out. When that has come and the last token
//! is known, the target *adopts* it: its next plan admits the sequence with blocks that need no computing. Whatever goes
//! wrong before that ends the transfer at both ends, blocks are given back, and the sequence goes on at the source.
//!
//! Messages of a session keep their order. That is why the cells of a step that was only sent can be asked for, and why
//! blocks are free at once when a transfer ends: no rank takes a cell after it was told so.

use std::time::Duration;

use kvasir_kv::{
    AdoptedBlock, BlockCopy, Epoch, GroupId, Rank, RequestId, Route, SequenceId, TaggedBlock, Ticket, ToWorker,
    TransferFault, TransferId, WorkerId, transfer_routes,
};

use crate::{
    Cluster, Effect, Now, SessionId,
    cluster::mix,
    event::{MigrationError, MigrationOutcome, MigrationReason, MigrationReport},
    group::{Active, Group},
    scheduler::Scheduler,
    sequence::{Running, Sequence},
    status::TransferStatus,
    transfer::{Arrived, Lane, Transfer},
};

/// A round may take so long, and what a client waits for so long.
const COPY_DEADLINE: Duration = Duration::from_secs(30);
const FROZEN_DEADLINE: Duration = Duration::from_secs(3);
/// A source that fills blocks faster than they travel is frozen after so many rounds.
const ROUNDS_MAX: u32 = 16;

#[derive(Debug)]
pub(crate) struct Migration {
    transfer: Transfer,
    sequence: SequenceId,
    request: RequestId,
    source: GroupId,
    target: GroupId,
    reason: MigrationReason,
    stage: Stage,
    /// The blocks of the sequence that are at the target or on their way, by their names at the source.
    sent: Vec<TaggedBlock>,
    /// What was copied, in token order; the target had the blocks before them.
    copies: Vec<BlockCopy>,
    /// The block that was not full yet in the last round, as it was copied then.
    begun: Option<BlockCopy>,
    /// Of a handoff: bytes that had come before the source had computed the prompt.
    prompt_bytes: u64,
    /// Tokens that the sequence had when it began.
    tokens: usize,
    began: Now,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Copying,
    /// Since the last token of the source is known, if it is.
    Frozen {
        drained: Option<Now>,
    },
    /// At home in the target group; it had so many tokens when it came.
    Adopted {
        drained: Now,
        tokens: usize,
        /// The target's ranks know the sequence: the transfer is over for them.
        closed: bool,
    },
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Copying => "copying",
            Self::Frozen { .. } => "frozen",
            Self::Adopted { .. } => "adopted",
        }
    }
}

impl Migration {
    /// It goes from or to this group.
    pub fn touches(&self, group: GroupId) -> bool {
        let home = !matches!(self.stage, Stage::Adopted { closed: true, .. });
        home && (self.source == group || self.target == group)
    }
}

impl Cluster {
    pub(crate) fn check_target(&self, target: GroupId) -> Result<(), MigrationError> {
        let groups = self.groups.len() as u32;
        let group = self.groups.get(target.0 as usize);
        match group
            .ok_or(MigrationError::UnknownGroup { group: target, groups })?
            .serves()
        {
            true => Ok(()),
            false => Err(MigrationError::NotServing(target)),
        }
    }

    pub(crate) fn roomiest_but(&self, source: GroupId) -> Option<GroupId> {
        let others = self.groups.iter().filter(|group| self.is_elsewhere(group, source));
        let room = |group: &&Group| {
            (
                group.role.keeps_answers(),
                group.scheduler.num_free_places() > 0,
                group.scheduler.block_counts().available(),
            )
        };
        others.max_by_key(room).map(|group| group.id)
    }

    /// Moves a sequence. One that waits goes at once; then nothing is open, and false is returned.
    pub(crate) fn begin_migration(
        &mut self,
        id: SequenceId,
        target: GroupId,
        reason: MigrationReason,
    ) -> Result<bool, MigrationError> {
        self.check_target(target)?;
        let source = self.home_of(id).ok_or(MigrationError::UnknownSequence(id))?;
        if self.is_moving(id) {
            return Err(MigrationError::UnderWay(id));
        }
        let sequence = self.group(source).scheduler.get(id).expect("it is at home there");
        let to = &self.group(target).scheduler;
        if let Err(error) = to.fits_pool(&sequence.request) {
            return Err(MigrationError::TooSmall(error.to_string()));
        }
        if sequence.running().is_none_or(|running| running.last_named.is_none()) {
            // What no plan has named is left behind, a copy of a cached prompt too.
            self.group_mut(source).scheduler.release(id);
            let sequence = self.group(source).scheduler.get(id).expect("it is at home there");
            let portable = sequence.is_portable();
            if portable {
                self.say_farewell(source);
                self.hand_over(id, source, target);
                let sequence = self
                    .group_mut(target)
                    .scheduler
                    .get_mut(id)
                    .expect("it came a moment ago");
                sequence.was_ordered |= matches!(reason, MigrationReason::Order(_));
            }
            return if portable {
                Ok(false)
            } else {
                Err(MigrationError::UnderWay(id))
            };
        }
        if to.num_free_places() == 0 {
            return Err(MigrationError::NoPlace {
                group: target,
                sequences_max: self.config.sequences_max,
            });
        }
        if let Some(group) = [source, target].into_iter().find(|group| self.is_resharding(*group)) {
            return Err(MigrationError::Resharding(group));
        }
        let (request, tokens) = (sequence.request.id.clone(), sequence.tokens.len());
        let (from, to) = (self.group(source), self.group(target));
        let (Some(source_active), Some(target_active)) = (&from.active, &to.active) else {
            return Err(MigrationError::NotServing(source));
        };
        if let Some(worker) = self.worker_without_transfers(target_active) {
            return Err(MigrationError::NoTransfers(worker));
        }
        let routes = transfer_routes(&source_active.formation.plan, &target_active.formation.plan, |_, _| {
            false
        });
        let lanes = self.lanes(
            routes,
            &source_active.formation.sessions,
            &target_active.formation.sessions,
        );
        let ticket = self.next_ticket(from.epoch, to.epoch);
        let migration = Migration {
            transfer: Transfer::new(ticket, lanes, self.now),
            sequence: id,
            request,
            source,
            target,
            reason,
            stage: Stage::Copying,
            sent: Vec::new(),
            copies: Vec::new(),
            begun: None,
            prompt_bytes: 0,
            tokens,
            began: self.now,
        };
        self.transfers_begun += 1;
        self.counters.migrations_begun += 1;
        self.effects.push(Effect::MigrationBegan {
            transfer: migration.transfer.ticket.transfer,
            request: migration.request.clone(),
            sequence: id,
            source,
            target,
            reason,
        });
        self.start_copying(migration);
        Ok(true)
    }

    pub(crate) fn worker_without_transfers(&self, active: &Active) -> Option<WorkerId> {
        let members = active.members.iter();
        let mut workers = members.filter_map(|member| self.workers.get(member.session));
        let without = workers.find(|worker| worker.info.transfer_address.is_empty());
        without.map(|worker| worker.info.id.clone())
    }

    /// Something is on its way from or to this group.
    pub(crate) fn has_transfers(&self, group: GroupId) -> bool {
        self.migrations.values().any(|migration| migration.touches(group))
            || self.prefix_copies.values().any(|copy| copy.touches(group))
    }

    pub(crate) fn next_ticket(&self, source: Epoch, target: Epoch) -> Ticket {
        let transfer = TransferId(self.transfers_begun + 1);
        Ticket {
            transfer,
            secret: mix(self.config.nonce_seed ^ TICKET_SALT, transfer.0),
            source,
            target,
        }
    }

    /// The ways between the ranks of two groups, or of two epochs of one; sessions in rank order.
    pub(crate) fn lanes(&self, routes: Vec<Route>, source: &[SessionId], target: &[SessionId]) -> Vec<Lane> {
        let end = |session: SessionId| Some((session, &self.workers.get(session)?.info));
        let lane = |route: Route| {
            let from = end(*source.get(route.source.0 as usize)?)?;
            let to = end(*target.get(route.target.0 as usize)?)?;
            Some(Lane::new(route, from, to, self.config.force_tcp))
        };
        routes.into_iter().filter_map(lane).collect()
    }

    pub(crate) fn is_moving(&self, sequence: SequenceId) -> bool {
        let mut migrations = self.migrations.values();
        migrations.any(|migration| migration.sequence == sequence)
    }

    /// Another group that serves and has workers that stay.
    fn is_elsewhere(&self, group: &Group, source: GroupId) -> bool {
        group.id != source && group.serves() && !self.is_closing(group)
    }

    /// Sequences of `source` could go on in it.
    pub(crate) fn may_go_on_in(&self, group: &Group, source: GroupId) -> bool {
        self.is_elsewhere(group, source) && group.role.keeps_answers() && !self.is_resharding(group.id)
    }

    fn home_of(&self, id: SequenceId) -> Option<GroupId> {
        let home = self.groups.iter().find(|group| group.scheduler.contains(id));
        home.map(|group| group.id)
    }

    /// What the target's prefix cache has of the sequence is not copied.
    fn start_copying(&mut self, mut migration: Migration) {
        let block_size = self.config.cell.block_size();
        let scheduler = &mut self.groups[migration.source.0 as usize].scheduler;
        let sequence = scheduler.get(migration.sequence).expect("it runs there");
        let root = scheduler.prefix_root(&sequence.request.tenant);
        let sequence = scheduler.get_mut(migration.sequence).expect("it runs there");
        let running = sequence.running().expect("it runs");
        let full = (running.scheduled / block_size) as usize;
        let named: Vec<TaggedBlock> = running.blocks.tagged().take(full).collect();
        let mut chain = match root {
            Some(root) => sequence.block_hashes(root, block_size).to_vec(),
            None => Vec::new(),
        };
        chain.truncate(full);
        let target = &mut self.groups[migration.target.0 as usize].scheduler;
        let shared = target.open_inbound(migration.transfer.id(), &chain);
        migration.sent.extend(&named[..shared.len()]);
        migration.transfer.starts_after = shared;
        self.migrations.insert(migration.transfer.id(), migration);
    }

    /// Brings each migration as far as it can get now.
    pub(crate) fn advance_migrations(&mut self) {
        let transfers: Vec<TransferId> = self.migrations.keys().copied().collect();
        for transfer in transfers {
            if let Some(migration) = self.migrations.remove(&transfer) {
                match self.advance(migration) {
                    Ok(migration) => {
                        self.migrations.insert(transfer, migration);
                    }
                    Err((migration, outcome)) => self.end_migration(migration, outcome),
                }
            }
        }
    }

    /// The migration, or it with its end.
    #[allow(clippy::result_large_err)] // the error is the value itself, handed back
    fn advance(&mut self, mut migration: Migration) -> Result<Migration, (Migration, MigrationOutcome)> {
        if let Stage::Adopted { .. } = migration.stage {
            return self.settle(migration);
        }
        if let Some(outcome) = self.obstacle(&migration) {
            return Err((migration, outcome));
        }
        let sequence = self.group(migration.source).scheduler.get(migration.sequence);
        let in_prompt = sequence.is_some_and(|sequence| sequence.tokens.len() == migration.tokens);
        if in_prompt && migration.reason == MigrationReason::Handoff {
            migration.prompt_bytes = migration.transfer.bytes;
        }
        if migration.stage == Stage::Copying
            && migration.transfer.is_complete()
            && let Err(outcome) = self.next_round(&mut migration)
        {
            return Err((migration, outcome));
        }
        if let Stage::Frozen { drained } = migration.stage
            && self.group(migration.source).scheduler.is_drained(migration.sequence)
        {
            let drained = drained.unwrap_or(self.now);
            migration.stage = Stage::Frozen { drained: Some(drained) };
            if migration.transfer.is_complete() {
                self.adopt(&mut migration, drained);
            }
        }
        Ok(migration)
    }

    /// Why it cannot go on, if it cannot.
    fn obstacle(&self, migration: &Migration) -> Option<MigrationOutcome> {
        let (source, target) = (self.group(migration.source), self.group(migration.target));
        // First of all: whom a lost group interrupts is not there any more if another group can tell it on.
        if source.epoch != migration.transfer.ticket.source || !source.serves() {
            return Some(MigrationOutcome::SourceLost);
        }
        let Some(sequence) = source.scheduler.get(migration.sequence) else {
            return Some(match self.home_of(migration.sequence) {
                Some(_) => MigrationOutcome::Preempted,
                None => MigrationOutcome::Ended,
            });
        };
        if target.epoch != migration.transfer.ticket.target || !target.serves() {
            return Some(MigrationOutcome::TargetLost);
        }
        let same = |running: &Running| {
            let mut held = running.blocks.tagged();
            let begun = migration.begun.map(|begun| begun.source);
            let mut sent = migration.sent.iter().copied().chain(begun);
            sent.all(|sent| held.next() == Some(sent))
        };
        if !sequence.running().is_some_and(same) {
            return Some(MigrationOutcome::Preempted);
        }
        let deadline = match migration.stage {
            Stage::Copying => COPY_DEADLINE,
            Stage::Frozen { .. } | Stage::Adopted { .. } => FROZEN_DEADLINE,
        };
        (self.now.since(migration.transfer.moved) > deadline).then(|| MigrationOutcome::Failed {
            fault: TransferFault::Deadline,
            reason: format!(
                "it was {} for more than {} ms",
                migration.stage.name(),
                deadline.as_millis()
            ),
        })
    }

    /// Asks for the blocks that have been filled since the last round and for what there is of the next one; or, when none
    /// has been filled, freezes the sequence and asks for the rest. The first round is always ahead of that: connections
    /// are made and memory is touched before anybody waits.
    fn next_round(&mut self, migration: &mut Migration) -> Result<(), MigrationOutcome> {
        let block_size = self.config.cell.block_size();
        let scheduler = &self.group(migration.source).scheduler;
        let sequence = scheduler.get(migration.sequence).expect("there is no obstacle");
        let running = sequence.running().expect("there is no obstacle");
        let computed = running.scheduled;
        let held: Vec<TaggedBlock> = running.blocks.tagged().collect();
        let (full, all) = ((computed / block_size) as usize, computed.div_ceil(block_size) as usize);
        let first = migration.sent.len();
        let rounds = migration.transfer.num_rounds;
        let in_prompt = migration.reason == MigrationReason::Handoff && sequence.wanted() > 1;
        if in_prompt && full <= first {
            // The next chunk is being computed.
            migration.transfer.moved = self.now;
            return Ok(());
        }
        let freezes = !in_prompt && (rounds > 0 && full <= first || rounds >= ROUNDS_MAX);
        let until = if freezes { all } else { full.max(first) };
        let begun = migration.begun.take();
        let end = if in_prompt { full } else { all.max(first) };
        let fresh = &held[first..end];
        let target = &mut self.groups[migration.target.0 as usize].scheduler;
        let wanted = fresh.len().saturating_sub(usize::from(begun.is_some()));
        let taken = target.extend_inbound(migration.transfer.id(), wanted as u32);
        let taken = taken.map_err(|error| MigrationOutcome::TargetFull(error.to_string()))?;
        let copies: Vec<BlockCopy> = (first as u32..)
            .zip(fresh)
            .zip(begun.map(|begun| begun.target).into_iter().chain(taken))
            .map(|((index, source), target)| BlockCopy {
                source: *source,
                target,
                written: block_size.min(computed - index * block_size),
            })
            .collect();
        // What has come already, and is as it was, is not sent again.
        let asked: Vec<BlockCopy> = copies.iter().filter(|copy| begun != Some(**copy)).copied().collect();
        let asked = migration.transfer.ask(&asked, freezes, self.now);
        self.effects.extend(asked);
        let (settled, open) = copies.split_at(until - first);
        migration.sent.extend(&fresh[..settled.len()]);
        migration.copies.extend(settled);
        migration.begun = open.first().copied();
        if freezes {
            migration.stage = Stage::Frozen { drained: None };
            self.groups[migration.source.0 as usize]
                .scheduler
                .freeze(migration.sequence, true);
            target_of(&mut self.groups, migration).expect_inbound(migration.transfer.id());
        }
        Ok(())
    }

    /// All has come, and the last token of the source is known.
    fn adopt(&mut self, migration: &mut Migration, drained: Now) {
        let transfer = migration.transfer.id();
        self.end_transfer_at(migration.source, migration.transfer.ticket.source, transfer);
        let source = &mut self.groups[migration.source.0 as usize];
        let computed = source.scheduler.get(migration.sequence).and_then(Sequence::running);
        let computed = computed.expect("there is no obstacle").scheduled;
        let mut sequence = source.scheduler.depart(migration.sequence);
        sequence.was_ordered |= matches!(migration.reason, MigrationReason::Order(_));
        self.say_farewell(migration.source);
        let adopted = migration.copies.iter().map(|copy| AdoptedBlock {
            block: copy.target,
            written: copy.written,
        });
        migration.stage = Stage::Adopted {
            drained,
            tokens: sequence.tokens.len(),
            closed: false,
        };
        let adopted = adopted.collect();
        target_of(&mut self.groups, migration).adopt(sequence, transfer, computed, adopted);
        self.count_cells(&migration.transfer);
    }

    pub(crate) fn count_cells(&mut self, transfer: &Transfer) {
        self.counters.cells_planned += transfer.cells_planned;
        self.counters.cells_adopted += transfer.cells_arrived;
        self.counters.transfer_bytes += transfer.bytes;
        self.counters.transfer_shared_bytes += transfer.shared_bytes;
    }

    /// The ranks of a group forget whom they need not know any more, before another group learns of them.
    fn say_farewell(&mut self, group: GroupId) {
        let steady = self.clock.read();
        let group = &mut self.groups[group.0 as usize];
        let Some(active) = group.active.as_mut() else { return };
        let idle: Vec<bool> = (0..active.world_size() as u32)
            .map(|rank| !group.scheduler.is_busy(Rank(rank)))
            .collect();
        if let Some(plan) = group.scheduler.farewell(steady) {
            active.touch(&idle, steady);
            self.effects.extend(active.send_step(plan));
        }
    }

    /// It is at home in the target group: until its ranks know it and it has got on, there is something left to do.
    #[allow(clippy::result_large_err)]
    fn settle(&mut self, mut migration: Migration) -> Result<Migration, (Migration, MigrationOutcome)> {
        let Stage::Adopted {
            drained,
            tokens,
            closed,
        } = migration.stage
        else {
            return Ok(migration);
        };
        let target = self.group(migration.target);
        let sequence = target.scheduler.get(migration.sequence);
        let lives = target.epoch == migration.transfer.ticket.target && sequence.is_some();
        let running = sequence.and_then(Sequence::running);
        let is_known = !lives || running.is_none_or(|running| running.last_named.is_some());
        let got_on = sequence.is_none_or(|sequence| sequence.tokens.len() > tokens);
        if is_known && !closed {
            self.end_transfer_at(
                migration.target,
                migration.transfer.ticket.target,
                migration.transfer.id(),
            );
            migration.stage = Stage::Adopted {
                drained,
                tokens,
                closed: true,
            };
        }
        if is_known && (got_on || !lives) {
            let pause = self.now.since(drained);
            return Err((migration, MigrationOutcome::Moved { pause }));
        }
        Ok(migration)
    }

    fn end_migration(&mut self, migration: Migration, outcome: MigrationOutcome) {
        if !matches!(migration.stage, Stage::Adopted { .. }) {
            let transfer = migration.transfer.id();
            self.end_transfer_at(migration.source, migration.transfer.ticket.source, transfer);
            self.end_transfer_at(migration.target, migration.transfer.ticket.target, transfer);
            let target = target_of(&mut self.groups, &migration);
            target.close_inbound(transfer);
            self.groups[migration.source.0 as usize]
                .scheduler
                .freeze(migration.sequence, false);
        }
        match outcome {
            MigrationOutcome::Moved { pause } => {
                self.counters.migrations_moved += 1;
                self.counters.migration_pause_us += pause.as_micros() as u64;
                self.count_reason(&migration);
            }
            MigrationOutcome::Ended => self.counters.migrations_ended += 1,
            _ => self.counters.migrations_failed += 1,
        }
        if !matches!(outcome, MigrationOutcome::Moved { .. }) {
            let steady = self.clock.read();
            self.group_mut(migration.source).rest(steady);
        }
        let report = MigrationReport {
            transfer: migration.transfer.id(),
            request: migration.request,
            sequence: migration.sequence,
            source: migration.source,
            target: migration.target,
            reason: migration.reason,
            outcome,
            cells: migration.transfer.cells_arrived,
            bytes: migration.transfer.bytes,
            prompt_bytes: migration.prompt_bytes,
            rounds: migration.transfer.num_rounds,
            took: self.now.since(migration.began),
        };
        self.effects.push(Effect::MigrationEnded(report.clone()));
        if let MigrationReason::Order(order) = migration.reason {
            self.add_to_order(order, report);
        }
    }

    fn count_reason(&mut self, moved: &Migration) {
        let counters = &mut self.counters;
        match moved.reason {
            MigrationReason::Order(_) | MigrationReason::Drain => {}
            MigrationReason::Room => counters.migrations_for_room += 1,
            MigrationReason::Load => counters.migrations_for_load += 1,
            MigrationReason::Handoff => {
                counters.handoffs += 1;
                counters.handoff_bytes += moved.transfer.bytes;
                counters.transfer_prompt_bytes += moved.prompt_bytes;
            }
        }
    }

    /// The ranks of a group, if it still is in that epoch, let go of a transfer.
    pub(crate) fn end_transfer_at(&mut self, group: GroupId, epoch: Epoch, transfer: TransferId) {
        let group = &self.groups[group.0 as usize];
        if let Some(active) = group.active.as_ref().filter(|_| group.epoch == epoch) {
            self.effects
                .extend(active.send_all(&ToWorker::EndTransfer { transfer }));
        }
    }

    /// A target rank has all of a round that one source rank was to send it.
    pub(crate) fn on_cells_arrived(&mut self, target: Rank, transfer: TransferId, arrived: Arrived) {
        if self.on_prefix_arrived(target, transfer, arrived) {
            return;
        }
        let Some(migration) = self.migrations.get_mut(&transfer) else {
            self.counters.messages_stale += 1;
            return;
        };
        migration.transfer.on_arrived(target, arrived, self.now);
    }

    /// A rank cannot send or take the cells of a transfer.
    pub(crate) fn on_transfer_failed(&mut self, transfer: TransferId, fault: TransferFault, reason: String) {
        let is_known = self.migrations.contains_key(&transfer)
            || self.prefix_copies.contains_key(&transfer)
            || self.is_reshard_transfer(transfer);
        // An end that breaks after a transfer is over is no news; a stranger is.
        if !is_known && matches!(fault, TransferFault::Connection | TransferFault::Deadline) {
            self.counters.messages_stale += 1;
            return;
        }
        self.counters.count_refused(fault);
        if self.on_reshard_transfer_failed(transfer, fault, &reason)
            || self.on_prefix_copy_failed(transfer, fault, &reason)
        {
            return;
        }
        let stage = self.migrations.get(&transfer).map(|migration| migration.stage);
        match stage {
            None | Some(Stage::Adopted { .. }) => {
                self.effects.push(Effect::TransferRefused {
                    transfer,
                    fault,
                    reason,
                });
            }
            Some(_) => {
                let migration = self.migrations.remove(&transfer).expect("just seen");
                self.end_migration(migration, MigrationOutcome::Failed { fault, reason });
            }
        }
    }

    pub(crate) fn transfer_statuses(&self) -> impl Iterator<Item = TransferStatus> + '_ {
        self.migrations.values().map(|migration| TransferStatus {
            transfer: migration.transfer.id(),
            request: migration.request.clone(),
            source: migration.source,
            target: migration.target,
            stage: migration.stage.name(),
            reason: migration.reason.name(),
            cells_planned: migration.transfer.cells_planned,
            cells_arrived: migration.transfer.cells_arrived,
            bytes: migration.transfer.bytes,
            age: self.now.since(migration.began),
        })
    }

    /// # Panics
    /// If a frozen sequence is nobody's, or blocks are taken for no migration.
    pub(crate) fn check_migrations(&self) {
        for group in &self.groups {
            for transfer in group.scheduler.inbound.keys() {
                let migration = self.migrations.get(transfer);
                let copy = self.prefix_copies.get(transfer);
                let known = migration.is_some_and(|migration| migration.target == group.id)
                    || copy.is_some_and(|copy| copy.goes_to(group.id));
                assert!(known, "blocks are taken for transfer {transfer}, which is none");
            }
            let frozen = |sequence: &&Sequence| sequence.running().is_some_and(|running| running.frozen);
            for sequence in group.scheduler.sequences().filter(frozen) {
                assert!(
                    self.is_moving(sequence.id),
                    "{} is frozen and goes nowhere",
                    sequence.id
                );
            }
        }
    }
}

/// Keeps the secrets of tickets apart from the nonces of epochs.
const TICKET_SALT: u64 = 0x7469_636b_6574_2e2e;

fn target_of<'a>(groups: &'a mut [Group], migration: &Migration) -> &'a mut Scheduler {
    &mut groups[migration.target.0 as usize].scheduler
}
