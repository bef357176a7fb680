//! Losses: who is suspected, who is given up, and how an epoch ends.
//!
//! A worker that is given up is not killed: its connection is closed, and it may join again.

use std::time::Duration;

use kvasir_kv::WorkerId;

use crate::{
    Cluster, Effect, LossCause, SessionId,
    detector::{Steady, Verdict, judge},
    group::{Active, Stage},
    recovery::Outage,
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
        losses.extend(self.overdue_ranks());
        match self.standing_ranks() {
            Verdict::Suspects(ranks) => losses.extend(self.standing_losses(&ranks)),
            Verdict::AllAtOnce if losses.is_empty() => {
                self.end_epoch(&[], None, "all ranks stand still at the same place".to_owned());
            }
            Verdict::AllAtOnce | Verdict::Fine => {}
        }
        self.give_up(losses);
        let outage = self.outage();
        self.scheduler
            .check_deadlines(self.now, outage.as_ref(), &mut self.effects);
    }

    fn stall_window(&self) -> Duration {
        self.group.usual_step.stall_window()
    }

    /// Spares too: one that does not live must not be counted on.
    fn silent_workers(&self) -> Vec<Loss> {
        let (steady, window) = (self.clock.read(), self.stall_window());
        let workers = self.workers.in_join_order().into_iter();
        workers
            .filter(|(_, worker)| steady.since(worker.heard) > window)
            .map(|(session, _)| self.loss(session, LossCause::Stalled, "no sign of life".to_owned()))
            .collect()
    }

    fn overdue_ranks(&self) -> Vec<Loss> {
        let Some(active) = &self.group.active else {
            return Vec::new();
        };
        let steady = self.clock.read();
        let since = match active.stage {
            Stage::Forming { since } | Stage::Connecting { since } => since,
            Stage::Running => return Vec::new(),
        };
        let reason = format!("no answer while the group was {}", self.group.phase().name());
        self.losses_of(active, &active.overdue(&self.config, steady), reason, |_| since)
    }

    fn standing_ranks(&self) -> Verdict {
        let Some(active) = self
            .group
            .active
            .as_ref()
            .filter(|active| active.stage == Stage::Running)
        else {
            return Verdict::Fine;
        };
        let ranks: Vec<_> = active
            .members
            .iter()
            .zip(0..)
            .map(|(member, rank)| (member.watch, self.scheduler.is_busy(kvasir_kv::Rank(rank))))
            .collect();
        judge(&ranks, self.clock.read(), self.stall_window())
    }

    fn standing_losses(&self, ranks: &[usize]) -> Vec<Loss> {
        let Some(active) = &self.group.active else {
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

    /// Gives workers up, all at once. If one was a rank, the epoch ends.
    pub(crate) fn give_up(&mut self, losses: Vec<Loss>) {
        let gone: Vec<SessionId> = losses.iter().map(|loss| loss.session).collect();
        let any_rank = gone.iter().any(|session| self.group.rank_of(*session).is_some());
        let reason = losses.first().map(|loss| loss.reason.clone()).unwrap_or_default();
        for loss in losses {
            // A worker may be suspected for two reasons at once.
            let Some(worker) = self.workers.leave(loss.session) else {
                continue;
            };
            self.cause = None;
            self.scheduler.counters.ranks_lost += 1;
            self.effects.push(Effect::RankLost {
                worker: worker.info.id,
                rank: self.group.rank_of(loss.session),
                epoch: self.group.epoch,
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
        if any_rank {
            self.end_epoch(&gone, None, reason);
        }
    }

    /// Ends the current epoch; sequences wait for the next. `reporter` is a rank that gave it up and stays.
    pub(crate) fn end_epoch(&mut self, gone: &[SessionId], reporter: Option<WorkerId>, reason: String) {
        let Some(active) = &self.group.active else { return };
        let was_working = active.stage == Stage::Running && !self.scheduler.has_steps_out();
        if !active.proven && !was_working {
            self.failures += 1;
            let wait = RETRY_MIN * 2u32.pow((self.failures - 1).min(10));
            self.retry_at = Steady(self.clock.read().0 + wait.min(RETRY_MAX));
        }
        self.effects.push(Effect::EpochEnded {
            group: self.group.id,
            epoch: self.group.epoch,
            reporter,
            reason,
        });
        let aborts = self.group.abort(gone);
        self.effects.extend(aborts);
        self.scheduler.end_epoch(self.now);
        self.outage_since.get_or_insert(self.now);
    }

    fn outage(&self) -> Option<Outage> {
        let cause = self.cause.clone().or_else(|| {
            let active = self.group.active.as_ref()?;
            Some(format!(
                "the group of {} is {}",
                active.world_size(),
                self.group.phase().name()
            ))
        });
        Some(Outage {
            since: self.outage_since?,
            wait_max: self.config.unavailable_wait_max,
            workers_live: self.workers.len() as u32,
            workers_wanted: self.config.workers_wanted(),
            cause,
        })
    }
}
