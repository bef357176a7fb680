//! The weather: when what breaks, and how everything heals in the end.

use kvasir_kv::FromWorker;

use super::{
    rank::Inside,
    scenario::{MS, SECOND},
    world::{Happening, World},
};

/// Within this the coordinator must have noticed a rank that died or hangs: a stall window, ticks, and the network.
const NOTICED: u64 = 3500 * MS;

/// How long after a fault a loss is still explained by it.
const TAINT: u64 = 20 * SECOND;

#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// The process ends; with `silent` its machine does, and no connection is closed.
    Kill {
        worker: usize,
        silent: bool,
    },
    Start {
        worker: usize,
    },
    /// SIGSTOP and SIGCONT.
    Pause {
        worker: usize,
    },
    Resume {
        worker: usize,
    },
    /// The rank thread hangs; heartbeats go on.
    Hang {
        worker: usize,
    },
    BreakLink {
        worker: usize,
    },
    StallLink {
        worker: usize,
    },
    RankFails {
        worker: usize,
    },
    /// SIGTERM: it leaves when it is released, and another process takes its place later.
    Leave {
        worker: usize,
    },
    KillAll,
    PauseCoordinator,
    CoordinatorDies,
}

impl World {
    pub(super) fn plan_faults(&mut self) {
        for _ in 0..self.scenario.num_faults {
            let at = self.dice.between(0, self.scenario.calm_after);
            let worker = self.dice.between(0, u64::from(self.scenario.num_workers) - 1) as usize;
            let fault = match self.dice.between(0, 99) {
                0..30 => Fault::Kill {
                    worker,
                    silent: self.dice.chance(30),
                },
                30..50 => Fault::Pause { worker },
                50..58 => Fault::Hang { worker },
                58..70 => Fault::BreakLink { worker },
                70..80 => Fault::StallLink { worker },
                80..86 => Fault::RankFails { worker },
                86..89 => Fault::KillAll,
                _ => Fault::PauseCoordinator,
            };
            self.schedule(at, Happening::Fault(fault));
        }
        for _ in 0..self.scenario.num_leaves {
            let at = self.dice.between(0, self.scenario.calm_after);
            let worker = self.dice.between(0, u64::from(self.scenario.num_workers) - 1) as usize;
            self.schedule(at, Happening::Fault(Fault::Leave { worker }));
        }
        if self.scenario.coordinator_dies {
            let at = self.dice.between(0, self.scenario.calm_after);
            self.schedule(at, Happening::Fault(Fault::CoordinatorDies));
        }
    }

    pub(super) fn strike(&mut self, fault: Fault) {
        self.trace(|| format!("fault {fault:?}"));
        match fault {
            Fault::Kill { worker, silent } => self.kill(worker, silent),
            Fault::Start { worker } => self.start(worker),
            Fault::Pause { worker } => self.pause(worker),
            Fault::Resume { worker } => self.resume(worker),
            Fault::Hang { worker } => self.hang(worker),
            Fault::BreakLink { worker } => {
                self.taint(worker, 0);
                if let Some(session) = self.workers[worker].session {
                    self.break_link(session);
                }
            }
            Fault::StallLink { worker } => {
                let duration = self.dice.between(100 * MS, 5 * SECOND);
                self.taint(worker, duration);
                if let Some(session) = self.workers[worker].session {
                    self.stall_link(session, duration);
                }
            }
            Fault::RankFails { worker } => {
                self.taint(worker, 0);
                self.fail_by_itself(worker);
            }
            Fault::Leave { worker } => {
                self.taint(worker, 0);
                let session = self.workers[worker].session;
                self.report(session, FromWorker::Leaving);
            }
            Fault::KillAll => (0..self.workers.len()).for_each(|worker| self.kill(worker, false)),
            Fault::PauseCoordinator => {
                let duration = self.dice.between(10 * MS, 8 * SECOND);
                self.pause_coordinator(duration);
            }
            Fault::CoordinatorDies => self.coordinator_dies(),
        }
    }

