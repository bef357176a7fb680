//! `kvasir.v1.Admin`: what operators see.

use std::{collections::HashMap, ops::Range};

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
            counters: counters_by_name(&counters),
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
        }),
        cause: group.cause.unwrap_or_default(),
        block_size: group.block_size,
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
        state: if sequence.group.is_some() { "running" } else { "waiting" }.to_owned(),
        group: sequence.group.unwrap_or_default().0,
        tokens: sequence.tokens,
        computed: sequence.computed,
    }
}

fn counters_by_name(counters: &Counters) -> HashMap<String, u64> {
    // Named one by one, so that a new counter is not forgotten here.
    let Counters {
        epochs,
        steps,
        submitted,
        finished,
        failed,
        prompt_tokens,
        generation_tokens,
        preemptions,
        prefix_queries_tokens,
        prefix_hits_tokens,
        evictions,
        cells_corrupt,
        ranks_lost,
        recoveries,
        tokens_recomputed,
        tokens_discarded,
        messages_stale,
        workers_refused,
    } = *counters;
    let named = [
        ("epochs", epochs),
        ("steps", steps),
        ("submitted", submitted),
        ("finished", finished),
        ("failed", failed),
        ("prompt_tokens", prompt_tokens),
        ("generation_tokens", generation_tokens),
        ("preemptions", preemptions),
        ("prefix_queries_tokens", prefix_queries_tokens),
        ("prefix_hits_tokens", prefix_hits_tokens),
        ("evictions", evictions),
        ("cells_corrupt", cells_corrupt),
        ("ranks_lost", ranks_lost),
        ("recoveries", recoveries),
        ("tokens_recomputed", tokens_recomputed),
        ("tokens_discarded", tokens_discarded),
        ("messages_stale", messages_stale),
        ("workers_refused", workers_refused),
    ];
    named.map(|(name, count)| (name.to_owned(), count)).into()
}
