//! The epochs that live, as the coordinator has told it: who is a rank of which, and what each is sent.
//!
//! A life begins with the first `FormEpoch` of its epoch and ends with `EpochEnded`, whatever the ranks know of it.

use std::collections::{BTreeMap, BTreeSet};

use kvasir_coordinator::{ClusterConfig, SessionId};
use kvasir_kv::{Epoch, EpochSpec, FromWorker, GroupId, Rank, SequenceId, StepPlan, TenantId};

use super::checks::PlanWatch;

#[derive(Debug)]
pub(super) struct Lives {
    living: BTreeMap<GroupId, Life>,
    /// Of each group, the last epoch that began.
    last: BTreeMap<GroupId, Epoch>,
    begun: BTreeSet<Epoch>,
    prepared: BTreeMap<Epoch, Life>,
    /// The sizes of pools that served, and until when they did.
    served: Vec<(u32, u64)>,
    since: u64,
}

#[derive(Debug)]
pub(super) struct Life {
    nonce: u64,
    pub epoch: Epoch,
    pub num_blocks: u32,
    pub serves: bool,
    pub plans: PlanWatch,
    /// With the worker behind the connection.
    ranks: BTreeMap<SessionId, (Rank, usize)>,
}

impl Lives {
    /// Of a coordinator that begins now.
    pub fn since(now: u64) -> Self {
        Self {
            living: BTreeMap::new(),
            last: BTreeMap::new(),
            begun: BTreeSet::new(),
            prepared: BTreeMap::new(),
            served: Vec::new(),
            since: now,
        }
    }

    /// The coordinator makes the worker behind a connection a rank.
    pub fn form(
        &mut self,
        session: SessionId,
        worker: usize,
        spec: &EpochSpec,
        config: &ClusterConfig,
    ) -> Result<(), String> {
        let (group, epoch) = (spec.group, spec.epoch);
        if let Some((other, _)) = self.living.iter().find(|(_, life)| life.has(worker)) {
            return Err(format!(
                "worker-{worker} is to be a rank of {epoch} while it is one of group {other}"
            ));
        }
        if spec.rank == Rank(0) {
            self.begin(spec, config)?;
        }
        match self.living.get_mut(&group).filter(|life| life.epoch == epoch) {
            Some(life) => life.ranks.insert(session, (spec.rank, worker)),
            None => return Err(format!("rank {} of {epoch} comes before the first", spec.rank)),
        };
        Ok(())
    }

    fn begin(&mut self, spec: &EpochSpec, config: &ClusterConfig) -> Result<(), String> {
        let (group, epoch) = (spec.group, spec.epoch);
        if let Some(life) = self.living.get(&group) {
            return Err(format!("{epoch} of group {group} begins while {} lives", life.epoch));
        }
        if !self.begun.insert(epoch) {
            return Err(format!("{epoch} begins twice"));
        }
        let Some(wanted) = config.group_sizes.get(group.0 as usize) else {
            return Err(format!("nobody asked for group {group}"));
        };
        // The first epoch waits until all are there.
        let world_size = spec.shares.len();
        match self.last.insert(group, epoch) {
            None if world_size != *wanted as usize => {
                return Err(format!("the first epoch of group {group} has {world_size} ranks"));
            }
            Some(last) if epoch <= last => return Err(format!("{epoch} of group {group} begins after {last}")),
            _ => {}
        }
        self.living.insert(group, Life::new(spec));
        Ok(())
    }

    /// The worker behind a connection is to be a rank of an epoch that gets ready beside another.
    pub fn prepare(&mut self, session: SessionId, worker: usize, spec: &EpochSpec) {
        let life = self.prepared.entry(spec.epoch).or_insert_with(|| Life::new(spec));
        life.ranks.insert(session, (spec.rank, worker));
    }

    /// A group goes over to an epoch that was prepared, with all that it holds.
    pub fn switch(
        &mut self,
        group: GroupId,
        from: Epoch,
        epoch: Epoch,
        num_blocks: u32,
        now: u64,
    ) -> Result<(), String> {
        let ended = self.end(group, from, now)?;
        let mut life = self
            .prepared
            .remove(&epoch)
            .ok_or_else(|| format!("{epoch} of group {group} begins and was not prepared"))?;
        if !ended.serves || !self.begun.insert(epoch) {
            return Err(format!("{epoch} begins twice, or after one that did not serve"));
        }
        if ended.plans.is_busy() {
            return Err(format!("{epoch} begins while steps of {from} are out"));
        }
        life.serves = true;
        // There may be more ids than blocks.
        life.num_blocks = num_blocks;
        self.last.insert(group, epoch);
        self.living.insert(group, life);
        Ok(())
    }

