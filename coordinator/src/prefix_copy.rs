//! Cached blocks go to another group: a sequence that comes to one group starts after blocks that another one has.
//!
//! Whoever is next, and finds room, is asked once: does another group have more of its beginning, and is a copy sooner
//! here than computing, by what both have cost lately? If so the sequence waits for the copy, with blocks taken for it;
//! the source's blocks are pinned meanwhile. What does not come in time is computed after all.

use std::{fmt, ops::Range, str::FromStr, time::Duration};

use kvasir_kv::{
    AdoptedBlock, BlockCopy, BlockHash, GroupId, Rank, RequestId, SequenceId, TransferFault, TransferId,
    transfer_routes,
};

use crate::{
    Cluster, Effect, Now,
    copy_cost::{CopyCost, Stretch},
    event::PrefixCopyReport,
    group::Group,
    scheduler::Scheduler,
    sequence::{Sequence, State},
    status::TransferStatus,
    transfer::{Arrived, Transfer},
};

/// A copy is given up when it has taken so many times what computing would, but not before `PATIENCE_MIN`; and in any case
/// after `PATIENCE_MAX`.
const PATIENCE: u32 = 2;
const PATIENCE_MIN: Duration = Duration::from_millis(50);
const PATIENCE_MAX: Duration = Duration::from_secs(10);

/// Whether cached blocks are fetched from other groups.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PrefixCopying {
    /// Where that is sooner than computing them again.
    #[default]
    Auto,
    Always,
    Never,
}

impl PrefixCopying {
    pub const ALL: [Self; 3] = [Self::Auto, Self::Always, Self::Never];

    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

impl fmt::Display for PrefixCopying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is no way to treat cached prompts of other groups; expected auto, always or never")]
pub struct UnknownPrefixCopying(String);

impl FromStr for PrefixCopying {
    type Err = UnknownPrefixCopying;

    fn from_str(text: &str) -> Result<Self, UnknownPrefixCopying> {
        let known = Self::ALL.into_iter().find(|known| known.name() == text);
        known.ok_or_else(|| UnknownPrefixCopying(text.to_owned()))
    }
}

/// What another group has of a history that this one has not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer {
    source: GroupId,
    /// Blocks, from the beginning of the history.
    here: u32,
    there: u32,
    pub forecast: Forecast,
}

impl Offer {
    /// Tokens that need not be computed, less those that could be computed while they come.
    pub fn tokens_saved(&self, block_size: u32) -> f64 {
        let tokens = f64::from((self.there - self.here) * block_size);
        let computing = self.forecast.computing.map_or(0.0, |computing| computing.as_secs_f64());
        let part = match computing > 0.0 {
            true => self.forecast.copying.as_secs_f64() / computing,
            false => 0.0,
        };
        tokens * (1.0 - part)
    }
}

/// How long it takes to have the cells, by what was measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Forecast {
    pub copying: Duration,
    /// `None` while no prompt was computed.
    pub computing: Option<Duration>,
}

impl Forecast {
    fn says_copy(&self) -> bool {
        self.computing.is_none_or(|computing| self.copying < computing)
    }
}

#[derive(Debug)]
pub(crate) struct PrefixCopy {
    transfer: Transfer,
    sequence: SequenceId,
    request: RequestId,
    source: GroupId,
    target: GroupId,
    copies: Vec<BlockCopy>,
    forecast: Forecast,
    patience: Duration,
    /// The blocks are the sequence's; its ranks do not know yet.
    is_adopted: bool,
    began: Now,
}

impl PrefixCopy {
    pub fn goes_to(&self, group: GroupId) -> bool {
        self.target == group
    }

    pub fn touches(&self, group: GroupId) -> bool {
        self.source == group || self.target == group
    }
}

impl Cluster {
    /// Asks whoever is next in each group, and has room, whether it waits for a copy.
    pub(crate) fn copy_prefixes(&mut self) {
        if self.groups.len() < 2 || self.config.prefix_copying == PrefixCopying::Never {
            return;
        }
        for index in 0..self.groups.len() {
            let group = &self.groups[index];
            let id = group.id;
            if !group.serves() || self.is_resharding(id) {
                continue;
            }
            while let Some(sequence) = self.group(id).scheduler.next_unasked() {
                let chain = self.chain_of_waiting(id, sequence).unwrap_or_default();
                let scheduler = &mut self.group_mut(id).scheduler;
                scheduler.get_mut(sequence).expect("it waits there").copy_asked = true;
                if let Some(offer) = self.offer_to(id, &chain) {
                    self.begin_prefix_copy(sequence, id, offer, &chain);
                }
            }
        }
    }

