//! What happened, in words: for the log, and for those who watch.

use std::time::Duration;

use kvasir_proto::v1;
use tracing::{debug, info, warn};

use crate::{Effect, MigrationOutcome, MigrationReport, PrefixCopyReport, ReshardOutcome, ReshardReport};

pub fn log(news: &Effect) {
    match news {
        Effect::EpochStarted {
            group,
            epoch,
            world_size,
            transport,
            num_blocks,
        } => info!(%group, %epoch, world_size, %transport, num_blocks, "group serves"),
        Effect::RankLost {
            worker,
            rank,
            epoch,
            how,
            detection_ms,
            reason,
        } => {
            let rank = rank.map(|rank| rank.0);
            warn!(%worker, rank, %epoch, how = how.name(), detection_ms, reason, "worker lost");
        }
        Effect::Recovered {
            group,
            epoch,
            stall_ms,
            tokens_recomputed,
            sequences,
        } => info!(%group, %epoch, stall_ms, tokens_recomputed, sequences, "recovered"),
        Effect::MigrationBegan {
            transfer,
            request,
            source,
            target,
            reason,
            ..
        } => debug!(%transfer, %request, %source, %target, reason = reason.name(), "sequence moves"),
        Effect::ReshardBegan {
            group,
            from_ranks,
            ranks,
        } => info!(%group, from_ranks, ranks, "group reshards"),
        Effect::MigrationEnded(report) => log_migration(report),
        Effect::PrefixCopyEnded(report) => log_prefix_copy(report),
        Effect::ReshardEnded(report) => log_reshard(report),
        Effect::EpochSwitched {
            group,
            epoch,
            world_size,
            transport,
            num_blocks,
            ..
        } => info!(%group, %epoch, world_size, %transport, num_blocks, "group goes on with other ranks"),
        Effect::TransferRefused {
            transfer,
            fault,
            reason,
        } => {
            warn!(%transfer, %fault, reason, "cells refused");
        }
        _ => {}
    }
}

fn log_migration(report: &MigrationReport) {
    let MigrationReport {
        transfer,
        request,
        source,
        target,
        reason,
        outcome,
        cells,
        bytes,
        prompt_bytes,
        rounds,
        took,
        ..
    } = report;
    let (took_ms, reason) = (took.as_millis() as u64, reason.name());
    match outcome {
        MigrationOutcome::Moved { pause } => {
            let pause_ms = pause.as_secs_f64() * 1e3;
            info!(%transfer, %request, %source, %target, reason, cells, bytes, prompt_bytes, rounds, took_ms, pause_ms, "sequence moved");
        }
        _ => {
            warn!(%transfer, %request, %source, %target, reason, cells, rounds, took_ms, %outcome, "sequence not moved")
        }
    }
}

fn log_prefix_copy(report: &PrefixCopyReport) {
    let PrefixCopyReport {
        transfer,
        request,
        source,
        target,
        tokens,
        bytes,
        outcome,
        forecast,
        took,
    } = report;
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    let (took_ms, forecast_ms) = (ms(*took), ms(forecast.copying));
    let computing_ms = forecast.computing.map(ms);
    match outcome {
        Ok(()) => {
            debug!(%transfer, %request, %source, %target, tokens, bytes, took_ms, forecast_ms, computing_ms, "cached prompt copied");
        }
        Err(reason) => {
            info!(%transfer, %request, %source, %target, tokens, took_ms, forecast_ms, computing_ms, reason, "cached prompt not copied");
        }
    }
}

fn log_reshard(report: &ReshardReport) {
    let ReshardReport {
        group,
        from_ranks,
        ranks,
        outcome,
        cells,
        bytes,
        rounds,
        took,
        ..
    } = report;
    let took_ms = took.as_millis() as u64;
    match outcome {
        ReshardOutcome::Switched { pause } => {
            let pause_ms = pause.as_secs_f64() * 1e3;
            info!(%group, from_ranks, ranks, cells, bytes, rounds, took_ms, pause_ms, "group resharded");
        }
        _ => warn!(%group, from_ranks, ranks, cells, rounds, took_ms, %outcome, "group not resharded"),
    }
}