    pub fn start(&mut self, group: GroupId, epoch: Epoch) -> Result<(), String> {
        let forming = |life: &&mut Life| life.epoch == epoch && !life.serves;
        let Some(life) = self.living.get_mut(&group).filter(forming) else {
            return Err(format!("{epoch} of group {group} starts out of turn"));
        };
        life.serves = true;
        Ok(())
    }

    pub fn end(&mut self, group: GroupId, epoch: Epoch, now: u64) -> Result<Life, String> {
        let ended = self.living.remove(&group).filter(|life| life.epoch == epoch);
        let ended = ended.ok_or_else(|| format!("{epoch} of group {group} ends and did not live"))?;
        if ended.serves {
            self.served.push((ended.num_blocks, now));
        }
        Ok(ended)
    }

    pub fn get(&self, group: GroupId) -> Option<&Life> {
        self.living.get(&group)
    }

    pub fn serving(&self) -> impl Iterator<Item = &Life> {
        self.living.values().filter(|life| life.serves)
    }

    /// Since when no group serves that has so many blocks; `None` while one does.
    pub fn unserved_since(&self, num_blocks: u32) -> Option<u64> {
        if self.serving().any(|life| life.num_blocks >= num_blocks) {
            return None;
        }
        let roomy = self.served.iter().filter(|(blocks, _)| *blocks >= num_blocks);
        Some(roomy.map(|(_, until)| *until).max().unwrap_or(self.since))
    }

    /// The group and rank of a connection.
    pub fn place_of(&self, session: SessionId) -> Option<(GroupId, Rank)> {
        let mut living = self.living.iter();
        living.find_map(|(group, life)| Some((*group, life.ranks.get(&session)?.0)))
    }

    /// The coordinator hears this over a connection.
    pub fn hear(&mut self, session: SessionId, message: &FromWorker) {
        for life in self.living.values_mut() {
            if let Some((rank, _)) = life.ranks.get(&session) {
                life.plans.hear(*rank, message);
            }
        }
    }

    /// A rank has really done a step. Processes that know nothing of the past may count epochs from the start again, so
    /// that only the nonce tells one from another.
    pub fn see(&mut self, rank: Rank, (epoch, nonce): (Epoch, u64), steps_done: u64) {
        let mut living = self.living.values_mut();
        if let Some(life) = living.find(|life| (life.epoch, life.nonce) == (epoch, nonce)) {
            life.plans.see(rank, steps_done);
        }
    }

    /// A plan is sent to the ranks of a group. Returns how many blocks it shares.
    pub fn check(
        &mut self,
        group: GroupId,
        plan: &StepPlan,
        config: &ClusterConfig,
        tenant_of: impl Fn(SequenceId) -> TenantId,
    ) -> Result<u64, String> {
        for work in &plan.work {
            let mut others = self.living.iter().filter(|(other, _)| **other != group);
            if let Some((other, _)) = others.find(|(_, life)| life.plans.holds(work.sequence)) {
                return Err(format!("{} is held by two groups, {other} and {group}", work.sequence));
            }
        }
        let life = self.living.get_mut(&group).expect("the receiver is a rank of it");
        life.plans.check(plan, config, tenant_of)?;
        Ok(std::mem::take(&mut life.plans.blocks.shared))
    }
}

impl Life {
    fn new(spec: &EpochSpec) -> Self {
        Self {
            epoch: spec.epoch,
            nonce: spec.nonce,
            num_blocks: spec.num_blocks,
            serves: false,
            plans: PlanWatch::new(spec),
            ranks: BTreeMap::new(),
        }
    }

    pub fn workers(&self) -> impl Iterator<Item = usize> {
        self.ranks.values().map(|(_, worker)| *worker)
    }

    fn has(&self, worker: usize) -> bool {
        self.workers().any(|other| other == worker)
    }
}
