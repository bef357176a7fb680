//! `kvasir.v1.Admin`: what operators see.

use std::{collections::HashMap, ops::Range, sync::Arc, time::Duration};

use kvasir_kv::{GroupId, NumericsId, RequestId, WorkerId};
use kvasir_proto::v1::{self, admin_server::Admin};
use kvasir_runtime::refusals::Refusals;
use tonic::{Request, Response, Status};

use super::status;
use crate::{
    ClusterStatus, MigrationOutcome, MigrationReport, ReshardOutcome, ReshardReport,
    driver::ClusterHandle,
    lead::Lead,
    status::{
        Counters, GroupPhase, GroupStatus, RankStatus, ReshardStatus, SequenceStatus, TransferStatus, WorkerStatus,
    },
};

#[derive(Clone, Debug)]
pub struct AdminService {
    cluster: ClusterHandle,
    model: ModelFacts,
    workers_wanted: u32,
    refusals: Arc<Refusals>,
    lead: Lead,
}

/// What operators see of the model.
#[derive(Clone, Debug)]
pub struct ModelFacts {
    pub name: String,
    /// What clients may call it, the usual name first.
    pub served_names: Vec<String>,
    pub numerics_id: NumericsId,
    /// Tokens that prompt and answer may have together.
    pub context_len: u32,
    /// Token ids are below this.
    pub vocab_size: u32,
}

impl AdminService {
    pub fn new(
        cluster: ClusterHandle,
        model: ModelFacts,
        workers_wanted: u32,
        refusals: Arc<Refusals>,
        lead: Lead,
    ) -> Self {
        Self {
            cluster,
            model,
            workers_wanted,
            refusals,
            lead,
        }
    }

    pub fn model(&self) -> &ModelFacts {
        &self.model
    }

    /// What `Status` answers. Errors if the coordinator goes away.
    pub async fn report(&self) -> Result<v1::StatusResponse, Status> {
        let ClusterStatus {
            groups,
            workers,
            sequences,
            transfers,
            reshards,
            counters,
        } = self.cluster.status().await.map_err(status::shutting_down)?;
        let mut response = v1::StatusResponse {
            model: self.model.name.clone(),
            numerics_id: self.model.numerics_id.to_string(),
            context_len: self.model.context_len,
            vocab_size: self.model.vocab_size,
            ready: groups.iter().any(|group| group.phase == GroupPhase::Running),
            workers_wanted: self.workers_wanted,
            groups: groups.into_iter().map(group).collect(),
            spares: workers
                .into_iter()
                .filter(|worker| worker.rank.is_none())
                .map(spare)
                .collect(),
            sequences: sequences.into_iter().map(sequence).collect(),
            transfers: transfers.into_iter().map(transfer).collect(),
            reshards: reshards.into_iter().map(reshard).collect(),
            prefix_hit_rate: hit_rate(&counters),
            counters: self.counters(&counters),
            uptime_ms: self.cluster.uptime().as_millis() as u64,
            ..Default::default()
        };
        self.lead.describe(&mut response);
        Ok(response)
    }

    /// The cluster's, and those of the door.
    fn counters(&self, cluster: &Counters) -> HashMap<String, u64> {
        let all = cluster.named().into_iter().chain(self.refusals.named());
        all.map(|(name, count)| (name.to_owned(), count)).collect()
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        self.report().await.map(Response::new)
    }

    async fn migrate(&self, request: Request<v1::MigrateRequest>) -> Result<Response<v1::MigrateResponse>, Status> {
        let v1::MigrateRequest {
            request_id,
            target_group,
        } = request.into_inner();
        let target = target_group.map(GroupId);
        let moved = self.cluster.migrate(RequestId(request_id), target).await;
        let reports = moved
            .map_err(status::shutting_down)?
            .map_err(|error| status::migration_error(&error))?;
        let migrations = reports.into_iter().map(migration).collect();
        Ok(Response::new(v1::MigrateResponse { migrations }))
    }

