//! Making room by moving: where a group has none for the sequence that is next, or for what its running ones need soon,
//! some of these go to a group that has.
//!
//! What would be preempted, and computed again, is moved instead. Those last in precedence go first. Nobody is moved
//! unless those who can be moved make enough room together, and nobody to a group that would then be short itself; so no
//! sequence goes back and forth.
//!
//! And evening out: a sequence that has much to say goes from a group with much to do to one with little, if that leaves
//! the busier of the two with clearly less. What an operator has put somewhere stays there.

use std::time::Duration;

use kvasir_kv::{GroupId, SequenceId};

use crate::{
    Cluster, MigrationReason, detector::Steady, group::Group, preemption::Lack, scheduler::Scheduler,
    sequence::Sequence,
};

/// Whoever ends within so many tokens makes room sooner than by moving.
const TOKENS_LEFT_MIN: u32 = 16;
/// A block that is needed within so many tokens is needed soon: a migration takes about as many steps.
const SOON: u32 = 24;
/// Only who has more to say than this moves for the load alone.
const TOKENS_LEFT_FOR_LOAD: u32 = 64;
/// The busier of two groups must be left with this part of its load at most.
const RELIEF: f64 = 0.8;
/// What was moved for the load is to show before more is moved.
const LOAD_RETRY: Duration = Duration::from_secs(1);
/// Of one group at a time.
const MIGRATIONS_MAX: usize = 4;

impl Cluster {
    pub(crate) fn rebalance(&mut self) {
        if !self.config.rebalance || self.groups.len() < 2 {
            return;
        }
        for index in 0..self.groups.len() {
            let group = &self.groups[index];
            let id = group.id;
            let moves = self.migrations.values().any(|migration| migration.touches(id));
            if !group.serves() || moves || self.is_resharding(id) || self.clock.read() < group.move_at {
                continue;
            }
            let Some(lack) = self.lack_of(id) else { continue };
            let moves = self.who_makes_room(self.group(id), lack);
            for (sequence, target) in moves {
                if self.begin_migration(sequence, target, MigrationReason::Room).is_err() {
                    let steady = self.clock.read();
                    self.group_mut(id).rest(steady);
                }
            }
        }
    }

    /// Moves one sequence from each group that has much more to do than another.
    pub(crate) fn even_load(&mut self) {
        if !self.config.even_load || self.groups.len() < 2 {
            return;
        }
        let steady = self.clock.read();
        for index in 0..self.groups.len() {
            let group = &self.groups[index];
            let id = group.id;
            if !group.serves() || self.has_transfers(id) || self.is_resharding(id) || steady < group.load_at {
                continue;
            }
            if let Some((sequence, target)) = self.who_evens_out(group) {
                let _ = self.begin_migration(sequence, target, MigrationReason::Load);
                self.group_mut(id).load_at = Steady(steady.0 + LOAD_RETRY);
                self.group_mut(target).load_at = Steady(steady.0 + LOAD_RETRY);
            }
        }
    }

    /// Who goes, and where, so that the busier of both groups is relieved most.
    fn who_evens_out(&self, group: &Group) -> Option<(SequenceId, GroupId)> {
        let apt = |other: &&Group| {
            let is_calm = other.scheduler.waiting().next().is_none() && !self.has_transfers(other.id);
            self.may_go_on_in(other, group.id) && is_calm
        };
        let speed = |group: &Group| group.speed().max(f64::MIN_POSITIVE);
        let load = |group: &Group| group.scheduler.load() as f64 / speed(group);
        let before = load(group);
        let movable = group.scheduler.sequences().rev().filter(|sequence| {
            may_move(sequence, TOKENS_LEFT_FOR_LOAD) && sequence.wanted() <= 1 && !sequence.was_ordered
        });
        let movable: Vec<&Sequence> = movable.collect();
        let targets = self.groups.iter().filter(apt);
        let moves = targets.flat_map(|other| {
            let room = other.scheduler.spare_room();
            let fitting = movable
                .iter()
                .filter(move |sequence| room.has_room_for(sequence, &other.scheduler));
            fitting.map(move |sequence| {
                let moved = f64::from(sequence.wanted() + sequence.len_expected());
                let after = (before - moved / speed(group)).max(load(other) + moved / speed(other));
                (after, sequence.id, other.id)
            })
        });
        let (after, sequence, target) = moves.min_by(|a, b| a.0.total_cmp(&b.0))?;
        (after <= RELIEF * before).then_some((sequence, target))
    }

