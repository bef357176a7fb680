//! How a step is composed: which tokens of which sequences the next plan computes.
//!
//! It knows no prefill and no decode, only positions wanted. Sequences that want one come first; what is left of the
//! step goes to those that want many and to those that wait, in the order of [`Turn`]. Only tenants that hold more than
//! their share let a step pass when a tenant that does not, and that was served no more, has a prompt to be computed: its
//! first token does not wait for their many. An admitted sequence starts from the longest chain of full blocks that the
//! prefix cache has of it. While the one who is next finds no room, nobody else is admitted: room that comes free is not
//! taken from under it.

use std::collections::{BTreeMap, BTreeSet};

use kvasir_kv::{BlockHash, PrefixHit, SequenceId, StepPlan, TenantId};

use crate::{
    detector::Steady,
    preemption::{Room, Shares},
    scheduler::Scheduler,
    sequence::{Precedence, Running, Sequence, State},
    step_books::StepBooks,
};

/// Whose turn it is for what a step has left: lower priorities first, then the tenant for whom others made room, then those
/// that do not hold more than their share, then the one that has been served least, then whoever came first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Turn {
    priority: i32,
    has_no_claim: bool,
    exceeds_share: bool,
    served: u64,
    precedence: Precedence,
}

/// Tokens that a sequence adds to the step being made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grant {
    sequence: SequenceId,
    num_tokens: u32,
}

/// The step as far as it is composed.
#[derive(Debug, Default)]
pub(super) struct Draft {
    grants: Vec<Grant>,
    /// Tokens for sequences that want many.
    prefill_left: u32,
    /// Who had a turn.
    passed: BTreeSet<SequenceId>,
    /// Tokens that turns gave to each tenant.
    charged: BTreeMap<TenantId, u64>,
    /// Somebody waits for blocks that are in flight: they must not go to those after it.
    short: bool,
    /// The one who is next does not get in.
    crowded: bool,
}

impl Draft {
    fn grant(&mut self, sequence: SequenceId, num_tokens: u32) {
        self.grants.push(Grant { sequence, num_tokens });
    }

    /// Whoever is preempted gets nothing after all, and has its turn again, lest those after it get in before it.
    pub fn withdraw(&mut self, sequence: SequenceId) {
        self.grants.retain(|grant| grant.sequence != sequence);
        self.passed.remove(&sequence);
    }

    fn has(&self, sequence: SequenceId) -> bool {
        self.grants.iter().any(|grant| grant.sequence == sequence)
    }
}

/// Tenants that hold more than their share, and what it takes to go before them.
#[derive(Debug)]
struct Exceeding {
    tenants: BTreeSet<TenantId>,
    /// The least that any of them was served.
    served: u64,
    /// The least priority value among their sequences that want one token.
    priority: i32,
}

impl Scheduler {
    /// The next step, if there is anything to compute and those who come later need not be in it: no more than
    /// `look_ahead` steps, and few tokens, are out.
    pub fn next_plan(&mut self, steady: Steady) -> Option<StepPlan> {
        let books = self.books.as_ref().filter(|_| !self.stands_still)?;
        let out = books.num_without_output();
        let tokens_out = books.tokens_without_output();
        let look_ahead = match self.expects_somebody() {
            true => 0,
            false => self.limits.look_ahead,
        };
        if out > look_ahead || tokens_out >= self.limits.look_ahead_tokens_max {
            return None;
        }
        let mut draft = Draft::default();
        let aside = self.let_others_pass(&mut draft);
        self.grant_ones(&mut draft, aside.as_ref());
        if draft.grants.is_empty() {
            self.grant_ones(&mut draft, None);
        }
        // Where some stand aside, the step is for those who pass.
        if aside.is_none() {
            let num_ones = draft.grants.len() as u32;
            let room = self.limits.step_tokens_max - num_ones;
            draft.prefill_left = self.prefill_beside(num_ones).min(room);
            self.grant_turns(&mut draft, |_| true);
        }
        if draft.grants.is_empty() {
            return None;
        }
        Some(self.commit(&draft.grants, steady))
    }

