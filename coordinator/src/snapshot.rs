//! The snapshot that `Admin.Status` shows, taken from the machines.

use kvasir_kv::Rank;

use crate::{
    Cluster, ClusterStatus,
    group::{Active, Group, Member},
    sequence::{Running, Sequence, State},
    status::{Counters, GroupPhase, GroupStatus, RankStatus, SequenceStatus, WorkerStatus},
};

impl Cluster {
    /// True if a group serves: what [`ClusterStatus::is_ready`] says, without a snapshot of all that goes on.
    pub fn is_ready(&self) -> bool {
        self.groups.iter().any(|group| group.phase() == GroupPhase::Running)
    }

    pub fn status(&self) -> ClusterStatus {
        let sequences = self.groups.iter().flat_map(|group| {
            let sequences = group.scheduler.sequences();
            sequences.map(|sequence| self.sequence_status(group, sequence))
        });
        ClusterStatus {
            groups: self.groups.iter().map(|group| self.group_status(group)).collect(),
            workers: self.worker_statuses(),
            sequences: sequences.collect(),
            transfers: self.transfer_statuses().chain(self.prefix_copy_statuses()).collect(),
            reshards: self.reshard_statuses(),
            counters: self.counters_of_all(),
        }
    }

    fn counters_of_all(&self) -> Counters {
        let mut counters = self.counters;
        self.groups
            .iter()
            .for_each(|group| counters.add(&group.scheduler.counters));
        counters
    }

    fn group_status(&self, group: &Group) -> GroupStatus {
        let active = group.active.as_ref();
        let ranks = active.into_iter().flat_map(|active| {
            let members = active.members.iter().enumerate();
            members.filter_map(|(rank, member)| self.rank_status(active, rank, member))
        });
        GroupStatus {
            id: group.id,
            epoch: group.epoch,
            role: group.role,
            phase: group.phase(),
            transport: active.map(|active| active.formation.transport).unwrap_or_default(),
            ranks: ranks.collect(),
            blocks: group.scheduler.block_counts(),
            block_size: self.config.cell.block_size(),
            steps_outstanding: group.scheduler.steps_outstanding(),
            usual_step_ms: group.usual_step.get().as_secs_f64() * 1e3,
            workers_wanted: group.size,
            running: group.scheduler.num_running(),
            waiting: group.scheduler.waiting().count() as u32,
            cause: group.cause.clone(),
        }
    }

    fn rank_status(&self, active: &Active, rank: usize, member: &Member) -> Option<RankStatus> {
        let info = &self.workers.get(member.session)?.info;
        let share = active.formation.plan.shares()[rank].clone();
        Some(RankStatus {
            rank: Rank(rank as u32),
            worker: info.id.clone(),
            pid: info.pid,
            address: info.address.clone(),
            weight_bytes: share.weight_bytes(&self.layout),
            cell_bytes: active.cell_bytes(rank, &self.config.cell),
            load: member.load,
            progress: member.watch.progress(),
            share,
        })
    }

    fn worker_statuses(&self) -> Vec<WorkerStatus> {
        let workers = self.workers.in_join_order().into_iter();
        workers
            .map(|(session, worker)| WorkerStatus {
                session,
                worker: worker.info.id.clone(),
                pid: worker.info.pid,
                address: worker.info.address.clone(),
                host: worker.info.host.clone(),
                backend: worker.info.backend.clone(),
                threads: worker.info.threads,
                kv_memory_bytes: worker.info.kv_memory_bytes,
                rank: self.seat_of(session).map(|seat| seat.rank),
                strikes: self.workers.strikes_of(&worker.info.id),
                silent_ms: self.clock.read().since(worker.heard).as_millis() as u64,
            })
            .collect()
    }

    fn sequence_status(&self, group: &Group, sequence: &Sequence) -> SequenceStatus {
        let running = sequence.running();
        let awaits_copy = matches!(sequence.state, State::AwaitsCopy(_));
        SequenceStatus {
            sequence: sequence.id,
            request: sequence.request.id.clone(),
            tenant: sequence.request.tenant.clone(),
            priority: sequence.request.priority,
            group: group.id,
            running: running.is_some() || awaits_copy,
            arriving: awaits_copy || running.is_some_and(Running::is_arriving),
            cached: sequence.cached.unwrap_or(0),
            preemptions: sequence.preemptions,
            tokens: sequence.tokens.len() as u32,
            computed: running.map_or(0, |running| running.scheduled),
            blocks: running.map_or(0, |running| running.blocks.len() as u32),
        }
    }
}
