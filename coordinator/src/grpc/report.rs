//! What operators see, as messages.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use kvasir_kv::{GroupId, StepTimes, WorkerId};
use kvasir_proto::v1;

use crate::{
    MigrationOutcome, MigrationReport, ReshardOutcome, ReshardReport,
    status::{
        Counters, GroupPhase, GroupStatus, RankStatus, ReshardStatus, SequenceStatus, TransferStatus, WorkerStatus,
    },
};

pub fn group(group: GroupStatus, times: &BTreeMap<GroupId, StepTimes>, silent: &BTreeMap<WorkerId, u64>) -> v1::Group {
    let times = times.get(&group.id).copied().unwrap_or_default();
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
        ranks: group.ranks.into_iter().map(|of| rank(of, times, silent)).collect(),
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
        usual_step_us: (group.usual_step_ms * 1e3) as u64,
    }
}

fn rank(rank: RankStatus, times: StepTimes, silent: &BTreeMap<WorkerId, u64>) -> v1::RankStatus {
    let range = |units: Range<u32>| {
        Some(v1::UnitRange {
            begin: units.start,
            end: units.end,
        })
    };
    v1::RankStatus {
        rank: rank.rank.0,
        worker: Some(v1::Worker {
            silent_ms: silent.get(&rank.worker).copied().unwrap_or_default(),
            id: rank.worker.0,
            pid: rank.pid,
            address: rank.address,
        }),
        kv_heads: range(rank.share.attention),
        ffn_units: range(rank.share.ffn),
        vocab_units: range(rank.share.vocab),
        bytes: rank.weight_bytes,
        cell_bytes: rank.cell_bytes,
        compute_us: u64::from(times.compute_us),
        reduce_us: u64::from(times.reduce_us),
    }
}

pub fn spare(worker: WorkerStatus) -> v1::Worker {
    v1::Worker {
        id: worker.worker.0,
        pid: worker.pid,
        address: worker.address,
        silent_ms: worker.silent_ms,
    }
}

pub fn sequence(sequence: SequenceStatus) -> v1::SequenceStatus {
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
        blocks: sequence.blocks,
    }
}

pub fn transfer(transfer: TransferStatus) -> v1::Transfer {
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

pub fn reshard(reshard: ReshardStatus) -> v1::Reshard {
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

pub fn reshard_response(report: ReshardReport) -> v1::ReshardResponse {
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

pub fn migration(report: MigrationReport) -> v1::Migration {
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

pub fn hit_rate(counters: &Counters) -> f64 {
    match counters.prefix_queries_tokens {
        0 => 0.0,
        queries => counters.prefix_hits_tokens as f64 / queries as f64,
    }
}
