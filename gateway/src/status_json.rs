//! What `Admin.Status` and `Admin.Watch` tell, as JSON: for the live page, and for `kvasir status`.

use std::collections::BTreeMap;

use kvasir_proto::v1;
use serde::Serialize;

#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct StatusJson {
    pub model: String,
    pub numerics_id: String,
    /// Tokens that prompt and answer may have together.
    pub context_len: u32,
    pub vocab_size: u32,
    pub ready: bool,
    pub workers_wanted: u32,
    pub uptime_ms: u64,
    /// The one that answered, by its name.
    pub coordinator: String,
    pub leader: bool,
    pub leader_term: u64,
    /// Who leads.
    pub leader_name: String,
    pub leader_url: String,
    pub registry: String,
    pub groups: Vec<GroupJson>,
    pub spares: Vec<WorkerJson>,
    pub sequences: Vec<SequenceJson>,
    /// On their way to other groups.
    pub transfers: Vec<TransferJson>,
    pub reshards: Vec<ReshardJson>,
    pub counters: BTreeMap<String, u64>,
    /// 0 to 1.
    pub prefix_hit_rate: f64,
    /// Of answers, over the last seconds.
    pub tokens_per_second: f64,
    /// Over the last minute.
    pub latency: LatencyJson,
}

#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct LatencyJson {
    pub time_to_first_token_ms: Option<PercentilesJson>,
    pub inter_token_ms: Option<PercentilesJson>,
}

#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct PercentilesJson {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
}

#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct GroupJson {
    pub id: u32,
    pub epoch: EpochJson,
    pub role: String,
    pub state: String,
    pub transport: String,
    pub workers_wanted: u32,
    pub running: u32,
    pub waiting: u32,
    pub ranks: Vec<RankJson>,
    pub blocks: BlocksJson,
    pub block_size: u32,
    pub usual_step_ms: f64,
    /// Why it does not form.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cause: String,
}

#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct EpochJson {
    pub term: u64,
    pub number: u64,
}

#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct RankJson {
    pub rank: u32,
    pub worker: String,
    pub pid: u32,
    pub address: String,
    /// The heads themselves.
    pub kv_heads: Vec<u32>,
    pub units: UnitsJson,
    /// Of weights.
    pub bytes: u64,
    /// Of KV cells.
    pub cell_bytes: u64,
    /// Of the group's last step, as its first rank had it.
    pub compute_us: u64,
    pub reduce_us: u64,
    pub silent_ms: u64,
}

/// Half-open ranges.
#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct UnitsJson {
    pub attention: [u32; 2],
    pub ffn: [u32; 2],
    pub vocab: [u32; 2],
}

#[derive(Serialize, Clone, PartialEq, Debug, Default)]
pub struct BlocksJson {
    pub free: u32,
    pub cached: u32,
    pub held: u32,
    pub in_flight: u32,
    pub total: u32,
    /// 0, or blocks have been lost.
    pub unaccounted: i64,
}

#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct WorkerJson {
    pub worker: String,
    pub pid: u32,
    pub address: String,
    pub silent_ms: u64,
}

#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct SequenceJson {
    pub request_id: String,
    pub tenant: String,
    pub priority: i32,
    /// Where it runs, or waits for room.
    pub group: u32,
    pub tokens: u32,
    pub computed: u32,
    pub cached_tokens: u32,
    pub preemptions: u32,
    pub blocks: u32,
    pub state: String,
}

impl From<v1::StatusResponse> for StatusJson {
    fn from(status: v1::StatusResponse) -> Self {
        Self {
            model: status.model,
            numerics_id: status.numerics_id,
            context_len: status.context_len,
            vocab_size: status.vocab_size,
            ready: status.ready,
            workers_wanted: status.workers_wanted,
            uptime_ms: status.uptime_ms,
            coordinator: status.coordinator,
            leader: status.leader,
            leader_term: status.leader_term,
            leader_name: status.leader_name,
            leader_url: status.leader_url,
            registry: status.registry,
            groups: status.groups.into_iter().map(GroupJson::from).collect(),
            spares: status.spares.into_iter().map(WorkerJson::from).collect(),
            transfers: status.transfers.into_iter().map(TransferJson::from).collect(),
            reshards: status.reshards.into_iter().map(ReshardJson::from).collect(),
            sequences: status.sequences.into_iter().map(SequenceJson::from).collect(),
            counters: status.counters.into_iter().collect(),
            prefix_hit_rate: status.prefix_hit_rate,
            tokens_per_second: status.tokens_per_second,
            latency: LatencyJson {
                time_to_first_token_ms: status.time_to_first_token.map(PercentilesJson::from),
                inter_token_ms: status.inter_token.map(PercentilesJson::from),
            },
        }
    }
}

impl From<v1::Percentiles> for PercentilesJson {
    fn from(percentiles: v1::Percentiles) -> Self {
        let ms = |us: u64| us as f64 / 1e3;
        Self {
            p50: ms(percentiles.p50_us),
            p90: ms(percentiles.p90_us),
            p99: ms(percentiles.p99_us),
        }
    }
}

