//! Which group a sequence goes to: where the least is to be computed before it and for it.
//!
//! The cost of a group is the prompt tokens that its prefix cache does not have, the tokens that its sequences still want
//! computed, and those that they hold (each step reads them again), over the group's speed: the measure of Dynamo's KV
//! router. It goes to a group where it would have to wait only if it
//! would everywhere. A sequence that waits is not bound to its group: it moves where a group has ended or another has room.

use kvasir_kv::{BlockHash, GroupId, Request, SequenceId, TenantId};

use crate::{Cluster, Effect, Now, SequenceError, group::Group, scheduler::Scheduler, sequence::Sequence};

impl Cluster {
    /// Takes a request with all its choices, or refuses it at once with the numbers.
    pub(crate) fn submit(&mut self, ids: &[SequenceId], request: &Request, deadline: Option<Now>) {
        let num_choices = ids.len() as u64;
        self.counters.submitted += num_choices;
        if let Err(error) = self.admissible(ids, request) {
            self.counters.failed += num_choices;
            let full = matches!(
                error,
                SequenceError::QueueFull { .. } | SequenceError::QueueTokens { .. }
            );
            self.counters.rejected += if full { num_choices } else { 0 };
            let failed = |&sequence| Effect::Failed {
                sequence,
                error: error.clone(),
            };
            self.effects.extend(ids.iter().map(failed));
            return;
        }
        for (index, id) in (0..).zip(ids) {
            self.take(*id, request.nth_choice(index), deadline);
        }
    }

    fn take(&mut self, id: SequenceId, request: Request, deadline: Option<Now>) {
        self.counters.prompt_tokens += request.prompt.len() as u64;
        self.arrivals += 1;
        let mut sequence = Sequence::new(id, request, self.arrivals, deadline, self.now);
        let finished = sequence.finish_reason();
        // While none serves, the first keeps it until one does.
        let root = self.prefix_root(&sequence.request.tenant);
        let chain = chain_of(&mut sequence, root, self.config.cell.block_size());
        let home = self.choose_group(&sequence, &chain).unwrap_or_default();
        let scheduler = &mut self.groups[home.0 as usize].scheduler;
        self.counters.routed_by_prefix += u64::from(scheduler.cached_len(&chain) > 0);
        scheduler.accept(sequence);
        if let Some(reason) = finished {
            scheduler.finish(id, reason, &mut self.effects);
        }
    }

    fn admissible(&self, ids: &[SequenceId], request: &Request) -> Result<(), SequenceError> {
        let prompt_len = u32::try_from(request.prompt.len()).unwrap_or(u32::MAX);
        let max_tokens = request.max_tokens;
        let context_len = self.layout.shape().context_len;
        let is_known = |id: &&SequenceId| self.groups.iter().any(|group| group.scheduler.contains(**id));
        if let Some(id) = ids.iter().find(is_known) {
            return Err(SequenceError::Duplicate(*id));
        }
        if prompt_len == 0 || max_tokens == 0 && request.prompt_logprobs.is_none() {
            return Err(SequenceError::Empty { prompt_len, max_tokens });
        }
        if prompt_len.saturating_add(max_tokens) > context_len {
            return Err(SequenceError::TooLong {
                prompt_len,
                max_tokens,
                context_len,
            });
        }
        self.fits_some_group(request)?;
        self.fits_queue(request, ids.len() as u32)
    }