    /// Prompt tokens that go into a step in which so many want one token. A step of many such is long anyway: prompts may
    /// make it twice as long.
    fn prefill_beside(&self, num_ones: u32) -> u32 {
        match num_ones {
            0 => self.limits.step_tokens_max,
            _ => self.limits.mixed_prefill_tokens_max.max(num_ones),
        }
    }

    fn wants_one(sequence: &Sequence) -> bool {
        sequence.running().is_some() && sequence.wanted() == 1
    }

    /// Prompts of tenants within their share that were served no more than those beyond it. If there were any, the
    /// tenants that let this step pass.
    fn let_others_pass(&mut self, draft: &mut Draft) -> Option<BTreeSet<TenantId>> {
        let exceeding = self.exceeding()?;
        let stay =
            |sequence: &&Sequence| Self::wants_one(sequence) && !exceeding.tenants.contains(&sequence.request.tenant);
        let num_ones = self.sequences().filter(stay).count() as u32;
        let room = self.limits.step_tokens_max - num_ones;
        draft.prefill_left = self.prefill_beside(num_ones).min(room);
        self.grant_turns(draft, |turn| {
            !turn.exceeds_share && turn.served <= exceeding.served && turn.priority <= exceeding.priority
        });
        (!draft.grants.is_empty()).then_some(exceeding.tenants)
    }

    /// `None` if no tenant holds more than its share and wants single tokens.
    fn exceeding(&self) -> Option<Exceeding> {
        if self.share.num_active() < 2 {
            return None;
        }
        let shares = self.shares();
        let exceeds =
            |sequence: &&Sequence| Self::wants_one(sequence) && shares.is_exceeded_by(&sequence.request.tenant);
        let wanting: Vec<&Sequence> = self.sequences().filter(exceeds).collect();
        let tenants: BTreeSet<TenantId> = wanting.iter().map(|sequence| sequence.request.tenant.clone()).collect();
        Some(Exceeding {
            served: tenants.iter().map(|tenant| self.share.served(tenant)).min()?,
            priority: wanting.iter().map(|sequence| sequence.precedence.priority).min()?,
            tenants,
        })
    }

    /// A token for every running sequence that wants one, but those of tenants that stand aside.
    fn grant_ones(&mut self, draft: &mut Draft, aside: Option<&BTreeSet<TenantId>>) {
        for id in self.ids() {
            let sequence = &self.sequences[&id];
            let stands_aside = aside.is_some_and(|tenants| tenants.contains(&sequence.request.tenant));
            // It may have been preempted a moment ago.
            if Self::wants_one(sequence) && !stands_aside && !draft.has(id) {
                self.place(id, 1, draft);
            }
        }
    }

    /// What is left of the step, turn by turn, as long as it is `theirs`.
    fn grant_turns(&mut self, draft: &mut Draft, theirs: impl Fn(&Turn) -> bool) {
        while draft.prefill_left > 0
            && let Some((id, turn)) = self.next_turn(draft)
            && theirs(&turn)
        {
            draft.passed.insert(id);
            if self.sequences[&id].running().is_none() && !self.admit(id, draft) {
                draft.crowded = true;
                continue;
            }
            let sequence = &self.sequences[&id];
            let tenant = sequence.request.tenant.clone();
            let num_tokens = sequence
                .wanted()
                .min(self.limits.chunk_tokens_max)
                .min(draft.prefill_left);
            if self.place(id, num_tokens, draft) {
                draft.prefill_left -= num_tokens;
                *draft.charged.entry(tenant).or_default() += u64::from(num_tokens);
            }
        }
    }

