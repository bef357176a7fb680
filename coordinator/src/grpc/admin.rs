//! `kvasir.v1.Admin`: what operators see.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Instant,
};

use kvasir_kv::{GroupId, NumericsId, RequestId, WorkerId};
use kvasir_proto::v1::{self, admin_server::Admin};
use kvasir_runtime::{logging, refusals::Refusals};
use tonic::{Request, Response, Status};
use tracing::info;

use super::{
    report::{group, hit_rate, migration, reshard, reshard_response, sequence, spare, transfer},
    status,
    watch::{Watched, watch},
};
use crate::{
    ClusterStatus,
    driver::ClusterHandle,
    lead::Lead,
    status::{Counters, GroupPhase},
    telemetry::{self, Gauges, Telemetry},
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

impl ModelFacts {
    /// What clients call it.
    pub fn served_name(&self) -> &str {
        self.served_names.first().unwrap_or(&self.name)
    }
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

    pub(super) fn telemetry(&self) -> &Telemetry {
        self.cluster.telemetry()
    }

    pub fn model(&self) -> &ModelFacts {
        &self.model
    }

    /// What `Status` answers. Errors if the coordinator goes away.
    pub async fn report(&self) -> Result<v1::StatusResponse, Status> {
        let snapshot = self.cluster.status().await.map_err(status::shutting_down)?;
        let times = &snapshot.step_times;
        let ClusterStatus {
            groups,
            workers,
            sequences,
            transfers,
            reshards,
            counters,
        } = snapshot.cluster;
        let recent = self.cluster.telemetry().recent.figures(Instant::now());
        let silent: BTreeMap<WorkerId, u64> = workers
            .iter()
            .map(|worker| (worker.worker.clone(), worker.silent_ms))
            .collect();
        let mut response = v1::StatusResponse {
            model: self.model.name.clone(),
            numerics_id: self.model.numerics_id.to_string(),
            context_len: self.model.context_len,
            vocab_size: self.model.vocab_size,
            ready: groups.iter().any(|group| group.phase == GroupPhase::Running),
            workers_wanted: self.workers_wanted,
            groups: groups.into_iter().map(|of| group(of, times, &silent)).collect(),
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
            tokens_per_second: recent.tokens_per_second,
            time_to_first_token: recent.time_to_first_token,
            inter_token: recent.inter_token,
            ..Default::default()
        };
        self.lead.describe(&mut response);
        Ok(response)
    }

    /// Brings up to date what metrics are read from.
    pub async fn refresh(&self, gauges: &Gauges) {
        let Ok(snapshot) = self.cluster.status().await else {
            return;
        };
        gauges.set(telemetry::Snapshot {
            status: snapshot.cluster,
            refusals: self.refusals.named().collect(),
            uptime_s: self.cluster.uptime().as_secs_f64(),
            leads: self.lead.leads(),
            registry_connected: self.lead.is_connected(),
        });
    }

    /// The cluster's, and those of the door.
    fn counters(&self, cluster: &Counters) -> HashMap<String, u64> {
        let all = cluster.named().into_iter().chain(self.refusals.named());
        all.map(|(name, count)| (name.to_owned(), count)).collect()
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    type WatchStream = Watched;

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(Box::pin(watch(self.clone()))))
    }

    async fn set_log_filter(
        &self,
        request: Request<v1::SetLogFilterRequest>,
    ) -> Result<Response<v1::SetLogFilterResponse>, Status> {
        let filter = request.into_inner().filter;
        logging::set_filter(&filter).map_err(|error| status::bad_log_filter(&error))?;
        info!(filter, "log filter changed");
        let workers = self
            .cluster
            .set_log_filter(filter)
            .await
            .map_err(status::shutting_down)?;
        Ok(Response::new(v1::SetLogFilterResponse { workers }))
    }

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
