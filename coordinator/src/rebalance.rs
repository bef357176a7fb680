//! Making room by moving: where a group has none for the sequence that is next, or for what its running ones need soon,
//! some of these go to a group that has.
//!
//! What would be preempted, and computed again, is moved instead. Those last in precedence go first. Nobody is moved
//! unless those who can be moved make enough room together, and nobody to a group that would then be short itself; so no
//! sequence goes back and forth.

use kvasir_kv::{GroupId, SequenceId};

use crate::{Cluster, MigrationReason, group::Group, preemption::Lack, scheduler::Scheduler, sequence::Sequence};

/// Whoever ends within so many tokens makes room sooner than by moving.
const TOKENS_LEFT_MIN: u32 = 16;
/// A block that is needed within so many tokens is needed soon: a migration takes about as many steps.
const SOON: u32 = 24;
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

    /// What the group is short of, or soon will be.
    fn lack_of(&mut self, id: GroupId) -> Option<Lack> {
        let soon = self.group(id).scheduler.lack_soon();
        let next = self.group(id).scheduler.next_waiting();
        let waiting = next.and_then(|next| {
            let chain = self.chain_of_waiting(id, next)?;
            self.group(id).scheduler.lack_for(next, &chain)
        });
        waiting.or(soon).filter(Lack::is_some)
    }

    /// Who goes, and where; nobody if that would not be enough.
    fn who_makes_room(&self, group: &Group, mut lack: Lack) -> Vec<(SequenceId, GroupId)> {
        let mut gone: Vec<(SequenceId, GroupId)> = Vec::new();
        let mut targets = Vec::new();
        for other in &self.groups {
            let apt = other.id != group.id && other.serves() && other.role.keeps_answers();
            let still = !self.is_closing(other) && !self.is_resharding(other.id);
            // Its own come first.
            if apt && still && other.scheduler.waiting().next().is_none() {
                targets.push((other, other.scheduler.num_free_places(), 0));
            }
        }
        for sequence in group.scheduler.sequences().rev().filter(|sequence| may_move(sequence)) {
            if !lack.is_some() || gone.len() == MIGRATIONS_MAX {
                break;
            }
            let needed = |scheduler: &Scheduler| scheduler.blocks_to_decode(sequence);
            let target = targets.iter_mut().find(|(other, places, blocks)| {
                let scheduler = &other.scheduler;
                *places > 0
                    && scheduler.fits_pool(&sequence.request).is_ok()
                    && scheduler.blocks_to_spare() >= *blocks + needed(scheduler)
            });
            if let Some((other, places, blocks)) = target {
                *places -= 1;
                *blocks += needed(&other.scheduler);
                gone.push((sequence.id, other.id));
                lack.relieve(group.scheduler.freed_by(sequence));
            }
        }
        if lack.is_some() { Vec::new() } else { gone }
    }
}

fn may_move(sequence: &Sequence) -> bool {
    let known = sequence.running().is_some_and(|running| running.last_named.is_some());
    let left = sequence.request.max_tokens.saturating_sub(sequence.answer_len());
    known && left >= TOKENS_LEFT_MIN
}

impl Scheduler {
    /// A place, and blocks for all that is known of it and a little more.
    pub(super) fn has_room_to_decode(&self, sequence: &Sequence) -> bool {
        self.num_free_places() > 0
            && self.fits_pool(&sequence.request).is_ok()
            && self.blocks_to_spare() >= self.blocks_to_decode(sequence)
    }

    /// Blocks of a sequence that comes, and the next one that it will want.
    fn blocks_to_decode(&self, sequence: &Sequence) -> u32 {
        let block_size = self.limits.block_size;
        let worst = sequence.positions_max().div_ceil(block_size);
        (sequence.len_expected().div_ceil(block_size) + 1).min(worst)
    }

    /// Blocks that nobody here needs, or will need soon.
    fn blocks_to_spare(&self) -> u32 {
        let promised: u32 = self.sequences().map(|other| self.blocks_promised(other)).sum();
        self.block_counts()
            .available()
            .saturating_sub(promised + self.blocks_soon())
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

    fn lack_soon(&self) -> Option<Lack> {
        let counts = self.block_counts();
        let blocks = self.blocks_soon().saturating_sub(counts.available() + counts.in_flight);
        self.books.as_ref()?;
        Some(Lack { places: 0, blocks })
    }
}