    pub(super) fn taint(&mut self, worker: usize, duration: u64) {
        let until = self.now + duration + TAINT;
        let tainted = &mut self.workers[worker].tainted_until;
        *tainted = until.max(*tainted);
    }

    /// Let go by the coordinator, its process ends.
    pub(super) fn leave(&mut self, worker: usize) {
        self.report.leaves += 1;
        self.workers[worker].died_at = self.now;
        if let Some(session) = self.workers[worker].session {
            self.worker_vanishes(session, false);
        }
        self.workers[worker].die();
        let at = self.now + self.dice.between(100 * MS, 3 * SECOND);
        self.schedule(at, Happening::Fault(Fault::Start { worker }));
    }

    fn kill(&mut self, worker: usize, silent: bool) {
        if !self.workers[worker].alive {
            return;
        }
        self.report.kills += 1;
        if self.workers[worker].hung {
            self.check_hang_noticed(worker);
        }
        self.workers[worker].died_at = self.now;
        self.taint(worker, 0);
        if let Some(session) = self.workers[worker].session {
            self.worker_vanishes(session, silent);
        }
        self.workers[worker].die();
        let at = self.now + self.dice.between(100 * MS, 6 * SECOND);
        self.schedule(at, Happening::Fault(Fault::Start { worker }));
    }

    /// A hung rank that has work must have been given up; its connection would be a new one.
    fn check_hang_noticed(&mut self, worker: usize) {
        let Some(waiting_since) = self.workers[worker].waits_since() else {
            return;
        };
        // Whoever is heard to come late to where the others wait is given a window too; until then nobody is to blame.
        let epoch = self.workers[worker].epoch();
        let (mut due, mut quiet) = (waiting_since, self.link_is_quiet(worker));
        for (index, other) in self.workers.iter().enumerate() {
            if let Some(moved) = other.moved_in(epoch) {
                due = due.max(moved);
                quiet |= self.link_is_quiet(index);
            }
        }
        let hangs_for = (self.now - due).min(self.awake_for());
        if !quiet && hangs_for > NOTICED {
            self.violation(format!(
                "worker-{worker} hangs for {} ms and is still a rank; usual steps take {:.0?} ms",
                hangs_for / MS,
                self.usual_steps_ms()
            ));
        }
    }

    fn start(&mut self, worker: usize) {
        if self.workers[worker].alive {
            return;
        }
        let down_for = (self.now - self.workers[worker].died_at).min(self.awake_for());
        if down_for > NOTICED && self.counts_on(&self.workers[worker].id) {
            self.violation(format!(
                "worker-{worker} is dead for {} ms and still counted on",
                down_for / MS
            ));
        }
        self.taint(worker, 0);
        self.workers[worker].alive = true;
        self.boot(worker);
    }

    pub(super) fn boot(&mut self, worker: usize) {
        let wait = self.dice.between(0, 300 * MS);
        self.inside(worker, wait, Inside::Join);
        self.inside(worker, wait, Inside::Heartbeat);
    }

    fn pause(&mut self, worker: usize) {
        if self.workers[worker].alive && !self.workers[worker].paused {
            let duration = self.dice.between(50 * MS, 8 * SECOND);
            self.report.pauses += 1;
            self.taint(worker, duration);
            self.workers[worker].paused = true;
            self.schedule(self.now + duration, Happening::Fault(Fault::Resume { worker }));
        }
    }

    fn resume(&mut self, worker: usize) {
        self.workers[worker].paused = false;
        self.workers[worker].resumed_at = self.now;
        for happening in std::mem::take(&mut self.workers[worker].deferred) {
            self.schedule(self.now, happening);
        }
    }

    fn hang(&mut self, worker: usize) {
        if self.workers[worker].alive {
            let duration = self.dice.between(SECOND, 10 * SECOND);
            self.taint(worker, duration);
            self.workers[worker].hung = true;
            self.workers[worker].hung_at = self.now;
            // Only a restart helps.
            let silent = false;
            self.schedule(self.now + duration, Happening::Fault(Fault::Kill { worker, silent }));
        }
    }
}
