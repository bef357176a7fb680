//! Losses: who is suspected, who is given up, and how an epoch ends.
//!
//! A worker that is given up is not killed: its connection is closed, and it may join again.

use std::{collections::BTreeMap, time::Duration};

use kvasir_kv::{GroupId, WorkerId};

use crate::{
    Cluster, Effect, LossCause, SessionId,
    detector::{Steady, Verdict, judge},
    group::{Active, Group, Stage},
    recovery::{Outage, Recovery},
};

/// Wait before an epoch that follows one which never completed a step; doubled each time.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// A rank or spare that is given up, and why.
#[derive(Debug)]
pub(crate) struct Loss {
    pub session: SessionId,
    pub how: LossCause,
    /// From its last sign of life or progress.
    pub detection: Duration,
    pub reason: String,
}

impl Cluster {
    pub(crate) fn on_tick(&mut self) {
        let mut losses = self.silent_workers();
        let mut hung = Vec::new();
        for group in &self.groups {
            losses.extend(self.overdue_ranks(group));
            match self.standing_ranks(group) {
                Verdict::Suspects(ranks) => losses.extend(self.standing_losses(group, &ranks)),
                Verdict::AllAtOnce => hung.push(group.id),
                Verdict::Fine => {}
            }
        }
        hung.retain(|id| {
            let in_it = |loss: &Loss| self.seat_of(loss.session).is_some_and(|seat| seat.group == *id);
            !losses.iter().any(in_it)
        });
        for id in hung {
            self.end_epoch(id, &[], None, "all ranks stand still at the same place".to_owned());
        }
        self.give_up(losses);
        // Whoever can go on elsewhere has not waited in vain.
        self.leave_idle_groups();
        for index in 0..self.groups.len() {
            let outage = self.outage(&self.groups[index]);
            let scheduler = &mut self.groups[index].scheduler;
            scheduler.check_deadlines(self.now, outage.as_ref(), &mut self.effects);
        }
    }

    /// How long a worker may be silent.
    fn stall_window(&self, session: SessionId) -> Duration {
        let seat = self.seat_of(session);
        seat.map_or(self.config.stall_min, |seat| {
            self.group(seat.group).usual_step.stall_window()
        })
    }

    /// Spares too: one that does not live must not be counted on.
    fn silent_workers(&self) -> Vec<Loss> {
        let steady = self.clock.read();
        let workers = self.workers.in_join_order().into_iter();
        workers
            .filter(|(session, worker)| steady.since(worker.heard) > self.stall_window(*session))
            .map(|(session, _)| self.loss(session, LossCause::Stalled, "no sign of life".to_owned()))
            .collect()
    }

    fn overdue_ranks(&self, group: &Group) -> Vec<Loss> {
        let Some(active) = &group.active else {
            return Vec::new();
        };
        let steady = self.clock.read();
        let since = match active.stage {
            Stage::Forming { since } | Stage::Connecting { since } => since,
            Stage::Running => return Vec::new(),
        };
        let reason = format!("no answer while the group was {}", group.phase().name());
        self.losses_of(active, &active.overdue(&self.config, steady), reason, |_| since)
    }

    fn standing_ranks(&self, group: &Group) -> Verdict {
        let Some(active) = group.active.as_ref().filter(|_| group.serves()) else {
            return Verdict::Fine;
        };
        let ranks: Vec<_> = active
            .members
            .iter()
            .zip(0..)
            .map(|(member, rank)| (member.watch, group.scheduler.is_busy(kvasir_kv::Rank(rank))))
            .collect();
        judge(&ranks, self.clock.read(), group.usual_step.stall_window())
    }

    fn standing_losses(&self, group: &Group, ranks: &[usize]) -> Vec<Loss> {
        let Some(active) = &group.active else {
            return Vec::new();
        };
        let reason = "it makes no progress, and the others wait for it".to_owned();
        self.losses_of(active, ranks, reason, |rank| active.members[rank].watch.moved())
    }

