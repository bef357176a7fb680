//! Connections between workers and the coordinator: in order as TCP is, but they delay, stall, and break with their
//! tail lost; each side learns of the break in its own time.

use std::collections::BTreeMap;

use kvasir_coordinator::{Event, SessionId};
use kvasir_kv::{FromWorker, ToWorker};

use super::{
    scenario::{MS, SECOND},
    world::{Happening, World},
};

#[derive(Debug, Default)]
pub(super) struct Network {
    links: BTreeMap<SessionId, Link>,
    sessions: u64,
}

#[derive(Debug)]
struct Link {
    worker: usize,
    life: u32,
    coordinator_life: u32,
    /// What would arrive later than this is lost.
    cut_at: u64,
    stalled_until: u64,
    last_up: u64,
    last_down: u64,
}

impl World {
    /// A new connection of a worker to the living coordinator.
    pub(super) fn open_link(&mut self, worker: usize) -> SessionId {
        self.network.sessions += 1;
        let session = SessionId(self.network.sessions);
        let link = Link {
            worker,
            life: self.workers[worker].life,
            coordinator_life: self.coordinator_life,
            cut_at: u64::MAX,
            stalled_until: 0,
            last_up: 0,
            last_down: 0,
        };
        self.network.links.insert(session, link);
        session
    }

    pub(super) fn send_up(&mut self, session: SessionId, event: Event) {
        let delay = self.dice.between(50, self.scenario.delay_max);
        let now = self.now;
        let Some(link) = self.network.links.get_mut(&session) else {
            return;
        };
        link.last_up = (now + delay).max(link.stalled_until).max(link.last_up + 1);
        let at = link.last_up;
        self.schedule(at, Happening::Arrive { session, event });
    }

    pub(super) fn report(&mut self, session: Option<SessionId>, message: FromWorker) {
        if let Some(session) = session {
            self.send_up(session, Event::FromWorker { session, message });
        }
    }

    /// `None` tells the worker that the connection ended.
    pub(super) fn send_down(&mut self, session: SessionId, message: Option<ToWorker>) {
        let delay = self.dice.between(50, self.scenario.delay_max);
        let now = self.now;
        let Some(link) = self.network.links.get_mut(&session) else {
            return;
        };
        link.last_down = (now + delay).max(link.stalled_until).max(link.last_down + 1);
        let (at, worker, life) = (link.last_down, link.worker, link.life);
        self.schedule(
            at,
            Happening::Reach {
                worker,
                life,
                session,
                message,
            },
        );
    }

    pub(super) fn worker_of(&self, session: SessionId) -> Option<usize> {
        self.network.links.get(&session).map(|link| link.worker)
    }

    /// Whether what arrives now on this connection still gets through.
    pub(super) fn link_carries(&self, session: SessionId) -> bool {
        let link = self.network.links.get(&session);
        link.is_some_and(|link| self.now <= link.cut_at && link.coordinator_life == self.coordinator_life)
    }

    /// The process behind a connection is gone. With `silent` nobody tells the coordinator.
    pub(super) fn worker_vanishes(&mut self, session: SessionId, silent: bool) {
        if silent {
            self.cut(session);
        } else {
            self.send_up(session, Event::WorkerGone { session });
        }
    }

    /// The connection breaks: what is under way is lost. Both sides notice, each in its own time.
    pub(super) fn break_link(&mut self, session: SessionId) {
        self.cut(session);
        let (up, down) = (self.dice.between(0, 4 * SECOND), self.dice.between(0, 2 * SECOND));
        let Some(link) = self.network.links.get(&session) else {
            return;
        };
        let (worker, life, coordinator_life) = (link.worker, link.life, link.coordinator_life);
        self.schedule(
            self.now + up,
            Happening::NoticeGone {
                session,
                coordinator_life,
            },
        );
        let noticed = Happening::Reach {
            worker,
            life,
            session,
            message: None,
        };
        self.schedule(self.now + down, noticed);
    }

    pub(super) fn cut(&mut self, session: SessionId) {
        let now = self.now;
        if let Some(link) = self.network.links.get_mut(&session) {
            link.cut_at = link.cut_at.min(now);
        }
    }

    /// True if the network itself keeps a worker from being heard or told.
    pub(super) fn link_is_quiet(&self, worker: usize) -> bool {
        let link = self.workers[worker]
            .session
            .and_then(|session| self.network.links.get(&session));
        link.is_none_or(|link| link.cut_at != u64::MAX || self.now < link.stalled_until + 6 * SECOND)
    }

    /// Nothing arrives for a while; then everything does.
    pub(super) fn stall_link(&mut self, session: SessionId, duration: u64) {
        let now = self.now;
        if let Some(link) = self.network.links.get_mut(&session) {
            link.stalled_until = now + duration;
        }
    }

    /// Every worker finds the coordinator dead and looks for the next one.
    pub(super) fn coordinator_vanishes(&mut self) {
        for worker in 0..self.workers.len() {
            if let Some(session) = self.workers[worker].session {
                self.cut(session);
                let at = self.now + self.dice.between(1, 500) * MS;
                let life = self.workers[worker].life;
                let noticed = Happening::Reach {
                    worker,
                    life,
                    session,
                    message: None,
                };
                self.schedule(at, noticed);
            }
        }
    }
}