    /// What the group is short of, or soon will be.
    fn lack_of(&mut self, id: GroupId) -> Option<Lack> {
        let next = self.group(id).scheduler.next_waiting();
        let waiting = next.and_then(|next| {
            let chain = self.chain_of_waiting(id, next)?;
            self.group(id).scheduler.lack_for(next, &chain)
        });
        let soon = || Some(self.group(id).scheduler.lack_soon());
        waiting.filter(Lack::is_some).or_else(soon).filter(Lack::is_some)
    }

    /// Who goes, and where; nobody if that would not be enough.
    fn who_makes_room(&self, group: &Group, mut lack: Lack) -> Vec<(SequenceId, GroupId)> {
        let mut gone: Vec<(SequenceId, GroupId)> = Vec::new();
        // A group's own come first.
        let apt = |other: &&Group| self.may_go_on_in(other, group.id) && other.scheduler.waiting().next().is_none();
        let targets = self.groups.iter().filter(apt);
        let mut targets: Vec<_> = targets.map(|other| (other, other.scheduler.spare_room())).collect();
        for sequence in group
            .scheduler
            .sequences()
            .rev()
            .filter(|sequence| may_move(sequence, TOKENS_LEFT_MIN))
        {
            if !lack.is_some() || gone.len() == MIGRATIONS_MAX {
                break;
            }
            let target = targets
                .iter_mut()
                .find(|(other, room)| room.has_room_for(sequence, &other.scheduler));
            if let Some((other, room)) = target {
                room.places -= 1;
                room.blocks -= other.scheduler.blocks_needed(sequence);
                gone.push((sequence.id, other.id));
                lack.relieve(group.scheduler.freed_by(sequence));
            }
        }
        if lack.is_some() { Vec::new() } else { gone }
    }
}

/// Its ranks know it, and it may have so many tokens left to say.
fn may_move(sequence: &Sequence, left_min: u32) -> bool {
    let known = sequence.running().is_some_and(|running| running.last_named.is_some());
    let left = sequence.request.max_tokens.saturating_sub(sequence.answer_len());
    known && left >= left_min
}

/// What a group can take in and not be short itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct SpareRoom {
    places: u32,
    blocks: u32,
}

impl SpareRoom {
    /// For all that is known of a sequence and a little more; `scheduler` is the one whose room this is.
    pub fn has_room_for(&self, sequence: &Sequence, scheduler: &Scheduler) -> bool {
        let fits = scheduler.fits_pool(&sequence.request).is_ok();
        fits && self.places > 0 && self.blocks >= scheduler.blocks_needed(sequence)
    }
}

impl Scheduler {
    pub(super) fn spare_room(&self) -> SpareRoom {
        let promised: u32 = self.sequences().map(|other| self.blocks_promised(other)).sum();
        let needed = promised + self.blocks_soon();
        SpareRoom {
            places: self.num_free_places(),
            blocks: self.block_counts().available().saturating_sub(needed),
        }
    }

    /// Blocks that running sequences will want within the next few steps.
    fn blocks_soon(&self) -> u32 {
        let block_size = self.limits.block_size;
        let wants = |sequence: &&Sequence| {
            let until = (sequence.len_expected() + SOON).min(sequence.positions_max());
            let has = sequence
                .running()
                .map(|running| running.blocks.len() as u32 * block_size);
            has.is_some_and(|has| until > has)
        };
        self.sequences().filter(wants).count() as u32
    }

    fn lack_soon(&self) -> Lack {
        let counts = self.block_counts();
        let blocks = self.blocks_soon().saturating_sub(counts.available() + counts.in_flight);
        Lack { places: 0, blocks }
    }
}
