//! A second opinion on every plan that is sent: what it holds, who has acknowledged what.
//!
//! It trusts nothing of the coordinator but the messages themselves.

use std::collections::{BTreeMap, VecDeque};

use kvasir_coordinator::ClusterConfig;
use kvasir_kv::{Epoch, EpochSpec, FromWorker, Rank, SequenceId, StepId, StepPlan, TenantId};

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
    /// Plans whose output the coordinator has not heard, oldest first.
    out: VecDeque<PlanOut>,
}

#[derive(Debug)]
struct PlanOut {
    num_tokens: u32,
    sampled: Vec<SequenceId>,
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
            out: VecDeque::new(),
        }
    }

    /// The coordinator hears this from a rank.
    pub fn hear(&mut self, rank: Rank, message: &FromWorker) {
        if let FromWorker::StepDone { epoch, step, .. } = message
            && *epoch == self.epoch
        {
            self.acknowledged[rank.0 as usize] = step.0 + 1;
            let num_out = self.next_step.saturating_sub(self.acknowledged[0]);
            while self.out.len() as u64 > num_out {
                self.out.pop_front();
            }
        }
    }

    /// A rank has really done a step.
    pub fn see(&mut self, rank: Rank, steps_done: u64) {
        self.done[rank.0 as usize] = steps_done;
    }

    /// Whether a rank has not done all steps, as far as the coordinator has heard.
    pub fn is_busy(&self) -> bool {
        self.acknowledged.iter().any(|done| *done < self.next_step)
    }

    /// Whether the ranks have been told of a sequence, and not to forget it.
    pub fn holds(&self, sequence: SequenceId) -> bool {
        self.held.contains_key(&sequence)
    }

    /// Whether a plan that is out samples for a sequence.
    pub fn awaits_sample(&self, sequence: SequenceId) -> bool {
        self.out.iter().any(|plan| plan.sampled.contains(&sequence))
    }

    pub fn check(
        &mut self,
        plan: &StepPlan,
        config: &ClusterConfig,
        tenant_of: impl Fn(SequenceId) -> TenantId,
    ) -> Result<(), String> {
        let step = plan.step;
        if plan.epoch != self.epoch || step.0 != self.next_step {
            return Err(format!(
                "step {step} of {} where {} of {} is next",
                plan.epoch, self.next_step, self.epoch
            ));
        }
        self.next_step += 1;
        // A plan that only lets the ranks forget keeps nobody waiting.
        if !plan.work.is_empty() {
            self.check_look_ahead(plan, config)?;
        } else if !plan.retired.is_empty() {
            self.note_out(plan);
        }
        check_size(plan, config)?;
        self.take_membership(plan);
        if self.held.len() > config.sequences_max as usize {
            return Err(format!(
                "{} sequences run, at most {} may",
                self.held.len(),
                config.sequences_max
            ));
        }
        let acknowledged = self.acknowledged.iter().chain(&self.done).copied().min().unwrap_or(0);
        self.blocks.take(plan, acknowledged, tenant_of)
    }

    fn check_look_ahead(&mut self, plan: &StepPlan, config: &ClusterConfig) -> Result<(), String> {
        let step = plan.step;
        if self.out.len() > config.look_ahead as usize {
            return Err(format!("step {step} looks ahead beyond {}", config.look_ahead));
        }
        let tokens_out: u32 = self.out.iter().map(|plan| plan.num_tokens).sum();
        if tokens_out >= config.look_ahead_tokens_max {
            return Err(format!(
                "step {step} is sent while {tokens_out} tokens are out, of {}",
                config.look_ahead_tokens_max
            ));
        }
        self.note_out(plan);
        Ok(())
    }

    fn note_out(&mut self, plan: &StepPlan) {
        let sampling = plan.work.iter().filter(|work| work.samples);
        self.out.push_back(PlanOut {
            num_tokens: plan.num_tokens(),
            sampled: sampling.map(|work| work.sequence).collect(),
        });
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

fn check_size(plan: &StepPlan, config: &ClusterConfig) -> Result<(), String> {
    let step = plan.step;
    if plan.num_tokens() > config.step_tokens_max || plan.work.is_empty() && plan.retired.is_empty() {
        return Err(format!("step {step} has {} tokens", plan.num_tokens()));
    }
    if plan.work.iter().any(|work| work.num_tokens > config.chunk_tokens_max) {
        return Err(format!(
            "step {step} has a chunk of more than {}",
            config.chunk_tokens_max
        ));
    }
    Ok(())
}
