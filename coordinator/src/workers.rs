//! The workers that are connected: who they are, when they were last heard, how often they failed.
//!
//! A worker may come back on a new connection before the old one is known to be dead; then the old one is replaced.

use std::collections::BTreeMap;

use kvasir_kv::{GroupId, KvDtype, NumericsId, RefusalKind, WorkerId, WorkerInfo};

use crate::{SessionId, detector::Steady};

/// Failures in a row after which a worker is used only if there is no other.
const STRIKES_MAX: u32 = 3;

#[derive(Debug)]
pub(crate) struct Worker {
    pub info: WorkerInfo,
    pub heard: Steady,
    /// The group whose rank it was last.
    pub home: Option<GroupId>,
    /// It wants to leave, or is wanted to.
    pub leaves: bool,
    joined: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Workers {
    live: BTreeMap<SessionId, Worker>,
    /// By worker, not by session: a worker that fails at each try does not become trusted by rejoining.
    strikes: BTreeMap<WorkerId, u32>,
    joins: u64,
    term_max: u64,
}

/// Why a worker cannot be part of this cluster.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum JoinRefused {
    #[error("this cluster computes with numerics {expected}, worker {worker} with {found}")]
    Numerics {
        worker: WorkerId,
        expected: NumericsId,
        found: NumericsId,
    },
    #[error("this cluster has blocks of {expected} tokens, worker {worker} was started with {found}")]
    BlockSize {
        worker: WorkerId,
        expected: u32,
        found: u32,
    },
    #[error("this cluster has KV cells of {expected}, worker {worker} was started with {found}")]
    KvDtype {
        worker: WorkerId,
        expected: KvDtype,
        found: KvDtype,
    },
}

impl JoinRefused {
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::Numerics { .. } => RefusalKind::Numerics,
            Self::BlockSize { .. } => RefusalKind::BlockSize,
            Self::KvDtype { .. } => RefusalKind::KvDtype,
        }
    }
}

impl Workers {
    pub fn join(&mut self, session: SessionId, info: WorkerInfo, now: Steady) {
        self.term_max = self.term_max.max(info.term_max);
        self.joins += 1;
        let worker = Worker {
            info,
            heard: now,
            home: None,
            leaves: false,
            joined: self.joins,
        };
        self.live.insert(session, worker);
    }

    pub fn leave(&mut self, session: SessionId) -> Option<Worker> {
        self.live.remove(&session)
    }

    pub fn settle(&mut self, sessions: &[SessionId], home: GroupId) {
        for session in sessions {
            if let Some(worker) = self.live.get_mut(session) {
                worker.home = Some(home);
            }
        }
    }

    pub fn get(&self, session: SessionId) -> Option<&Worker> {
        self.live.get(&session)
    }

    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Notes a sign of life; false if the session is not live.
    pub fn heard(&mut self, session: SessionId, now: Steady) -> bool {
        match self.live.get_mut(&session) {
            Some(worker) => {
                worker.heard = now;
                true
            }
            None => false,
        }
    }

    /// A worker is to leave; false if the session is not live.
    pub fn let_go(&mut self, session: SessionId) -> bool {
        let worker = self.live.get_mut(&session);
        worker.map(|worker| worker.leaves = true).is_some()
    }

    /// Asked for after every event, when hardly ever anybody leaves.
    pub fn leaving(&self) -> Vec<SessionId> {
        let leaving = self.live.iter().filter(|(_, worker)| worker.leaves);
        leaving.map(|(session, _)| *session).collect()
    }

    pub fn session_of(&self, id: &WorkerId) -> Option<SessionId> {
        let mut live = self.live.iter();
        live.find(|(_, worker)| worker.info.id == *id)
            .map(|(session, _)| *session)
    }

    /// Highest term that any worker ever reported.
    pub fn term_max(&self) -> u64 {
        self.term_max
    }

    /// In join order.
    pub fn in_join_order(&self) -> Vec<(SessionId, &Worker)> {
        let mut live: Vec<_> = self.live.iter().map(|(session, worker)| (*session, worker)).collect();
        live.sort_by_key(|(_, worker)| worker.joined);
        live
    }

    /// Those to form `group` of: who was in it before, then others, each in join order. Workers that fail again and again
    /// only if there is nobody else.
    pub fn candidates(
        &self,
        group: GroupId,
        is_free: impl Fn(SessionId, &Worker) -> bool,
    ) -> Vec<(SessionId, &WorkerInfo)> {
        let mut all = self.in_join_order();
        all.retain(|(session, worker)| !worker.leaves && is_free(*session, worker));
        all.sort_by_key(|(_, worker)| worker.home != Some(group));
        let trusted = |worker: &Worker| self.strikes_of(&worker.info.id) < STRIKES_MAX;
        let any_trusted = all.iter().any(|(_, worker)| trusted(worker));
        all.into_iter()
            .filter(|(_, worker)| !any_trusted || trusted(worker))
            .map(|(session, worker)| (session, &worker.info))
            .collect()
    }

    pub fn strikes_of(&self, id: &WorkerId) -> u32 {
        self.strikes.get(id).copied().unwrap_or(0)
    }

    /// Counts a failure; true if it was one too many.
    pub fn strike(&mut self, id: &WorkerId) -> bool {
        let strikes = self.strikes.entry(id.clone()).or_default();
        *strikes += 1;
        *strikes >= STRIKES_MAX
    }

    pub fn forgive(&mut self, id: &WorkerId) {
        self.strikes.remove(id);
    }
}
