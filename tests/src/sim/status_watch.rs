//! A second opinion on the status after every event: it agrees with what was sent, no block is unaccounted for, and
//! nobody is passed over by a sequence of a higher priority value, or by a newer one of the same tenant and priority.

use std::collections::BTreeMap;

use kvasir_coordinator::status::{ClusterStatus, GroupPhase, GroupStatus, SequenceStatus};
use kvasir_kv::{Epoch, GroupId, SequenceId};

use super::lives::Lives;

#[derive(Debug, Default)]
pub(super) struct StatusWatch {
    /// As they were after the event before this one.
    before: BTreeMap<SequenceId, Place>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    group: GroupId,
    /// `None` while its group does not serve.
    epoch: Option<Epoch>,
    running: bool,
}

impl StatusWatch {
    pub fn check(&self, status: &ClusterStatus, lives: &Lives) -> Result<(), String> {
        let violations = status.counters.conservation_violations;
        if violations > 0 {
            return Err(format!("{violations} steps lost or doubled blocks"));
        }
        for group in &status.groups {
            check_group(group, lives)?;
        }
        for sequence in status.sequences.iter().filter(|sequence| sequence.running) {
            if !is_held(sequence, lives) && !sequence.arriving {
                return Err(format!(
                    "{} runs, and its group {} does not hold it",
                    sequence.sequence, sequence.group
                ));
            }
        }
        self.check_order(status, lives)
    }

    /// At a tick whoever has waited too long in a group that serves is refused.
    pub fn check_waits(
        &self,
        status: &ClusterStatus,
        waits_too_long: impl Fn(SequenceId) -> bool,
    ) -> Result<(), String> {
        let sequences = status.sequences.iter().filter(|sequence| {
            let serves = place(sequence, status).epoch.is_some();
            serves && self.waited(sequence, status)
        });
        let late: Vec<_> = sequences
            .map(|sequence| sequence.sequence)
            .filter(|sequence| waits_too_long(*sequence))
            .collect();
        if late.is_empty() {
            Ok(())
        } else {
            Err(format!("{late:?} wait for longer than they may"))
        }
    }

    pub fn remember(&mut self, status: &ClusterStatus) {
        let sequences = status.sequences.iter();
        self.before = sequences
            .map(|sequence| (sequence.sequence, place(sequence, status)))
            .collect();
    }

    fn check_order(&self, status: &ClusterStatus, lives: &Lives) -> Result<(), String> {
        let sequences = &status.sequences;
        for (index, admitted) in sequences.iter().enumerate() {
            // Whoever waits for a copy takes room behind those who come first: they are in the next step.
            let awaits_copy = admitted.arriving && admitted.blocks == 0;
            let was_running = self.before.get(&admitted.sequence).is_some_and(|place| place.running);
            if !admitted.running || was_running || awaits_copy {
                continue;
            }
            let mut passed = sequences[..index].iter().filter(|waiting| {
                comes_first(waiting, admitted) && self.waited(waiting, status) && !has_samples_in_flight(waiting, lives)
            });
            if let Some(waiting) = passed.next() {
                return Err(format!(
                    "{} is admitted to group {} and passes over {}, which comes first",
                    admitted.sequence, admitted.group, waiting.sequence
                ));
            }
        }
        Ok(())
    }

    /// Whether it waits in its group and did so before the event.
    fn waited(&self, sequence: &SequenceStatus, status: &ClusterStatus) -> bool {
        !sequence.running && self.before.get(&sequence.sequence) == Some(&place(sequence, status))
    }
}

fn check_group(group: &GroupStatus, lives: &Lives) -> Result<(), String> {
    let unaccounted = group.blocks.unaccounted();
    if unaccounted != 0 {
        return Err(format!(
            "{unaccounted} blocks of group {} are unaccounted for",
            group.id
        ));
    }
    let life = lives.get(group.id);
    let serves = life.is_some_and(|life| life.serves);
    if life.is_some() != (group.phase != GroupPhase::Waiting) || serves != (group.phase == GroupPhase::Running) {
        return Err(format!("group {} is {}: {life:?}", group.id, group.phase.name()));
    }
    match life.filter(|life| life.epoch != group.epoch) {
        Some(life) => Err(format!(
            "group {} lives in {}, its status says {}",
            group.id, life.epoch, group.epoch
        )),
        None => Ok(()),
    }
}

fn place(sequence: &SequenceStatus, status: &ClusterStatus) -> Place {
    let group = &status.groups[sequence.group.0 as usize];
    Place {
        group: sequence.group,
        epoch: (group.phase == GroupPhase::Running).then_some(group.epoch),
        running: sequence.running,
    }
}

/// Of the same group; `first` is older if they are of the same priority.
fn comes_first(first: &SequenceStatus, second: &SequenceStatus) -> bool {
    let is_urgent = first.priority < second.priority;
    let is_older = first.priority == second.priority && first.tenant == second.tenant;
    first.group == second.group && (is_urgent || is_older)
}

fn is_held(sequence: &SequenceStatus, lives: &Lives) -> bool {
    let life = lives.get(sequence.group);
    life.is_some_and(|life| life.plans.holds(sequence.sequence))
}

/// The ranks must be told all tokens of a sequence when it is admitted.
fn has_samples_in_flight(sequence: &SequenceStatus, lives: &Lives) -> bool {
    let life = lives.get(sequence.group);
    life.is_some_and(|life| life.plans.awaits_sample(sequence.sequence))
}
