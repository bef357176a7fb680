//! Letting workers go: what they hold goes to others while it is in use, and then they are released.
//!
//! A group that has other ranks, or free workers, is resharded without the worker. Where nobody would be left, its running
//! sequences migrate to other groups and its epoch ends. Where there is no other group either, the worker stays until its
//! sequences have ended, or until it has waited long enough by its own clock.

use kvasir_kv::{GroupId, SequenceId, ToWorker, WorkerId};

use crate::{Cluster, Effect, MigrationReason, SessionId, detector::Steady, group::Group};

/// A group that could not be emptied yet is looked at again after so long.
const RETRY: std::time::Duration = std::time::Duration::from_millis(100);

impl Cluster {
    /// An operator lets a worker go. False if there is no such worker.
    pub(crate) fn let_go(&mut self, worker: &WorkerId) -> bool {
        let session = self.workers.session_of(worker);
        session.is_some_and(|session| self.workers.let_go(session))
    }

    /// Brings everybody who leaves as far as they can get now.
    pub(crate) fn drain(&mut self) {
        let leaving = self.workers.leaving();
        for session in &leaving {
            match self.seat_of(*session) {
                Some(seat) => self.empty(seat.group, &leaving),
                None if self.is_free(*session) => self.release_worker(*session),
                None => {}
            }
        }
    }

    /// It is no rank: it may go. Its process closes the connection.
    fn release_worker(&mut self, session: SessionId) {
        self.workers.leave(session);
        self.counters.workers_released += 1;
        let message = ToWorker::Released;
        self.effects.push(Effect::Send { session, message });
        let reason = "it was let go".to_owned();
        self.effects.push(Effect::CloseSession { session, reason });
    }

    /// A group is to do without those who leave.
    fn empty(&mut self, id: GroupId, leaving: &[SessionId]) {
        let group = self.group(id);
        let steady = self.clock.read();
        let Some(active) = group.active.as_ref().filter(|_| group.serves()) else {
            return;
        };
        if self.is_resharding(id) || steady < group.drain_at {
            return;
        }
        let current = active.formation.sessions.clone();
        let available = self.reshard_candidates(id, &current, leaving).len() as u32;
        let ranks = group.size.min(available);
        if ranks > 0 && self.begin_reshard(id, ranks, leaving, None).is_ok() {
            return;
        }
        if ranks == 0 && self.groups.iter().any(|other| other.id != id && other.serves()) {
            self.send_away(id);
        } else if ranks == 0 && self.group(id).scheduler.sequences().next().is_none() {
            self.dissolve(id);
        }
        self.group_mut(id).drain_at = Steady(steady.0 + RETRY);
    }

    /// All sequences of a group go to others; then it ends.
    fn send_away(&mut self, id: GroupId) {
        let all: Vec<SequenceId> = self
            .group(id)
            .scheduler
            .sequences()
            .map(|sequence| sequence.id)
            .collect();
        for sequence in &all {
            if let Some(target) = self.roomiest_but(id) {
                // Whoever is on its way, or finds no room, is asked again later.
                let _ = self.begin_migration(*sequence, target, MigrationReason::Drain);
            }
        }
        if all.is_empty() && !self.has_transfers(id) {
            self.dissolve(id);
        }
    }

    fn dissolve(&mut self, id: GroupId) {
        let reason = "its workers were let go".to_owned();
        self.end_epoch(id, &[], None, reason);
        // Nothing failed.
        self.group_mut(id).failures = 0;
    }

    /// It takes no new sequences: all its workers leave.
    pub(crate) fn is_closing(&self, group: &Group) -> bool {
        let members = group.active.iter().flat_map(|active| &active.members);
        let mut workers = members.filter_map(|member| self.workers.get(member.session));
        workers
            .next()
            .is_some_and(|first| first.leaves && workers.all(|worker| worker.leaves))
    }
}
