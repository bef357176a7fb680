//! A second opinion on every plan that is sent: what it holds, who has acknowledged what.
//!
//! It trusts nothing of the coordinator but the messages themselves.

use std::collections::BTreeMap;

use kvasir_coordinator::ClusterConfig;
use kvasir_kv::{Epoch, EpochSpec, FromWorker, Rank, SequenceId, StepId, StepPlan};

use super::block_watch::BlockWatch;

#[derive(Debug)]
pub(crate) struct PlanWatch {
    epoch: Epoch,
    pub blocks: BlockWatch,
    next_step: u64,
    /// Steps acknowledged, by rank, as far as the coordinator has heard.
    acknowledged: Vec<u64>,
    /// Steps that the ranks have really done.
    done: Vec<u64>,
    /// Sequences that the ranks hold, with the last step that names them.
    held: BTreeMap<SequenceId, StepId>,
}

impl PlanWatch {
    pub fn new(spec: &EpochSpec) -> Self {
        Self {
            epoch: spec.epoch,
            blocks: BlockWatch::new(spec.num_blocks, spec.block_size),
            next_step: 0,
            acknowledged: vec![0; spec.shares.len()],
            done: vec![0; spec.shares.len()],
            held: BTreeMap::new(),
        }
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
        let acknowledged = self.acknowledged.iter().chain(&self.done).copied().min().unwrap_or(0);
        self.blocks.take(plan, acknowledged)
    }

    fn take_membership(&mut self, plan: &StepPlan) {
        for sequence in &plan.retired {
            if let Some(last) = self.held.remove(sequence) {
                self.blocks.retire(*sequence, last);
            }
        }
        for work in &plan.work {
            self.held.insert(work.sequence, plan.step);
        }
    }
}