    /// The longest beginning of this history that another group has, if it is worth a copy to `target`.
    pub(crate) fn offer_to(&self, target: GroupId, chain: &[BlockHash]) -> Option<Offer> {
        if self.config.prefix_copying == PrefixCopying::Never || chain.is_empty() {
            return None;
        }
        let here = self.group(target).scheduler.num_cached(chain);
        let others = self.groups.iter().filter(|group| {
            let apart = group.id != target && group.serves() && !self.is_resharding(group.id);
            apart && self.can_transfer(group)
        });
        let found = others.map(|group| (group, group.scheduler.num_cached(chain)));
        // Of several the first.
        let (source, there) = found.rev().max_by_key(|(_, there)| *there)?;
        if there <= here || !self.can_transfer(self.group(target)) {
            return None;
        }
        let forecast = self.forecast(source, self.group(target), here..there);
        let offer = Offer {
            source: source.id,
            here,
            there,
            forecast,
        };
        (self.config.prefix_copying == PrefixCopying::Always || forecast.says_copy()).then_some(offer)
    }

    fn can_transfer(&self, group: &Group) -> bool {
        let active = group.active.as_ref();
        active.is_some_and(|active| self.worker_without_transfers(active).is_none())
    }

    fn forecast(&self, source: &Group, target: &Group, blocks: Range<u32>) -> Forecast {
        let num_blocks = blocks.end - blocks.start;
        let bytes =
            self.config.cell.slab_bytes(num_blocks) as u64 * u64::from(self.layout.shape().heads.num_kv_heads());
        let stretch = Stretch {
            start: blocks.start * self.config.cell.block_size(),
            tokens: num_blocks * self.config.cell.block_size(),
        };
        let computing = target.scheduler.prompt_cost.estimate(stretch).or_else(|| {
            let elsewhere = source.scheduler.prompt_cost.estimate(stretch)?;
            Some(elsewhere * source.speed() / target.speed().max(f64::MIN_POSITIVE))
        });
        let unknown = CopyCost::default();
        let cost = self.copy_costs.get(&(source.id, target.id)).unwrap_or(&unknown);
        let copying = cost.estimate(bytes, self.now);
        Forecast {
            copying,
            computing: computing.map(Duration::from_secs_f64),
        }
    }

    fn begin_prefix_copy(&mut self, id: SequenceId, target: GroupId, offer: Offer, chain: &[BlockHash]) {
        let (from, to) = (self.group(offer.source), self.group(target));
        let (Some(source_active), Some(target_active)) = (&from.active, &to.active) else {
            return;
        };
        let (source_plan, target_plan) = (&source_active.formation.plan, &target_active.formation.plan);
        let routes = transfer_routes(source_plan, target_plan, |_, _| false);
        let (sources, targets) = (&source_active.formation.sessions, &target_active.formation.sessions);
        let lanes = self.lanes(routes, sources, targets);
        let ticket = self.next_ticket(from.epoch, to.epoch);
        let (here, there) = (offer.here as usize, offer.there as usize);

        let scheduler = &mut self.group_mut(target).scheduler;
        let shared = scheduler.open_inbound(ticket.transfer, &chain[..here]);
        let Ok(taken) = scheduler.extend_inbound(ticket.transfer, (there - shared.len()) as u32) else {
            scheduler.close_inbound(ticket.transfer);
            return;
        };
        let sequence = scheduler.get_mut(id).expect("it waits there");
        sequence.state = State::AwaitsCopy(ticket.transfer);
        let request = sequence.request.id.clone();
        let pinned = &mut self.group_mut(offer.source).scheduler;
        let pinned = pinned.pin(ticket.transfer, &chain[shared.len()..there]);
        let whole = self.config.cell.block_size();
        let copies = pinned.into_iter().zip(taken).map(|(source, target)| BlockCopy {
            source,
            target,
            written: whole,
        });
        let copies: Vec<BlockCopy> = copies.collect();
        let mut transfer = Transfer::new(ticket, lanes, self.now);
        transfer.starts_after = shared;
        let asked = transfer.ask(&copies, true, self.now);
        self.effects.extend(asked);
        self.transfers_begun += 1;
        self.counters.prefix_copies_begun += 1;
        let copy = PrefixCopy {
            transfer,
            sequence: id,
            request,
            source: offer.source,
            target,
            copies,
            forecast: offer.forecast,
            patience: self.patience(&offer.forecast),
            is_adopted: false,
            began: self.now,
        };
        self.prefix_copies.insert(ticket.transfer, copy);
    }