    /// Whether its worst case, alone, fits an empty pool. Unknown, hence not refused, while no group serves.
    fn fits_some_group(&self, request: &Request) -> Result<(), SequenceError> {
        let serving = self.groups.iter().filter(|group| group.serves());
        let verdicts: Vec<_> = serving.map(|group| group.scheduler.fits_pool(request)).collect();
        let roomiest = verdicts.iter().filter_map(|verdict| verdict.as_ref().err());
        let roomiest = roomiest.max_by_key(|error| match error {
            SequenceError::TooFewBlocks { num_blocks, .. } => *num_blocks,
            _ => 0,
        });
        match roomiest {
            Some(error) if verdicts.iter().all(Result::is_err) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    fn fits_queue(&self, request: &Request, num_choices: u32) -> Result<(), SequenceError> {
        let (mut waiting, mut waiting_tokens) = (0, 0);
        for sequence in self.groups.iter().flat_map(|group| group.scheduler.waiting()) {
            waiting += 1;
            waiting_tokens += sequence.tokens.len() as u64;
        }
        // Whoever takes a free place with the next step does not queue.
        let serving = self.groups.iter().filter(|group| group.serves());
        let free_places: u32 = serving.map(|group| group.scheduler.num_free_places()).sum();
        let queue_max = self.config.queue_max;
        if waiting + num_choices > queue_max.saturating_add(free_places) {
            return Err(SequenceError::QueueFull {
                waiting,
                queue_max,
                num_choices,
            });
        }
        let tokens = (request.prompt.len() + request.generated.len()) as u64 * u64::from(num_choices);
        let queue_tokens_max = self.config.queue_tokens_max;
        if waiting > 0 && waiting_tokens + tokens > queue_tokens_max {
            return Err(SequenceError::QueueTokens {
                waiting_tokens,
                tokens,
                queue_tokens_max,
            });
        }
        Ok(())
    }

    /// What the histories of a tenant start from, in every group.
    fn prefix_root(&self, tenant: &TenantId) -> Option<BlockHash> {
        self.groups.iter().find_map(|group| group.scheduler.prefix_root(tenant))
    }

    /// The cheapest of the groups that serve and could hold it; of those where it would not have to wait, if there are any.
    fn choose_group(&self, sequence: &Sequence, chain: &[BlockHash]) -> Option<GroupId> {
        let serving = self.groups.iter().filter(|group| group.serves());
        let fitting = serving.filter(|group| group.scheduler.fits_pool(&sequence.request).is_ok());
        let open = |group: &&Group| !self.is_closing(group);
        // A group that decodes computes prompts only where no other one can.
        let any_prefills = fitting.clone().any(|group| group.role.takes_prompts());
        let fitting = fitting.filter(|group| !any_prefills || group.role.takes_prompts());
        // Where all are closing, somebody has to take it.
        let any_open = fitting.clone().any(|group| open(&group));
        let fitting = fitting.filter(|group| !any_open || open(group));
        let costs = fitting.map(|group| {
            let waits = !group.scheduler.would_admit(sequence, chain);
            (group.id, waits, self.cost(group, sequence, chain))
        });
        let cheapest = costs.min_by(|a, b| a.1.cmp(&b.1).then(a.2.total_cmp(&b.2)));
        cheapest.map(|(group, ..)| group)
    }

    /// In tokens: those that are to be computed there, and what others there have, over the group's speed. What another group
    /// has and would be copied counts as the tokens that could be computed meanwhile.
    fn cost(&self, group: &Group, sequence: &Sequence, chain: &[BlockHash]) -> f64 {
        let mut uncached = f64::from(sequence.tokens.len() as u32 - group.scheduler.cached_len(chain));
        if let Some(offer) = self.offer_to(group.id, chain) {
            uncached -= offer.tokens_saved(self.config.cell.block_size());
        }
        (uncached + group.scheduler.load() as f64) / group.speed().max(f64::MIN_POSITIVE)
    }

    /// Sequences do not wait in a group that does not serve while another does.
    pub(crate) fn leave_idle_groups(&mut self) {
        if !self.groups.iter().any(Group::serves) {
            return;
        }
        for index in 0..self.groups.len() {
            if self.groups[index].serves() {
                continue;
            }
            let waiting: Vec<SequenceId> = self.groups[index].scheduler.ids();
            for id in waiting {
                self.reroute(GroupId(index as u32), id);
            }
        }
    }

    /// The pool of a new epoch may be smaller than the one before.
    pub(crate) fn move_misfits(&mut self, id: GroupId) {
        for (sequence, error) in self.group(id).scheduler.misfits() {
            if !self.reroute(id, sequence) {
                let scheduler = &mut self.groups[id.0 as usize].scheduler;
                scheduler.fail(sequence, error, &mut self.effects);
            }
        }
    }

    /// Hands a waiting sequence to the cheapest group that serves, if another could hold it.
    fn reroute(&mut self, from: GroupId, id: SequenceId) -> bool {
        let Some(chain) = self.chain_of_waiting(from, id) else {
            return false;
        };
        let sequence = self.group(from).scheduler.get(id);
        let target = sequence.and_then(|sequence| self.choose_group(sequence, &chain));
        match target.filter(|target| *target != from) {
            Some(target) => {
                self.hand_over(id, from, target);
                true
            }
            None => false,
        }
    }

    pub(crate) fn chain_of_waiting(&mut self, group: GroupId, id: SequenceId) -> Option<Vec<BlockHash>> {
        let root = self.prefix_root(&self.group(group).scheduler.get(id)?.request.tenant);
        let block_size = self.config.cell.block_size();
        let sequence = self.group_mut(group).scheduler.get_mut(id)?;
        Some(chain_of(sequence, root, block_size))
    }

    pub(crate) fn hand_over(&mut self, id: SequenceId, from: GroupId, to: GroupId) {
        let sequence = self.group_mut(from).scheduler.hand_over(id);
        self.group_mut(to).scheduler.accept(sequence);
        self.counters.sequences_rerouted += 1;
    }

    /// Where a group has no room for the one who is next and another has it at once, it goes there.
    pub(crate) fn even_out(&mut self) {
        for index in 0..self.groups.len() {
            let crowded = self.groups[index].id;
            while let Some((id, target)) = self.relief(crowded) {
                self.hand_over(id, crowded, target);
                self.send_steps();
            }
        }
    }

    /// Who is to leave a crowded group, and for which.
    fn relief(&mut self, crowded: GroupId) -> Option<(SequenceId, GroupId)> {
        if self.groups.len() < 2 {
            return None;
        }
        let next = self.group(crowded).scheduler.next_waiting()?;
        let chain = self.chain_of_waiting(crowded, next)?;
        let scheduler = &self.group(crowded).scheduler;
        let sequence = scheduler.get(next)?;
        if scheduler.has_room(sequence, &chain) {
            return None;
        }
        let here = self.group(crowded).role;
        let mut others = self.groups.iter().filter(|group| {
            let apt = group.role.takes_prompts() || !here.takes_prompts();
            group.id != crowded && apt && group.serves()
        });
        let target = others.find(|group| group.scheduler.would_admit(sequence, &chain))?;
        Some((next, target.id))
    }
}

/// The hashes of the blocks that a sequence could start after; none without a prefix cache.
fn chain_of(sequence: &mut Sequence, root: Option<BlockHash>, block_size: u32) -> Vec<BlockHash> {
    root.map_or_else(Vec::new, |root| sequence.reusable_hashes(root, block_size).to_vec())
}

impl Scheduler {
    /// Tokens at the beginning of this history that the prefix cache has.
    fn cached_len(&self, chain: &[BlockHash]) -> u32 {
        self.num_cached(chain) * self.limits.block_size
    }

    /// Blocks at the beginning of this history that the prefix cache has.
    pub(super) fn num_cached(&self, chain: &[BlockHash]) -> u32 {
        let books = self.books.as_ref();
        books.map_or(0, |books| books.pool.find(chain).num_blocks)
    }

    /// Tokens that its sequences want computed, and those that they hold.
    pub(super) fn load(&self) -> u64 {
        let tokens = |sequence: &Sequence| u64::from(sequence.wanted()) + u64::from(sequence.len_expected());
        self.sequences().map(tokens).sum()
    }

    /// Nobody waits, and it would not have to.
    fn would_admit(&self, sequence: &Sequence, chain: &[BlockHash]) -> bool {
        self.waiting().next().is_none() && self.fits_pool(&sequence.request).is_ok() && self.has_room(sequence, chain)
    }

    fn has_room(&self, sequence: &Sequence, chain: &[BlockHash]) -> bool {
        let books = self.books.as_ref();
        books.is_some_and(|books| self.has_room_for(sequence, books.pool.find(chain)))
    }
}