/// For those who watch; `None` where there is nothing to be told.
pub fn news(of: &Effect) -> Option<v1::News> {
    let news = match of {
        Effect::EpochStarted {
            group,
            epoch,
            world_size,
            transport,
            num_blocks,
        } => v1::News {
            kind: "epoch_started".to_owned(),
            text: format!(
                "group {group} serves with {}, {num_blocks} blocks, epoch {epoch}, sums over {transport}",
                ranks(*world_size)
            ),
            group: Some(group.0),
            ranks: Some(*world_size),
            ..Default::default()
        },
        Effect::EpochSwitched {
            group,
            epoch,
            world_size,
            ..
        } => v1::News {
            kind: "epoch_switched".to_owned(),
            text: format!("group {group} goes on with {}, epoch {epoch}", ranks(*world_size)),
            group: Some(group.0),
            ranks: Some(*world_size),
            ..Default::default()
        },
        Effect::EpochEnded {
            group, epoch, reason, ..
        } => v1::News {
            kind: "epoch_ended".to_owned(),
            warning: true,
            text: format!("epoch {epoch} of group {group} is over: {reason}"),
            group: Some(group.0),
            reason: reason.clone(),
            ..Default::default()
        },
        Effect::RankLost {
            worker,
            rank,
            how,
            detection_ms,
            reason,
            ..
        } => v1::News {
            kind: "rank_lost".to_owned(),
            warning: true,
            text: format!("worker {worker} is lost ({}): {reason}", how.name()),
            worker_id: worker.0.clone(),
            rank: rank.map(|rank| rank.0),
            took_us: Some(detection_ms * 1000),
            reason: how.name().to_owned(),
            ..Default::default()
        },
        Effect::Recovered {
            group,
            stall_ms,
            tokens_recomputed,
            sequences,
            ..
        } => v1::News {
            kind: "recovered".to_owned(),
            text: format!(
                "group {group} has recovered: {sequences} sequences went on after {stall_ms} ms, {tokens_recomputed} tokens \
                 computed again"
            ),
            group: Some(group.0),
            took_us: Some(stall_ms * 1000),
            ..Default::default()
        },
        Effect::MigrationBegan {
            transfer,
            request,
            source,
            target,
            reason,
            ..
        } => v1::News {
            kind: "migration_began".to_owned(),
            text: format!(
                "{request} moves from group {source} to group {target} ({})",
                reason.name()
            ),
            source_group: Some(source.0),
            target_group: Some(target.0),
            request_id: request.0.clone(),
            transfer: Some(transfer.0),
            reason: reason.name().to_owned(),
            ..Default::default()
        },
        Effect::MigrationEnded(report) => of_migration(report),
        Effect::PrefixCopyEnded(report) => of_prefix_copy(report),
        Effect::ReshardBegan {
            group,
            from_ranks,
            ranks: wanted,
        } => v1::News {
            kind: "reshard_began".to_owned(),
            text: format!("group {group} goes from {} to {wanted}", ranks(*from_ranks)),
            group: Some(group.0),
            ranks: Some(*wanted),
            ..Default::default()
        },
        Effect::ReshardEnded(report) => of_reshard(report),
        Effect::TransferRefused {
            transfer,
            fault,
            reason,
        } => v1::News {
            kind: "cells_refused".to_owned(),
            warning: true,
            text: format!("cells of transfer {transfer} were refused ({fault}): {reason}"),
            transfer: Some(transfer.0),
            reason: reason.clone(),
            ..Default::default()
        },
        _ => return None,
    };
    Some(news)
}

fn ranks(count: u32) -> String {
    match count {
        1 => "1 rank".to_owned(),
        _ => format!("{count} ranks"),
    }
}

fn us(duration: Duration) -> u64 {
    duration.as_micros() as u64
}

fn of_migration(report: &MigrationReport) -> v1::News {
    let MigrationReport {
        request,
        source,
        target,
        outcome,
        ..
    } = report;
    let (moved, pause) = match outcome {
        MigrationOutcome::Moved { pause } => (true, Some(us(*pause))),
        _ => (false, None),
    };
    let text = match moved {
        true => format!("{request} went from group {source} to group {target}: {outcome}"),
        false => format!("{request} did not go from group {source} to group {target}: {outcome}"),
    };
    v1::News {
        kind: "migration_ended".to_owned(),
        warning: !moved && *outcome != MigrationOutcome::Ended,
        text,
        source_group: Some(source.0),
        target_group: Some(target.0),
        request_id: request.0.clone(),
        transfer: Some(report.transfer.0),
        outcome: outcome.name().to_owned(),
        reason: report.reason.name().to_owned(),
        pause_us: pause,
        took_us: Some(us(report.took)),
        cells: Some(report.cells),
        bytes: Some(report.bytes),
        ..Default::default()
    }
}

fn of_prefix_copy(report: &PrefixCopyReport) -> v1::News {
    let PrefixCopyReport {
        request,
        source,
        target,
        tokens,
        outcome,
        ..
    } = report;
    let (came, reason) = match outcome {
        Ok(()) => ("came", String::new()),
        Err(reason) => ("did not come", reason.clone()),
    };
    v1::News {
        kind: "prefix_copy_ended".to_owned(),
        text: format!("{tokens} cached tokens for {request} {came} from group {source} to group {target}"),
        source_group: Some(source.0),
        target_group: Some(target.0),
        request_id: request.0.clone(),
        transfer: Some(report.transfer.0),
        outcome: if outcome.is_ok() { "adopted" } else { "failed" }.to_owned(),
        reason,
        took_us: Some(us(report.took)),
        bytes: Some(report.bytes),
        ..Default::default()
    }
}

fn of_reshard(report: &ReshardReport) -> v1::News {
    let ReshardReport {
        group,
        from_ranks,
        ranks: wanted,
        outcome,
        ..
    } = report;
    let pause = match outcome {
        ReshardOutcome::Switched { pause } => Some(us(*pause)),
        _ => None,
    };
    v1::News {
        kind: "reshard_ended".to_owned(),
        warning: pause.is_none(),
        text: format!("group {group}, from {} to {wanted}: {outcome}", ranks(*from_ranks)),
        group: Some(group.0),
        ranks: Some(*wanted),
        outcome: outcome.name().to_owned(),
        pause_us: pause,
        took_us: Some(us(report.took)),
        cells: Some(report.cells),
        bytes: Some(report.bytes),
        ..Default::default()
    }
}