    fn patience(&self, forecast: &Forecast) -> Duration {
        match (self.config.prefix_copying, forecast.computing) {
            (PrefixCopying::Auto, Some(computing)) => (computing * PATIENCE).clamp(PATIENCE_MIN, PATIENCE_MAX),
            _ => PATIENCE_MAX,
        }
    }

    /// Brings each copy as far as it can get now.
    pub(crate) fn advance_prefix_copies(&mut self) {
        let transfers: Vec<TransferId> = self.prefix_copies.keys().copied().collect();
        for transfer in transfers {
            let Some(mut copy) = self.prefix_copies.remove(&transfer) else {
                continue;
            };
            if let Some(obstacle) = self.prefix_copy_obstacle(&copy) {
                self.give_up_prefix_copy(copy, obstacle);
                continue;
            }
            if !copy.is_adopted && copy.transfer.is_complete() {
                self.adopt_prefix(&mut copy);
            }
            if !self.is_known_there(&copy) {
                self.prefix_copies.insert(transfer, copy);
            } else {
                let epoch = copy.transfer.ticket.target;
                self.end_transfer_at(copy.target, epoch, transfer);
            }
        }
    }

    /// Why the blocks do not come, if they do not.
    fn prefix_copy_obstacle(&self, copy: &PrefixCopy) -> Option<String> {
        if copy.is_adopted {
            return None;
        }
        let (source, target) = (self.group(copy.source), self.group(copy.target));
        let waits = target.scheduler.get(copy.sequence);
        let took = self.now.since(copy.began);
        if source.epoch != copy.transfer.ticket.source || !source.serves() {
            Some("the source group lost a rank".to_owned())
        } else if target.epoch != copy.transfer.ticket.target || !target.serves() {
            Some("the target group lost a rank".to_owned())
        } else if !waits.is_some_and(|sequence| sequence.awaits(copy.transfer.id())) {
            Some("the sequence ended, or went elsewhere".to_owned())
        } else if took > copy.patience {
            Some(format!("it took more than {} ms", copy.patience.as_millis()))
        } else {
            None
        }
    }

    /// All has come: the sequence runs, and starts after it.
    fn adopt_prefix(&mut self, copy: &mut PrefixCopy) {
        let transfer = copy.transfer.id();
        self.end_transfer_at(copy.source, copy.transfer.ticket.source, transfer);
        self.group_mut(copy.source).scheduler.unpin(transfer);
        let adopted = copy.copies.iter().map(|copy| AdoptedBlock {
            block: copy.target,
            written: copy.written,
        });
        let adopted = adopted.collect();
        let copied = copy.copies.len() as u32 * self.config.cell.block_size();
        let scheduler = &mut self.group_mut(copy.target).scheduler;
        scheduler.start_after_copy(copy.sequence, transfer, adopted);
        copy.is_adopted = true;
        let took = self.now.since(copy.began);
        let cost = self.copy_costs.entry((copy.source, copy.target)).or_default();
        cost.observe(copy.transfer.bytes, took, self.now);
        self.counters.prefix_copies_adopted += 1;
        self.counters.prefix_copied_tokens += u64::from(copied);
        self.counters.prefix_copy_bytes += copy.transfer.bytes;
        self.count_cells(&copy.transfer);
        self.report_prefix_copy(copy, Ok(()));
    }

    /// The target's ranks have been told of the sequence, or need not be.
    fn is_known_there(&self, copy: &PrefixCopy) -> bool {
        let target = self.group(copy.target);
        let lives = target.epoch == copy.transfer.ticket.target;
        let sequence = target.scheduler.get(copy.sequence).filter(|_| lives);
        let arrives = |sequence: &Sequence| sequence.running().is_some_and(|running| running.last_named.is_none());
        copy.is_adopted && !sequence.is_some_and(arrives)
    }

