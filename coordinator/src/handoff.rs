//! Disaggregated prefill: a group that only computes prompts hands each sequence to one that decodes.
//!
//! It is a migration that begins with the first chunk: blocks go while later chunks are computed. Where no group that
//! decodes has room, the sequence decodes where it is, and is asked again.

use std::cmp::Reverse;

use kvasir_kv::{GroupId, SequenceId};

use crate::{Cluster, GroupRole, MigrationReason, group::Group, sequence::Sequence};

impl Cluster {
    pub(crate) fn hand_off(&mut self) {
        for index in 0..self.groups.len() {
            let group = &self.groups[index];
            if group.role != GroupRole::Prefill || !group.serves() || self.clock.read() < group.move_at {
                continue;
            }
            let id = group.id;
            let ready = group.scheduler.sequences().filter(|sequence| leaves_soon(sequence));
            for sequence in ready.map(|sequence| sequence.id).collect::<Vec<_>>() {
                self.hand_off_one(sequence, id);
            }
        }
    }

    fn hand_off_one(&mut self, sequence: SequenceId, source: GroupId) {
        if self.is_moving(sequence) {
            return;
        }
        let begun = match self.decoding_group(sequence, source) {
            Some(target) => self.begin_migration(sequence, target, MigrationReason::Handoff).is_ok(),
            None => false,
        };
        match begun {
            // The cells of the chunk that was just sent are asked for behind it.
            true => self.advance_migrations(),
            false => {
                let steady = self.clock.read();
                self.group_mut(source).rest(steady);
            }
        }
    }

    /// Where it could decode at once: in a group that does nothing else, if there is one, and with the most room.
    fn decoding_group(&self, id: SequenceId, source: GroupId) -> Option<GroupId> {
        let sequence = self.group(source).scheduler.get(id)?;
        let fits = |group: &&Group| {
            self.may_go_on_in(group, source) && group.scheduler.spare_room().has_room_for(sequence, &group.scheduler)
        };
        let by_room = |group: &&Group| {
            let also_prefills = group.role.takes_prompts();
            (also_prefills, Reverse(group.scheduler.block_counts().available()))
        };
        self.groups
            .iter()
            .filter(fits)
            .min_by_key(by_room)
            .map(|group| group.id)
    }
}

/// Its ranks know it, and it has more to say than its next token.
fn leaves_soon(sequence: &Sequence) -> bool {
    let known = sequence.running().is_some_and(|running| running.last_named.is_some());
    known && sequence.answer_len() + 1 < sequence.request.max_tokens
}