impl From<v1::Group> for GroupJson {
    fn from(group: v1::Group) -> Self {
        let blocks = group.blocks.unwrap_or_default();
        Self {
            id: group.id,
            epoch: EpochJson {
                term: group.term,
                number: group.epoch,
            },
            role: group.role,
            state: group.state,
            transport: group.transport,
            workers_wanted: group.workers_wanted,
            running: group.running,
            waiting: group.waiting,
            ranks: group.ranks.into_iter().map(RankJson::from).collect(),
            blocks: BlocksJson {
                free: blocks.free,
                cached: blocks.cached,
                held: blocks.held,
                in_flight: blocks.in_flight,
                total: blocks.total,
                unaccounted: blocks.unaccounted,
            },
            block_size: group.block_size,
            usual_step_ms: group.usual_step_us as f64 / 1e3,
            cause: group.cause,
        }
    }
}

impl From<v1::RankStatus> for RankJson {
    fn from(rank: v1::RankStatus) -> Self {
        let range = |range: Option<v1::UnitRange>| range.map_or([0, 0], |range| [range.begin, range.end]);
        let worker = rank.worker.unwrap_or_default();
        let heads = range(rank.kv_heads);
        Self {
            rank: rank.rank,
            worker: worker.id,
            pid: worker.pid,
            address: worker.address,
            kv_heads: (heads[0]..heads[1]).collect(),
            units: UnitsJson {
                attention: heads,
                ffn: range(rank.ffn_units),
                vocab: range(rank.vocab_units),
            },
            bytes: rank.bytes,
            cell_bytes: rank.cell_bytes,
            compute_us: rank.compute_us,
            reduce_us: rank.reduce_us,
            silent_ms: worker.silent_ms,
        }
    }
}

impl From<v1::Worker> for WorkerJson {
    fn from(worker: v1::Worker) -> Self {
        Self {
            worker: worker.id,
            pid: worker.pid,
            address: worker.address,
            silent_ms: worker.silent_ms,
        }
    }
}

impl From<v1::SequenceStatus> for SequenceJson {
    fn from(sequence: v1::SequenceStatus) -> Self {
        Self {
            group: sequence.group,
            request_id: sequence.request_id,
            tenant: sequence.tenant,
            priority: sequence.priority,
            cached_tokens: sequence.cached_tokens,
            preemptions: sequence.preemptions,
            blocks: sequence.blocks,
            tokens: sequence.tokens,
            computed: sequence.computed,
            state: sequence.state,
        }
    }
}

#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct TransferJson {
    pub id: u64,
    pub request_id: String,
    pub source_group: u32,
    pub target_group: u32,
    pub stage: String,
    /// order, drain, handoff, room or load; prefix where cached blocks are copied.
    pub reason: String,
    #[serde(flatten)]
    pub progress: ProgressJson,
}

#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct ReshardJson {
    pub group: u32,
    /// The one to come.
    pub epoch: u64,
    pub stage: String,
    pub from_ranks: u32,
    pub workers: Vec<String>,
    #[serde(flatten)]
    pub progress: ProgressJson,
}

#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct ProgressJson {
    pub cells_planned: u64,
    pub cells_arrived: u64,
    pub bytes: u64,
    /// Since it began.
    pub bytes_per_second: f64,
    pub age_ms: u64,
}

impl ProgressJson {
    fn new(cells_planned: u64, cells_arrived: u64, bytes: u64, age_ms: u64) -> Self {
        Self {
            cells_planned,
            cells_arrived,
            bytes,
            bytes_per_second: bytes as f64 * 1e3 / age_ms.max(1) as f64,
            age_ms,
        }
    }
}

impl From<v1::Transfer> for TransferJson {
    fn from(transfer: v1::Transfer) -> Self {
        Self {
            id: transfer.id,
            progress: ProgressJson::new(
                transfer.cells_planned,
                transfer.cells_arrived,
                transfer.bytes,
                transfer.age_ms,
            ),
            request_id: transfer.request_id,
            source_group: transfer.source_group,
            target_group: transfer.target_group,
            stage: transfer.stage,
            reason: transfer.reason,
        }
    }
}

impl From<v1::Reshard> for ReshardJson {
    fn from(reshard: v1::Reshard) -> Self {
        Self {
            group: reshard.group,
            epoch: reshard.epoch,
            progress: ProgressJson::new(
                reshard.cells_planned,
                reshard.cells_arrived,
                reshard.bytes,
                reshard.age_ms,
            ),
            stage: reshard.stage,
            from_ranks: reshard.from_ranks,
            workers: reshard.workers,
        }
    }
}

/// What happened; what is not said is left out.
#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct NewsJson {
    pub id: u64,
    pub time_ms: u64,
    pub kind: String,
    pub severity: &'static str,
    pub text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<u32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub request_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub worker: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ranks: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transfer: Option<u64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub outcome: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cells: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

impl From<v1::News> for NewsJson {
    fn from(news: v1::News) -> Self {
        let ms = |us: Option<u64>| us.map(|us| us as f64 / 1e3);
        Self {
            id: news.id,
            time_ms: news.time_unix_ms,
            kind: news.kind,
            severity: if news.warning { "warning" } else { "info" },
            text: news.text,
            group: news.group,
            source: news.source_group,
            target: news.target_group,
            request_id: news.request_id,
            worker: news.worker_id,
            rank: news.rank,
            ranks: news.ranks,
            transfer: news.transfer,
            outcome: news.outcome,
            reason: news.reason,
            pause_ms: ms(news.pause_us),
            took_ms: ms(news.took_us),
            cells: news.cells,
            bytes: news.bytes,
        }
    }
}
