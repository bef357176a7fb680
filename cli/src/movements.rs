//! What is on its way in a cluster, as `kvasir status` shows it: sequences that migrate and groups that reshard.

use kvasir_proto::v1;
use kvasir_runtime::ByteSize;
use serde::Serialize;

use crate::plain::plain;

#[derive(Serialize)]
pub struct TransferJson {
    id: u64,
    request_id: String,
    source_group: u32,
    target_group: u32,
    stage: String,
    /// order, drain, handoff, room or load; prefix where cached blocks are copied.
    reason: String,
    #[serde(flatten)]
    progress: Progress,
}

#[derive(Serialize)]
pub struct ReshardJson {
    group: u32,
    /// The one to come.
    epoch: u64,
    stage: String,
    from_ranks: u32,
    workers: Vec<String>,
    #[serde(flatten)]
    progress: Progress,
}

#[derive(Serialize)]
struct Progress {
    cells_planned: u64,
    cells_arrived: u64,
    bytes: u64,
    /// Since it began.
    bytes_per_second: f64,
    age_ms: u64,
}

impl Progress {
    fn new(cells_planned: u64, cells_arrived: u64, bytes: u64, age_ms: u64) -> Self {
        Self {
            cells_planned,
            cells_arrived,
            bytes,
            bytes_per_second: bytes as f64 * 1e3 / age_ms.max(1) as f64,
            age_ms,
        }
    }

    fn line(&self) -> String {
        format!(
            "{} of {} cells, {} at {}/s, {} ms",
            self.cells_arrived,
            self.cells_planned,
            ByteSize(self.bytes),
            ByteSize(self.bytes_per_second as u64),
            self.age_ms
        )
    }
}

impl From<v1::Transfer> for TransferJson {
    fn from(transfer: v1::Transfer) -> Self {
        Self {
            id: transfer.id,
            progress: Progress::new(
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
            progress: Progress::new(
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

impl TransferJson {
    pub fn line(&self) -> String {
        format!(
            "moves   {}  group {} to {} ({}), {}, {}",
            plain(&self.request_id),
            self.source_group,
            self.target_group,
            self.reason,
            self.stage,
            self.progress.line()
        )
    }
}

impl ReshardJson {
    pub fn line(&self) -> String {
        format!(
            "reshard group {}, {} ranks to {} ({}), {}, {}",
            self.group,
            self.from_ranks,
            self.workers.len(),
            self.workers.join(" "),
            self.stage,
            self.progress.line()
        )
    }
}