    fn losses_of(
        &self,
        active: &Active,
        ranks: &[usize],
        reason: String,
        since: impl Fn(usize) -> Steady,
    ) -> Vec<Loss> {
        let steady = self.clock.read();
        let loss = |rank: &usize| Loss {
            session: active.members[*rank].session,
            how: LossCause::Stalled,
            detection: steady.since(since(*rank)),
            reason: reason.clone(),
        };
        ranks.iter().map(loss).collect()
    }

    /// A loss measured from the worker's last sign of life.
    pub(crate) fn loss(&self, session: SessionId, how: LossCause, reason: String) -> Loss {
        let heard = self
            .workers
            .get(session)
            .map_or(self.clock.read(), |worker| worker.heard);
        Loss {
            session,
            how,
            detection: self.clock.read().since(heard),
            reason,
        }
    }

    /// Gives workers up, all at once. The epochs in which they were ranks end.
    pub(crate) fn give_up(&mut self, losses: Vec<Loss>) {
        let gone: Vec<SessionId> = losses.iter().map(|loss| loss.session).collect();
        // By group, the first reason.
        let mut ended: BTreeMap<GroupId, String> = BTreeMap::new();
        for loss in losses {
            let seat = self.seat_of(loss.session);
            if let Some(seat) = seat {
                ended.entry(seat.group).or_insert_with(|| loss.reason.clone());
            }
            // A worker may be suspected for two reasons at once.
            let Some(worker) = self.workers.leave(loss.session) else {
                continue;
            };
            self.forget_causes();
            self.counters.ranks_lost += 1;
            self.effects.push(Effect::RankLost {
                worker: worker.info.id,
                rank: seat.map(|seat| seat.rank),
                // A spare has none; then it is the first group's.
                epoch: self.group(seat.map(|seat| seat.group).unwrap_or_default()).epoch,
                how: loss.how,
                detection_ms: loss.detection.as_millis() as u64,
                reason: loss.reason.clone(),
            });
            if loss.how != LossCause::Closed {
                self.effects.push(Effect::CloseSession {
                    session: loss.session,
                    reason: loss.reason,
                });
            }
        }
        for (group, reason) in ended {
            self.end_epoch(group, &gone, None, reason);
        }
    }

    /// Ends a group's current epoch; its sequences wait for the next, or go to another group. `reporter` is a rank that
    /// gave it up and stays.
    pub(crate) fn end_epoch(&mut self, id: GroupId, gone: &[SessionId], reporter: Option<WorkerId>, reason: String) {
        let group = &mut self.groups[id.0 as usize];
        let Some(active) = &group.active else { return };
        let was_working = group.serves() && !group.scheduler.has_steps_out();
        if !active.proven && !was_working {
            group.failures += 1;
            let wait = RETRY_MIN * 2u32.pow((group.failures - 1).min(10));
            group.retry_at = Steady(self.clock.read().0 + wait.min(RETRY_MAX));
        }
        self.effects.push(Effect::EpochEnded {
            group: id,
            epoch: group.epoch,
            reporter,
            reason,
        });
        self.effects.extend(group.abort(gone));
        if let Some(interrupted) = group.scheduler.end_epoch() {
            let recovery = group.recovery.get_or_insert_with(|| Recovery::begin(self.now));
            recovery.interrupt(interrupted);
        }
        group.outage_since.get_or_insert(self.now);
        // Its ranks are free.
        self.forget_causes();
    }

    fn outage(&self, group: &Group) -> Option<Outage> {
        let cause = group.cause.clone().or_else(|| {
            let active = group.active.as_ref()?;
            Some(format!(
                "the group of {} is {}",
                active.world_size(),
                group.phase().name()
            ))
        });
        Some(Outage {
            since: group.outage_since?,
            wait_max: self.config.unavailable_wait_max,
            workers_live: self.workers.len() as u32,
            workers_wanted: self.config.workers_wanted(),
            cause,
        })
    }
}
