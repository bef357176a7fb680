//! A TP group: its life in epochs (form, connect, run, abort), and the scheduler of its sequences.
//!
//! `FormEpoch` to every rank, `EndpointReady` from every rank, `ConnectEpoch` to every rank, `EpochReady` from every
//! rank, then steps. Says what to send and what is wrong; who is lost is decided by the cluster.

use std::time::Duration;

use kvasir_kv::{CellLayout, Epoch, EpochSpec, GroupId, LoadReport, Rank, StepPlan, ToWorker};

use crate::{
    ClusterConfig, Effect, GroupRole, Now, SessionId,
    detector::{RankWatch, Steady, UsualStep},
    formation::Formation,
    recovery::Recovery,
    scheduler::Scheduler,
    status::GroupPhase,
};

/// After a sequence could not be moved, no other one of its group is tried for so long.
const MOVE_RETRY: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct Group {
    pub id: GroupId,
    /// Ranks that it is to have, at least 1.
    pub size: u32,
    /// However few workers there are.
    pub floor: u32,
    pub role: GroupRole,
    /// Of the current or the last life.
    pub epoch: Epoch,
    pub active: Option<Active>,
    pub usual_step: UsualStep,
    pub scheduler: Scheduler,
    pub formed_once: bool,
    /// Epochs in a row that ended before they completed a step.
    pub failures: u32,
    pub retry_at: Steady,
    /// No spare is taken in before.
    pub grow_at: Steady,
    /// Those who leave are not looked after before.
    pub drain_at: Steady,
    /// Nobody is handed off, or moved to make room, before.
    pub move_at: Steady,
    /// Nobody is moved for its load alone before.
    pub load_at: Steady,
    /// Since when it does not serve; `None` while it does.
    pub outage_since: Option<Now>,
    /// Why the workers that are free form no group.
    pub cause: Option<String>,
    pub recovery: Option<Recovery>,
}

/// A life of the group, from `FormEpoch` to its end.
#[derive(Debug)]
pub(crate) struct Active {
    pub stage: Stage,
    pub formation: Formation,
    /// In rank order.
    pub members: Vec<Member>,
    /// A step was completed: the ranks can work.
    pub proven: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    Forming { since: Steady },
    Connecting { since: Steady },
    Running,
}

#[derive(Debug)]
pub(crate) struct Member {
    pub session: SessionId,
    pub watch: RankWatch,
    pub endpoint: Option<String>,
    pub load: Option<LoadReport>,
}

/// A member's answer did not fit the stage.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message} while the group is {phase}")]
pub(crate) struct OutOfTurn {
    message: &'static str,
    phase: &'static str,
}

impl Group {
    pub fn new(id: GroupId, size: u32, config: &ClusterConfig) -> Self {
        let role = config.group_roles.get(id.0 as usize).copied();
        Self {
            id,
            size: size.max(1),
            floor: size.max(1),
            role: role.unwrap_or_default(),
            epoch: Epoch::default(),
            active: None,
            usual_step: UsualStep::new(config.stall_min),
            scheduler: Scheduler::new(config),
            formed_once: false,
            failures: 0,
            retry_at: Steady::default(),
            grow_at: Steady::default(),
            drain_at: Steady::default(),
            move_at: Steady::default(),
            load_at: Steady::default(),
            outage_since: Some(Now::default()),
            cause: None,
            recovery: None,
        }
    }

    /// Nobody is moved from here for a while.
    pub fn rest(&mut self, now: Steady) {
        self.move_at = Steady(now.0 + MOVE_RETRY);
    }

    /// Whether its ranks take steps.
    pub fn serves(&self) -> bool {
        self.active
            .as_ref()
            .is_some_and(|active| active.stage == Stage::Running)
    }

    /// How fast it is expected to be, relative to others: the sum of its ranks' weights.
    pub fn speed(&self) -> f64 {
        self.active.as_ref().map_or(0.0, |active| active.formation.speed)
    }

    pub fn phase(&self) -> GroupPhase {
        self.active
            .as_ref()
            .map_or(GroupPhase::Waiting, |active| active.stage.phase())
    }

    /// Begins the next epoch: in `term` if that is newer. `number` is above that of any epoch of this coordinator.
    pub fn form(
        &mut self,
        term: u64,
        number: u64,
        nonce: u64,
        formation: Formation,
        config: &ClusterConfig,
        now: Steady,
    ) -> Vec<Effect> {
        assert!(self.active.is_none(), "an epoch begins after the last one ended");
        self.epoch = Epoch {
            term: term.max(self.epoch.term),
            number,
        };
        let specs = specs(self.id, self.epoch, nonce, &formation, formation.num_blocks, config);
        let sessions = formation.sessions.iter().zip(specs);
        let effects = sessions
            .map(|(session, spec)| Effect::Send {
                session: *session,
                message: ToWorker::FormEpoch(spec),
            })
            .collect();
        self.active = Some(Active::forming(formation, self.epoch, now));
        effects
    }

    /// Ends the current epoch. The ranks but `gone` are told.
    pub fn abort(&mut self, gone: &[SessionId]) -> Vec<Effect> {
        let Some(active) = self.active.take() else {
            return Vec::new();
        };
        let epoch = self.epoch;
        let left = active.members.iter().map(|member| member.session);
        left.filter(|session| !gone.contains(session))
            .map(|session| Effect::Send {
                session,
                message: ToWorker::AbortEpoch { epoch },
            })
            .collect()
    }

