//! Who gives way to whom. A preempted sequence gives its blocks back and waits again; the ranks compute it again from its
//! tokens, after what the prefix cache still has of it.
//!
//! Two reasons. *Blocks run out*: the last in precedence gives way, so that the first always gets on. *Somebody waits who
//! must not*: a sequence of a lower priority value, or one of a tenant that would stay within its share while another has
//! more than its own. The share is the same part for each tenant that is there, of the places that are
//! taken and of all blocks.
//!
//! There is no livelock. By priority only later ones give way. For a tenant's share, whoever gives way belongs to a tenant
//! that was served more, and the other way round only after the first one was served more by at least one new token; a
//! sequence that has never run is let in at equal service, which it can be only once. Whoever made others give way is next,
//! so that they do not take the room back before it has come free.

use std::collections::BTreeMap;

use kvasir_kv::{BlockHash, PrefixHit, SequenceId, TenantId};

use crate::{
    planner::Draft,
    scheduler::Scheduler,
    sequence::{Running, Sequence},
};

/// Whether a sequence's blocks could be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Room {
    Ready,
    /// Not in this step: blocks are in flight, or it was preempted itself.
    Wait,
}

/// What running sequences hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Holding {
    places: u32,
    blocks: u32,
}

impl Holding {
    fn exceeds(self, share: Self) -> bool {
        self.places > share.places || self.blocks > share.blocks
    }
}

/// What each tenant holds, and what it may hold before others come first.
#[derive(Debug)]
pub(super) struct Shares<'a> {
    /// An equal part for each tenant that is there, rounded up: of the places taken and one more, and of all blocks.
    of_each: Holding,
    /// By tenant; a block that several sequences share counts for each.
    held: BTreeMap<&'a TenantId, Holding>,
}

impl Shares<'_> {
    fn held_by(&self, tenant: &TenantId) -> Holding {
        self.held.get(tenant).copied().unwrap_or_default()
    }

    pub fn is_exceeded_by(&self, tenant: &TenantId) -> bool {
        self.held_by(tenant).exceeds(self.of_each)
    }

    /// Whether one more sequence, of so many blocks, would leave the tenant within its share.
    pub fn has_room_for(&self, tenant: &TenantId, blocks: u32) -> bool {
        let mut holding = self.held_by(tenant);
        holding.places += 1;
        holding.blocks += blocks;
        !holding.exceeds(self.of_each)
    }

    fn give_back(&mut self, tenant: &TenantId, blocks: u32) {
        if let Some(holding) = self.held.get_mut(tenant) {
            holding.places -= 1;
            holding.blocks -= blocks;
        }
    }
}

/// What a waiting sequence lacks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lack {
    pub places: u32,
    /// Beyond what is available, or will be.
    pub blocks: u32,
}

impl Lack {
    pub fn is_some(&self) -> bool {
        self.places > 0 || self.blocks > 0
    }

    /// A place comes free, with so many blocks.
    pub fn relieve(&mut self, blocks: u32) {
        self.places = self.places.saturating_sub(1);
        self.blocks = self.blocks.saturating_sub(blocks);
    }
}

impl Scheduler {
    /// Preempts from the last in precedence on until `needed` blocks can be had, or will be; the last preempts itself.
    pub(super) fn make_room(&mut self, id: SequenceId, needed: u32, draft: &mut Draft) -> Room {
        loop {
            let counts = self.block_counts();
            if counts.available() >= needed {
                return Room::Ready;
            }
            if counts.available() + counts.in_flight >= needed {
                return Room::Wait;
            }
            let last = self.last_running().expect("the one that needs blocks runs");
            self.preempt(last, draft);
            if last == id {
                return Room::Wait;
            }
        }
    }

    /// Who is last in precedence gives up its blocks.
    ///
    /// # Panics
    /// If nobody runs.
    pub(super) fn preempt_last(&mut self) {
        let last = self.last_running().expect("somebody holds blocks");
        self.preempt(last, &mut Draft::default());
    }

    fn last_running(&self) -> Option<SequenceId> {
        let mut running = self.sequences().filter(|sequence| sequence.running().is_some());
        running.next_back().map(|sequence| sequence.id)
    }

    fn preempt(&mut self, id: SequenceId, draft: &mut Draft) {
        draft.withdraw(id);
        let sequence = self.sequences.get_mut(&id).expect("preempted sequences are live");
        // Whoever came into this very draft has had nothing yet that could be taken.
        if sequence.running().is_some_and(|running| running.last_named.is_some()) {
            sequence.preemptions += 1;
            self.counters.preemptions += 1;
        }
        self.release(id);
    }

    /// Whether a place is free, and all known tokens and one block more would fit beside what running sequences still
    /// lack for theirs: one that is admitted only to be preempted has computed for nothing.
    pub(super) fn has_room_for(&self, sequence: &Sequence, hit: PrefixHit) -> bool {
        self.num_free_places() > 0 && self.block_counts().available() >= self.blocks_wanted(sequence, hit)
    }