    async fn reshard(&self, request: Request<v1::ReshardRequest>) -> Result<Response<v1::ReshardResponse>, Status> {
        let v1::ReshardRequest { group, ranks } = request.into_inner();
        let resharded = self.cluster.reshard(GroupId(group), ranks).await;
        let report = resharded
            .map_err(status::shutting_down)?
            .map_err(|error| status::reshard_error(&error))?;
        Ok(Response::new(reshard_response(report)))
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<v1::DrainResponse>, Status> {
        let worker = WorkerId(request.into_inner().worker_id);
        let known = self
            .cluster
            .let_go(worker.clone())
            .await
            .map_err(status::shutting_down)?;
        match known {
            true => Ok(Response::new(v1::DrainResponse {})),
            false => Err(status::unknown_worker(&worker)),
        }
    }
}

fn group(group: GroupStatus) -> v1::Group {
    v1::Group {
        id: group.id.0,
        term: group.epoch.term,
        epoch: group.epoch.number,
        role: group.role.name().to_owned(),
        state: match group.phase {
            GroupPhase::Running => "serving",
            phase => phase.name(),
        }
        .to_owned(),
        transport: group.transport.name().to_owned(),
        ranks: group.ranks.into_iter().map(rank).collect(),
        blocks: Some(v1::Blocks {
            free: group.blocks.free,
            cached: group.blocks.cached,
            held: group.blocks.held,
            in_flight: group.blocks.in_flight,
            total: group.blocks.total,
            unaccounted: group.blocks.unaccounted(),
        }),
        cause: group.cause.unwrap_or_default(),
        block_size: group.block_size,
        workers_wanted: group.workers_wanted,
        running: group.running,
        waiting: group.waiting,
    }
}

fn rank(rank: RankStatus) -> v1::RankStatus {
    let range = |units: Range<u32>| {
        Some(v1::UnitRange {
            begin: units.start,
            end: units.end,
        })
    };
    v1::RankStatus {
        rank: rank.rank.0,
        worker: Some(v1::Worker {
            id: rank.worker.0,
            pid: rank.pid,
            address: rank.address,
        }),
        kv_heads: range(rank.share.attention),
        ffn_units: range(rank.share.ffn),
        vocab_units: range(rank.share.vocab),
        bytes: rank.weight_bytes,
    }
}

fn spare(worker: WorkerStatus) -> v1::Worker {
    v1::Worker {
        id: worker.worker.0,
        pid: worker.pid,
        address: worker.address,
    }
}

fn sequence(sequence: SequenceStatus) -> v1::SequenceStatus {
    v1::SequenceStatus {
        request_id: sequence.request.0,
        state: if sequence.running { "running" } else { "waiting" }.to_owned(),
        group: sequence.group.0,
        tokens: sequence.tokens,
        computed: sequence.computed,
        tenant: sequence.tenant.0,
        priority: sequence.priority,
        cached_tokens: sequence.cached,
        preemptions: sequence.preemptions,
    }
}

fn transfer(transfer: TransferStatus) -> v1::Transfer {
    v1::Transfer {
        id: transfer.transfer.0,
        request_id: transfer.request.0,
        source_group: transfer.source.0,
        target_group: transfer.target.0,
        stage: transfer.stage.to_owned(),
        reason: transfer.reason.to_owned(),
        cells_planned: transfer.cells_planned,
        cells_arrived: transfer.cells_arrived,
        bytes: transfer.bytes,
        age_ms: transfer.age.as_millis() as u64,
    }
}

fn reshard(reshard: ReshardStatus) -> v1::Reshard {
    v1::Reshard {
        group: reshard.group.0,
        epoch: reshard.epoch.number,
        stage: reshard.stage.to_owned(),
        from_ranks: reshard.from_ranks,
        workers: reshard.workers.into_iter().map(|worker| worker.0).collect(),
        cells_planned: reshard.cells_planned,
        cells_arrived: reshard.cells_arrived,
        bytes: reshard.bytes,
        age_ms: reshard.age.as_millis() as u64,
    }
}

fn reshard_response(report: ReshardReport) -> v1::ReshardResponse {
    let pause = match report.outcome {
        ReshardOutcome::Switched { pause } => pause,
        _ => Duration::ZERO,
    };
    v1::ReshardResponse {
        group: report.group.0,
        from_ranks: report.from_ranks,
        ranks: report.ranks,
        epoch: report.epoch.number,
        outcome: report.outcome.name().to_owned(),
        detail: report.outcome.to_string(),
        cells: report.cells,
        bytes: report.bytes,
        rounds: report.rounds,
        took_us: report.took.as_micros() as u64,
        pause_us: pause.as_micros() as u64,
    }
}

fn migration(report: MigrationReport) -> v1::Migration {
    let pause = match report.outcome {
        MigrationOutcome::Moved { pause } => pause,
        _ => Duration::ZERO,
    };
    v1::Migration {
        transfer: report.transfer.0,
        source_group: report.source.0,
        target_group: report.target.0,
        outcome: report.outcome.name().to_owned(),
        detail: report.outcome.to_string(),
        cells: report.cells,
        bytes: report.bytes,
        rounds: report.rounds,
        took_us: report.took.as_micros() as u64,
        pause_us: pause.as_micros() as u64,
    }
}

fn hit_rate(counters: &Counters) -> f64 {
    match counters.prefix_queries_tokens {
        0 => 0.0,
        queries => counters.prefix_hits_tokens as f64 / queries as f64,
    }
}
