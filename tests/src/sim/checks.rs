//! A second opinion on every plan that is sent: who owns which block, who has acknowledged what.
//!
//! It trusts nothing of the coordinator but the messages themselves.

use std::collections::BTreeMap;

use kvasir_coordinator::ClusterConfig;
use kvasir_kv::{BlockId, Epoch, EpochSpec, FromWorker, Rank, SequenceId, StepId, StepPlan, TaggedBlock};

#[derive(Debug)]
pub(super) struct PlanWatch {
    epoch: Epoch,
    num_blocks: u32,
    next_step: u64,
    /// Steps acknowledged, by rank, as far as the coordinator has heard.
    acknowledged: Vec<u64>,
    /// Steps that the ranks have really done.
    done: Vec<u64>,
    owner: BTreeMap<BlockId, (SequenceId, TaggedBlock)>,
    /// Sequences that the ranks hold, with the last step that names them.
    held: BTreeMap<SequenceId, StepId>,
    /// The last step that names a block, once its owner has let go.
    released: BTreeMap<BlockId, StepId>,
}

impl PlanWatch {
    pub fn new(spec: &EpochSpec) -> Self {
        Self {
            epoch: spec.epoch,
            num_blocks: spec.num_blocks,
            next_step: 0,
            acknowledged: vec![0; spec.shares.len()],
            done: vec![0; spec.shares.len()],
            owner: BTreeMap::new(),
            held: BTreeMap::new(),
            released: BTreeMap::new(),
        }
    }

    /// A work entry that gets a new block, and a block that another sequence holds.
    pub fn block_to_steal(&self, plan: &StepPlan) -> Option<(usize, TaggedBlock)> {
        let index = plan.work.iter().position(|work| !work.new_blocks.is_empty())?;
        let thief = plan.work[index].sequence;
        let (_, stolen) = self.owner.values().find(|(owner, _)| *owner != thief)?;
        Some((index, *stolen))
    }

    /// The coordinator hears this from a rank.
    pub fn hear(&mut self, rank: usize, message: &FromWorker) {
        if let FromWorker::StepDone { epoch, step, .. } = message
            && *epoch == self.epoch
        {
            self.acknowledged[rank] = step.0 + 1;
        }
    }

    /// A rank has really done a step.
    pub fn see(&mut self, rank: Rank, epoch: Epoch, steps_done: u64) {
        if epoch == self.epoch {
            self.done[rank.0 as usize] = steps_done;
        }
    }

    pub fn check(&mut self, plan: &StepPlan, config: &ClusterConfig) -> Result<(), String> {
        let step = plan.step;
        if plan.epoch != self.epoch || step.0 != self.next_step {
            return Err(format!(
                "step {step} of {} where {} of {} is next",
                plan.epoch, self.next_step, self.epoch
            ));
        }
        self.next_step += 1;
        if step.0 - self.acknowledged[0] > u64::from(config.look_ahead) {
            return Err(format!("step {step} looks ahead beyond {}", config.look_ahead));
        }
        if plan.num_tokens() > config.step_tokens_max || plan.work.is_empty() {
            return Err(format!("step {step} has {} tokens", plan.num_tokens()));
        }
        if plan.work.iter().any(|work| work.num_tokens > config.chunk_tokens_max) {
            return Err(format!(
                "step {step} has a chunk of more than {}",
                config.chunk_tokens_max
            ));
        }
        self.take_membership(plan);
        if self.held.len() > config.sequences_max as usize {
            return Err(format!(
                "{} sequences run, at most {} may",
                self.held.len(),
                config.sequences_max
            ));
        }
        self.take_blocks(plan)
    }

    fn take_membership(&mut self, plan: &StepPlan) {
        for sequence in &plan.retired {
            let Some(last) = self.held.remove(sequence) else {
                continue;
            };
            let blocks: Vec<BlockId> = self
                .owner
                .iter()
                .filter(|(_, owner)| owner.0 == *sequence)
                .map(|(block, _)| *block)
                .collect();
            for block in blocks {
                self.owner.remove(&block);
                self.released.insert(block, last);
            }
        }
        for work in &plan.work {
            self.held.insert(work.sequence, plan.step);
        }
    }

    fn take_blocks(&mut self, plan: &StepPlan) -> Result<(), String> {
        let acknowledged = self.acknowledged.iter().chain(&self.done).copied().min().unwrap_or(0);
        for work in &plan.work {
            for block in &work.new_blocks {
                if block.id.0 >= self.num_blocks {
                    return Err(format!("block {} of {}", block.id, self.num_blocks));
                }
                if let Some((owner, _)) = self.owner.insert(block.id, (work.sequence, *block)) {
                    return Err(format!("block {} of {owner} is given to {}", block.id, work.sequence));
                }
                if let Some(last) = self.released.remove(&block.id)
                    && last.0 >= acknowledged
                {
                    return Err(format!(
                        "block {} is given away, a rank has not done step {last}",
                        block.id
                    ));
                }
            }
        }
        Ok(())
    }
}