    /// What `has_room_for` wants to see available. Blocks that the sequence shares are there already; the cached ones
    /// among them cannot be evicted for others any more.
    fn blocks_wanted(&self, sequence: &Sequence, hit: PrefixHit) -> u32 {
        let promised: u32 = self.sequences().map(|other| self.blocks_promised(other)).sum();
        promised + self.blocks_needed(sequence) - hit.num_blocks + hit.num_cached
    }

    /// What a running sequence still lacks for its known tokens.
    pub(super) fn blocks_promised(&self, sequence: &Sequence) -> u32 {
        let block_size = self.limits.block_size;
        sequence.running().map_or(0, |running| {
            let known = sequence.len_expected().div_ceil(block_size);
            known.saturating_sub(running.blocks.len() as u32)
        })
    }

    /// Of all known tokens, and one more.
    pub(super) fn blocks_needed(&self, sequence: &Sequence) -> u32 {
        let block_size = self.limits.block_size;
        let worst = sequence.positions_max().div_ceil(block_size);
        (sequence.len_expected().div_ceil(block_size) + 1).min(worst)
    }

    fn lack(&self, id: SequenceId, hit: PrefixHit) -> Lack {
        let counts = self.block_counts();
        let wanted = self.blocks_wanted(&self.sequences[&id], hit);
        Lack {
            places: u32::from(self.num_free_places() == 0),
            blocks: wanted.saturating_sub(counts.available() + counts.in_flight),
        }
    }

    /// What a waiting sequence lacks here.
    pub(super) fn lack_for(&self, id: SequenceId, chain: &[BlockHash]) -> Option<Lack> {
        let books = self.books.as_ref()?;
        Some(self.lack(id, books.pool.find(chain)))
    }

    /// Blocks that come free, or need not be kept free any more, when a running sequence goes.
    pub(super) fn freed_by(&self, sequence: &Sequence) -> u32 {
        let held = |running: &Running| {
            self.books
                .as_ref()
                .map_or(0, |books| books.pool.num_sole(&running.blocks))
        };
        sequence.running().map_or(0, held) + self.blocks_promised(sequence)
    }

    /// Preempts those who must give way to a waiting sequence, if that makes enough room; else nobody.
    pub(super) fn claim_room(&mut self, id: SequenceId, hit: PrefixHit, draft: &mut Draft) {
        let lack = self.lack(id, hit);
        for victim in self.who_gives_way(id, lack).unwrap_or_default() {
            self.preempt(victim, draft);
            self.counters.preemptions_for_others += 1;
            self.claimant = Some(self.sequences[&id].request.tenant.clone());
        }
    }

    /// Enough running sequences that give way to a waiting one, last in precedence first; `None` if there are not enough.
    fn who_gives_way(&self, id: SequenceId, mut lack: Lack) -> Option<Vec<SequenceId>> {
        self.books.as_ref()?;
        let waiting = &self.sequences[&id];
        let mut shares = self.shares();
        let claims_share = shares.has_room_for(&waiting.request.tenant, self.blocks_needed(waiting));
        let mut victims = Vec::new();
        for other in self.sequences().rev() {
            if lack.places == 0 && lack.blocks == 0 {
                break;
            }
            let Some(running) = other.running().filter(|running| running.last_named.is_some()) else {
                continue;
            };
            let by_priority = waiting.precedence.priority < other.precedence.priority;
            let by_share = claims_share
                && waiting.precedence.priority == other.precedence.priority
                && shares.is_exceeded_by(&other.request.tenant)
                && self.is_served_less(waiting, other);
            if by_priority || by_share {
                lack.relieve(self.freed_by(other));
                shares.give_back(&other.request.tenant, running.blocks.len() as u32);
                victims.push(other.id);
            }
        }
        (lack.places == 0 && lack.blocks == 0).then_some(victims)
    }

    fn is_served_less(&self, waiting: &Sequence, other: &Sequence) -> bool {
        let served = |sequence: &Sequence| self.share.served(&sequence.request.tenant);
        let (ours, theirs) = (served(waiting), served(other));
        waiting.request.tenant != other.request.tenant && (ours < theirs || ours == theirs && waiting.is_fresh())
    }

    pub(super) fn shares(&self) -> Shares<'_> {
        let tenants = self.share.num_active().max(1);
        let mut held: BTreeMap<&TenantId, Holding> = BTreeMap::new();
        let mut num_running = 0;
        for sequence in self.sequences() {
            if let Some(running) = sequence.running() {
                let holding = held.entry(&sequence.request.tenant).or_default();
                holding.places += 1;
                holding.blocks += running.blocks.len() as u32;
                num_running += 1;
            }
        }
        let places = self.limits.sequences_max.min(num_running + 1);
        Shares {
            of_each: Holding {
                places: places.div_ceil(tenants),
                blocks: self.block_counts().total.div_ceil(tenants),
            },
            held,
        }
    }
}