    /// It is computed here after all.
    fn give_up_prefix_copy(&mut self, copy: PrefixCopy, reason: String) {
        let transfer = copy.transfer.id();
        let ticket = copy.transfer.ticket;
        self.end_transfer_at(copy.source, ticket.source, transfer);
        self.end_transfer_at(copy.target, ticket.target, transfer);
        self.group_mut(copy.source).scheduler.unpin(transfer);
        let scheduler = &mut self.group_mut(copy.target).scheduler;
        scheduler.close_inbound(transfer);
        scheduler.stop_awaiting(copy.sequence, transfer);
        // It would have taken longer still.
        let took = self.now.since(copy.began);
        if took > copy.patience {
            let cells: u32 = copy.copies.len() as u32 * self.layout.shape().heads.num_kv_heads();
            let bytes = u64::from(cells) * self.config.cell.cell_bytes() as u64;
            let cost = self.copy_costs.entry((copy.source, copy.target)).or_default();
            cost.observe(bytes, took * 2, self.now);
        }
        self.counters.prefix_copies_failed += 1;
        self.report_prefix_copy(&copy, Err(reason));
    }

    fn report_prefix_copy(&mut self, copy: &PrefixCopy, outcome: Result<(), String>) {
        let report = PrefixCopyReport {
            transfer: copy.transfer.id(),
            request: copy.request.clone(),
            source: copy.source,
            target: copy.target,
            tokens: copy.copies.len() as u32 * self.config.cell.block_size(),
            bytes: copy.transfer.bytes,
            outcome,
            forecast: copy.forecast,
            took: self.now.since(copy.began),
        };
        self.effects.push(Effect::PrefixCopyEnded(report));
    }

    /// A target rank has its part. False if this is no copy of a prefix.
    pub(crate) fn on_prefix_arrived(&mut self, target: Rank, transfer: TransferId, arrived: Arrived) -> bool {
        let now = self.now;
        let copy = self.prefix_copies.get_mut(&transfer);
        copy.map(|copy| copy.transfer.on_arrived(target, arrived, now))
            .is_some()
    }

    /// A rank cannot send or take it. False if this is no copy of a prefix.
    pub(crate) fn on_prefix_copy_failed(&mut self, transfer: TransferId, fault: TransferFault, reason: &str) -> bool {
        let open = self.prefix_copies.get(&transfer).is_some_and(|copy| !copy.is_adopted);
        match self.prefix_copies.remove(&transfer).filter(|_| open) {
            Some(copy) => {
                self.give_up_prefix_copy(copy, format!("{fault}: {reason}"));
                true
            }
            None => false,
        }
    }

    pub(crate) fn prefix_copy_statuses(&self) -> impl Iterator<Item = TransferStatus> + '_ {
        self.prefix_copies.values().map(|copy| TransferStatus {
            transfer: copy.transfer.id(),
            request: copy.request.clone(),
            source: copy.source,
            target: copy.target,
            stage: if copy.is_adopted { "adopted" } else { "copying" },
            reason: "prefix",
            cells_planned: copy.transfer.cells_planned,
            cells_arrived: copy.transfer.cells_arrived,
            bytes: copy.transfer.bytes,
            age: self.now.since(copy.began),
        })
    }

    /// # Panics
    /// If a sequence waits for no copy, or blocks are pinned for none.
    pub(crate) fn check_prefix_copies(&self) {
        for group in &self.groups {
            for transfer in group.scheduler.outbound.keys() {
                let copy = self.prefix_copies.get(transfer);
                let known = copy.is_some_and(|copy| copy.source == group.id && !copy.is_adopted);
                assert!(known, "blocks are pinned for transfer {transfer}, which is none");
            }
            for sequence in group.scheduler.sequences() {
                if let State::AwaitsCopy(transfer) = sequence.state {
                    let copy = self.prefix_copies.get(&transfer);
                    let known = copy.is_some_and(|copy| copy.sequence == sequence.id && !copy.is_adopted);
                    assert!(known, "{} waits for transfer {transfer}, which is none", sequence.id);
                }
            }
        }
    }
}

impl Scheduler {
    /// Who is next of those that have not been asked whether they wait for a copy; `None` if it finds no room behind those
    /// who have.
    fn next_unasked(&self) -> Option<SequenceId> {
        let counts = self.block_counts();
        let mut places = self.num_free_places();
        if places == 0 || self.waiting().all(|sequence| sequence.copy_asked) {
            return None;
        }
        let promised: u32 = self.sequences().map(|other| self.blocks_promised(other)).sum();
        let mut blocks = counts.available().checked_sub(promised)?;
        for id in self.waiting_in_turn() {
            let sequence = &self.sequences[&id];
            blocks = blocks.checked_sub(self.blocks_needed(sequence))?;
            if places == 0 || !self.could_leave(sequence) {
                return None;
            }
            if !sequence.copy_asked {
                return Some(id);
            }
            places -= 1;
        }
        None
    }
}