    /// The rank that a session has in the current epoch.
    pub fn rank_of(&self, session: SessionId) -> Option<Rank> {
        let members = &self.active.as_ref()?.members;
        let rank = members.iter().position(|member| member.session == session)?;
        Some(Rank(rank as u32))
    }
}

/// What each rank of an epoch is told, in rank order. Blocks have ids up to `num_ids`.
pub(crate) fn specs(
    group: GroupId,
    epoch: Epoch,
    nonce: u64,
    formation: &Formation,
    num_ids: u32,
    config: &ClusterConfig,
) -> Vec<EpochSpec> {
    let spec = |rank| EpochSpec {
        group,
        epoch,
        rank: Rank(rank),
        transport: formation.transport,
        nonce,
        shares: formation.plan.shares().to_vec(),
        num_blocks: num_ids,
        block_size: config.cell.block_size(),
        step_tokens_max: config.step_tokens_max.max(1),
    };
    (0..formation.sessions.len() as u32).map(spec).collect()
}

impl Stage {
    fn phase(self) -> GroupPhase {
        match self {
            Self::Forming { .. } => GroupPhase::Forming,
            Self::Connecting { .. } => GroupPhase::Connecting,
            Self::Running => GroupPhase::Running,
        }
    }
}

impl Active {
    /// From the moment in which its ranks are told.
    pub fn forming(formation: Formation, epoch: Epoch, now: Steady) -> Self {
        let member = |session: &SessionId| Member {
            session: *session,
            watch: RankWatch::new(epoch, now),
            endpoint: None,
            load: None,
        };
        Self {
            stage: Stage::Forming { since: now },
            members: formation.sessions.iter().map(member).collect(),
            formation,
            proven: false,
        }
    }

    pub fn world_size(&self) -> usize {
        self.members.len()
    }

    fn out_of_turn(&self, message: &'static str) -> OutOfTurn {
        OutOfTurn {
            message,
            phase: self.stage.phase().name(),
        }
    }

    /// An endpoint; when it was the last one, what to send to connect.
    pub fn on_endpoint(
        &mut self,
        rank: Rank,
        endpoint: String,
        epoch: Epoch,
        now: Steady,
    ) -> Result<Vec<Effect>, OutOfTurn> {
        if !matches!(self.stage, Stage::Forming { .. }) {
            return Err(self.out_of_turn("endpoint ready"));
        }
        self.members[rank.0 as usize].endpoint = Some(endpoint);
        let endpoints: Option<Vec<String>> = self.members.iter().map(|member| member.endpoint.clone()).collect();
        let Some(endpoints) = endpoints else {
            return Ok(Vec::new());
        };
        self.stage = Stage::Connecting { since: now };
        Ok(self.send_all(&ToWorker::ConnectEpoch { epoch, endpoints }))
    }

    /// A rank is ready; true when it was the last one, and the group runs.
    pub fn on_ready(&mut self, rank: Rank, load: LoadReport, now: Steady) -> Result<bool, OutOfTurn> {
        if !matches!(self.stage, Stage::Connecting { .. }) {
            return Err(self.out_of_turn("epoch ready"));
        }
        self.members[rank.0 as usize].load = Some(load);
        if self.members.iter().any(|member| member.load.is_none()) {
            return Ok(false);
        }
        self.stage = Stage::Running;
        for member in &mut self.members {
            member.watch.touch(now);
        }
        Ok(true)
    }

    /// Ranks that have not answered in time while the epoch is being formed.
    pub fn overdue(&self, config: &ClusterConfig, now: Steady) -> Vec<usize> {
        let late = |since, deadline: Duration| now.since(since) > deadline;
        let missing = |is_missing: fn(&Member) -> bool| {
            let members = self.members.iter().enumerate();
            members
                .filter(|(_, member)| is_missing(member))
                .map(|(rank, _)| rank)
                .collect()
        };
        match self.stage {
            Stage::Forming { since } if late(since, config.endpoint_deadline) => {
                missing(|member| member.endpoint.is_none())
            }
            Stage::Connecting { since } if late(since, config.ready_deadline) => {
                missing(|member| member.load.is_none())
            }
            _ => Vec::new(),
        }
    }

    /// Ranks that had nothing to do begin to be measured now.
    pub fn touch(&mut self, idle: &[bool], now: Steady) {
        let members = self.members.iter_mut().zip(idle);
        for (member, _) in members.filter(|(_, idle)| **idle) {
            member.watch.touch(now);
        }
    }

    pub fn send_step(&self, plan: StepPlan) -> Vec<Effect> {
        self.send_all(&ToWorker::Step(plan))
    }

    pub fn send_all(&self, message: &ToWorker) -> Vec<Effect> {
        let sessions = self.members.iter().map(|member| member.session);
        sessions
            .map(|session| Effect::Send {
                session,
                message: message.clone(),
            })
            .collect()
    }

    /// Bytes of KV cells that a rank holds for the pool.
    pub fn cell_bytes(&self, rank: usize, cell: &CellLayout) -> u64 {
        let heads = u64::from(self.formation.plan.shares()[rank].num_kv_heads());
        heads * cell.slab_bytes(self.formation.num_blocks) as u64
    }
}
