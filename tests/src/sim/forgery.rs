//! What planted bugs make of plans on their way to the ranks. Every rank of a group gets the same forged plan.

use kvasir_kv::{AdmittedSequence, GroupId, Rank, SequenceWork, StepPlan};

use super::{plant::Plant, world::World};

#[derive(Debug, Default)]
pub(super) struct Forgery {
    /// A bug strikes once.
    pub struck: bool,
    forged: Option<StepPlan>,
    /// A sequence that a group was sent, to be sent to another one as well.
    guest: Option<(GroupId, AdmittedSequence, SequenceWork)>,
}

impl World {
    /// A planted bug that strikes once: whether it is now.
    pub(super) fn take_plant(&mut self, percent: u64) -> bool {
        if !self.forgery.struck && self.dice.chance(percent) {
            self.forgery.struck = true;
            self.trace(|| "the planted bug strikes".to_owned());
            return true;
        }
        false
    }

    /// What the plan watch must find.
    pub(super) fn forge_before_check(&mut self, group: GroupId, rank: Rank, plan: &mut StepPlan) {
        if self.plant == Some(Plant::TwoHomes) {
            self.forge(rank, plan, |world, plan| world.invite(group, plan));
        }
    }

    /// What the ranks must find.
    pub(super) fn forge_after_check(&mut self, group: GroupId, rank: Rank, plan: &mut StepPlan) {
        match self.plant {
            Some(Plant::BlockReleasedTwice) => self.forge(rank, plan, |world, plan| world.steal(group, plan)),
            Some(Plant::BlockSharedEarly) => self.forge(rank, plan, |world, plan| world.share_early(group, plan)),
            _ => {}
        }
    }

    fn forge(&mut self, rank: Rank, plan: &mut StepPlan, alter: impl Fn(&mut Self, &StepPlan) -> Option<StepPlan>) {
        if rank == Rank(0)
            && !self.forgery.struck
            && let Some(forged) = alter(self, plan)
        {
            self.forgery.struck = true;
            self.forgery.forged = Some(forged);
        }
        if let Some(forged) = &self.forgery.forged
            && (forged.epoch, forged.step) == (plan.epoch, plan.step)
        {
            *plan = forged.clone();
        }
    }

    /// A sequence that another group was sent a moment ago is admitted here too.
    fn invite(&mut self, group: GroupId, plan: &StepPlan) -> Option<StepPlan> {
        if let Some((home, admitted, work)) = &self.forgery.guest
            && *home != group
            && self
                .lives
                .get(*home)
                .is_some_and(|life| life.plans.holds(work.sequence))
        {
            let mut forged = plan.clone();
            forged.admitted.push(admitted.clone());
            forged.work.push(work.clone());
            return Some(forged);
        }
        let admitted = plan.admitted.first()?.clone();
        let work = plan.work.iter().find(|work| work.sequence == admitted.sequence)?;
        self.forgery.guest = Some((group, admitted, work.clone()));
        None
    }

    /// A sequence's new block is one that another sequence holds.
    fn steal(&mut self, group: GroupId, plan: &StepPlan) -> Option<StepPlan> {
        let blocks = &self.lives.get(group)?.plans.blocks;
        let (index, place, stolen) = blocks.block_to_steal(plan)?;
        let mut forged = plan.clone();
        forged.work[index].new_blocks[place] = stolen;
        Some(forged)
    }

    /// A sequence starts after a block that is not full.
    fn share_early(&mut self, group: GroupId, plan: &StepPlan) -> Option<StepPlan> {
        let blocks = &self.lives.get(group)?.plans.blocks;
        let (index, part) = blocks.block_to_share_early(plan)?;
        let mut forged = plan.clone();
        let work = &mut forged.work[index];
        work.start = self.scenario.config.cell.block_size();
        work.num_tokens -= work.start;
        work.new_blocks[0] = part;
        Some(forged)
    }
}