    /// Whose turn is next, of those that have not had theirs.
    fn next_turn(&self, draft: &Draft) -> Option<(SequenceId, Turn)> {
        let admits = !draft.short && !draft.crowded;
        let wants = |sequence: &&Sequence| match sequence.running() {
            Some(_) => sequence.wanted() > 1 && !draft.has(sequence.id),
            None => admits && sequence.is_waiting(),
        };
        let left = self.sequences().filter(|sequence| !draft.passed.contains(&sequence.id));
        let mut candidates = left.filter(wants).peekable();
        // A step in which everybody decodes needs no shares.
        candidates.peek()?;
        let shares = self.shares();
        let turns = candidates.map(|sequence| (sequence.id, self.turn_of(sequence, &shares, &draft.charged)));
        turns.min_by_key(|(_, turn)| *turn)
    }

    fn turn_of(&self, sequence: &Sequence, shares: &Shares, charged: &BTreeMap<TenantId, u64>) -> Turn {
        let tenant = &sequence.request.tenant;
        Turn {
            priority: sequence.precedence.priority,
            has_no_claim: self.claimant.as_ref() != Some(tenant),
            exceeds_share: match sequence.running() {
                Some(_) => shares.is_exceeded_by(tenant),
                None => !shares.has_room_for(tenant, 0),
            },
            served: self.share.served(tenant) + charged.get(tenant).copied().unwrap_or(0),
            precedence: sequence.precedence,
        }
    }

    /// Who is admitted next, and who after that.
    pub(super) fn waiting_in_turn(&self) -> Vec<SequenceId> {
        let shares = self.shares();
        let none = BTreeMap::new();
        let turns = self
            .waiting()
            .map(|sequence| (self.turn_of(sequence, &shares, &none), sequence.id));
        let mut turns: Vec<(Turn, SequenceId)> = turns.collect();
        turns.sort_unstable();
        turns.into_iter().map(|(_, id)| id).collect()
    }

    /// It waits, and the ranks know nothing of it.
    pub(super) fn could_leave(&self, sequence: &Sequence) -> bool {
        let forgotten = |books: &StepBooks| !books.retired.contains(&sequence.id);
        sequence.is_portable() && self.books.as_ref().is_none_or(forgotten)
    }

    /// Who is admitted next, if it could wait elsewhere as well.
    pub(super) fn next_waiting(&self) -> Option<SequenceId> {
        let shares = self.shares();
        let next = self
            .waiting()
            .min_by_key(|sequence| self.turn_of(sequence, &shares, &BTreeMap::new()))?;
        self.could_leave(next).then_some(next.id)
    }

    /// Allocates the blocks for a running sequence's next tokens and grants them. False if it has to wait.
    fn place(&mut self, id: SequenceId, num_tokens: u32, draft: &mut Draft) -> bool {
        let needed = self.blocks_missing(id, num_tokens);
        if needed > 0 && (draft.short || self.make_room(id, needed, draft) == Room::Wait) {
            draft.short = true;
            return false;
        }
        self.allocate(id, needed);
        draft.grant(id, num_tokens);
        true
    }

    /// Blocks that a running sequence lacks for `num_tokens` more positions.
    fn blocks_missing(&self, id: SequenceId, num_tokens: u32) -> u32 {
        let running = self.sequences[&id]
            .running()
            .expect("only running sequences are granted tokens");
        let needed = (running.scheduled + num_tokens).div_ceil(self.limits.block_size);
        needed.saturating_sub(running.blocks.len() as u32)
    }

    fn allocate(&mut self, id: SequenceId, count: u32) {
        let books = self.books.as_mut().expect("plans are made only in an epoch");
        let sequence = self.sequences.get_mut(&id).expect("granted sequences are live");
        let running = sequence.running_mut().expect("granted sequences run");
        let evicted = books.pool.allocate(count, &mut running.blocks).expect("room was made");
        self.counters.evictions += u64::from(evicted);
    }

