//! What is on its way in a cluster, as `kvasir status` shows it: sequences that migrate and groups that reshard.

use kvasir_gateway::{ProgressJson, ReshardJson, TransferJson};
use kvasir_runtime::ByteSize;

use crate::plain::plain;

pub fn line_of_transfer(transfer: &TransferJson) -> String {
    format!(
        "moves   {}  group {} to {} ({}), {}, {}",
        plain(&transfer.request_id),
        transfer.source_group,
        transfer.target_group,
        transfer.reason,
        transfer.stage,
        line_of(&transfer.progress)
    )
}

pub fn line_of_reshard(reshard: &ReshardJson) -> String {
    format!(
        "reshard group {}, {} ranks to {} ({}), {}, {}",
        reshard.group,
        reshard.from_ranks,
        reshard.workers.len(),
        reshard.workers.join(" "),
        reshard.stage,
        line_of(&reshard.progress)
    )
}

fn line_of(progress: &ProgressJson) -> String {
    format!(
        "{} of {} cells, {} at {}/s, {} ms",
        progress.cells_arrived,
        progress.cells_planned,
        ByteSize(progress.bytes),
        ByteSize(progress.bytes_per_second as u64),
        progress.age_ms
    )
}
