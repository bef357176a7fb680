//! `kvasir.v1.Admin`: what operators see.

use std::ops::Range;

use kvasir_kv::NumericsId;
use kvasir_proto::v1::{self, admin_server::Admin};
use tonic::{Request, Response, Status};

use super::status;
use crate::{
    ClusterStatus,
    driver::ClusterHandle,
    status::{Counters, GroupPhase, GroupStatus, RankStatus, SequenceStatus, WorkerStatus},
};

#[derive(Debug)]
pub struct AdminService {
    cluster: ClusterHandle,
    model: String,
    numerics_id: NumericsId,
    workers_wanted: u32,
}

impl AdminService {
    pub fn new(cluster: ClusterHandle, model: String, numerics_id: NumericsId, workers_wanted: u32) -> Self {
        Self {
            cluster,
            model,
            numerics_id,
            workers_wanted,
        }
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        let ClusterStatus {
            groups,
            workers,
            sequences,
            counters,
        } = self.cluster.status().await.map_err(status::shutting_down)?;
        Ok(Response::new(v1::StatusResponse {
            model: self.model.clone(),
            numerics_id: self.numerics_id.to_string(),
            ready: groups.iter().any(|group| group.phase == GroupPhase::Running),
            workers_wanted: self.workers_wanted,
            groups: groups.into_iter().map(group).collect(),
            spares: workers
                .into_iter()
                .filter(|worker| worker.rank.is_none())
                .map(spare)
                .collect(),
            sequences: sequences.into_iter().map(sequence).collect(),
            prefix_hit_rate: hit_rate(&counters),
            counters: counters
                .named()
                .into_iter()
                .map(|(name, count)| (name.to_owned(), count))
                .collect(),
            uptime_ms: self.cluster.uptime().as_millis() as u64,
        }))
    }
}

fn group(group: GroupStatus) -> v1::Group {
    v1::Group {
        id: group.id.0,
        term: group.epoch.term,
        epoch: group.epoch.number,
        role: "both".to_owned(),
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

fn hit_rate(counters: &Counters) -> f64 {
    match counters.prefix_queries_tokens {
        0 => 0.0,
        queries => counters.prefix_hits_tokens as f64 / queries as f64,
    }
}