    /// Lets a waiting sequence run, if it finds room or others give way to it. False if it has to wait.
    fn admit(&mut self, id: SequenceId, draft: &mut Draft) -> bool {
        // Its last sample is still on its way, and the ranks must be told all tokens.
        if self.sequences[&id].samples_in_flight > 0 {
            return false;
        }
        let (chain, mut hit) = self.find_prefix(id);
        if !self.has_room_for(&self.sequences[&id], hit) {
            self.claim_room(id, hit, draft);
            // Blocks that others held may be cached by now.
            let books = self.books.as_ref().expect("plans are made only in an epoch");
            hit = books.pool.find(&chain);
            if !self.has_room_for(&self.sequences[&id], hit) {
                return false;
            }
        }
        self.start_from(id, &chain[..hit.num_blocks as usize]);
        true
    }

    /// The hashes of a waiting sequence's full blocks, and how many of them can be found. The last token is always
    /// computed: its logits are needed.
    fn find_prefix(&mut self, id: SequenceId) -> (Vec<BlockHash>, PrefixHit) {
        let tenant = &self.sequences[&id].request.tenant;
        let (Some(root), Some(books)) = (self.prefix_root(tenant), &self.books) else {
            return Default::default();
        };
        let block_size = self.limits.block_size;
        let sequence = self.sequences.get_mut(&id).expect("waiting sequences are live");
        let chain = sequence.reusable_hashes(root, block_size).to_vec();
        let hit = books.pool.find(&chain);
        (chain, hit)
    }

    /// A waiting sequence runs, with the blocks of `chain` computed already.
    fn start_from(&mut self, id: SequenceId, chain: &[BlockHash]) {
        let books = self.books.as_mut().expect("plans are made only in an epoch");
        let sequence = self.sequences.get_mut(&id).expect("waiting sequences are live");
        let blocks = books.pool.share_chain(chain);
        assert_eq!(blocks.len(), chain.len(), "all were found a moment ago");
        let computed = blocks.len() as u32 * self.limits.block_size;
        sequence.state = State::Running(Running::after(blocks, computed));
        self.claimant.take_if(|claimant| *claimant == sequence.request.tenant);
    }

    /// What a sequence starts from counts as found.
    pub(super) fn count_hits(&mut self, id: SequenceId, computed: u32) {
        let tokens = self.sequences[&id].tokens.len() as u64;
        if self.limits.prefix_cache {
            self.counters.prefix_queries_tokens += tokens;
            self.counters.prefix_hits_tokens += u64::from(computed);
        }
    }

    /// Writes the plan down: from here on it counts as sent.
    pub(super) fn commit(&mut self, grants: &[Grant], steady: Steady) -> StepPlan {
        let books = self.books.as_mut().expect("plans are made only in an epoch");
        let mut plan = StepPlan {
            epoch: books.epoch,
            step: books.next_step(),
            admitted: Vec::new(),
            work: Vec::with_capacity(grants.len()),
            retired: std::mem::take(&mut books.retired),
            adopted: Vec::new(),
        };
        for grant in grants {
            let sequence = self
                .sequences
                .get_mut(&grant.sequence)
                .expect("granted sequences are live");
            let scheduled = sequence.schedule(plan.step, grant.num_tokens);
            self.counters.tokens_recomputed += u64::from(scheduled.recomputed);
            self.counters.chunks += u64::from(scheduled.is_chunk);
            // What is computed again is nobody's gain.
            let first_time = grant.num_tokens - scheduled.recomputed;
            self.share.charge(&sequence.request.tenant, first_time);
            if let Some(admitted) = scheduled.admitted {
                let cached = scheduled.work.start.min(sequence.prompt_len());
                sequence.cached.get_or_insert(cached);
                plan.admitted.push(admitted);
                match scheduled.adopted {
                    Some(adopted) => {
                        self.note_adopted(grant.sequence, &adopted);
                        plan.adopted.extend(adopted);
                    }
                    None => self.count_hits(grant.sequence, scheduled.work.start),
                }
            }
            plan.work.push(scheduled.work);
        }
        let books = self.books.as_mut().expect("plans are made only in an epoch");
        books.note_sent(&plan, steady);
        plan
    }
}
