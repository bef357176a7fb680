//! What seldom happens and takes a while: moves, reshards, losses, recoveries.

use std::{collections::BTreeMap, time::Duration};

use kvasir_kv::GroupId;
use kvasir_runtime::telemetry;
use opentelemetry::{
    KeyValue,
    metrics::{BoundHistogram, Histogram},
};

use super::requests::seconds;
use crate::{LossCause, MigrationReason};

const PAUSE_BOUNDS: [f64; 13] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
const OUTAGE_BOUNDS: [f64; 14] = [
    0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
];

/// All series are there from the beginning: a rate sees the first event, too.
#[derive(Debug)]
pub struct EventMeter {
    migration_pauses: BTreeMap<&'static str, BoundHistogram<f64>>,
    detections: BTreeMap<&'static str, BoundHistogram<f64>>,
    reshard_pause: Histogram<f64>,
    recovery: Histogram<f64>,
    groups: BTreeMap<GroupId, OfGroup>,
}

#[derive(Debug)]
struct OfGroup {
    reshard_pause: BoundHistogram<f64>,
    recovery: BoundHistogram<f64>,
}

impl Default for EventMeter {
    fn default() -> Self {
        let meter = telemetry::meter();
        let seconds = |name, description, bounds: &[f64]| seconds(&meter, name, description, bounds);
        let migration_pause = seconds(
            "kvasir.migration.pause",
            "From a sequence's last token in one group to its first in another",
            &PAUSE_BOUNDS,
        );
        let detection = seconds(
            "kvasir.detection.duration",
            "From a lost rank's last sign of life to the verdict",
            &OUTAGE_BOUNDS,
        );
        Self {
            migration_pauses: bound(&migration_pause, "reason", MigrationReason::NAMES),
            detections: bound(&detection, "how", LossCause::NAMES),
            reshard_pause: seconds(
                "kvasir.reshard.pause",
                "From a group's last token with its old ranks to the first with the new ones",
                &PAUSE_BOUNDS,
            ),
            recovery: seconds(
                "kvasir.recovery.duration",
                "From a loss until the last of its sequences went on",
                &OUTAGE_BOUNDS,
            ),
            groups: BTreeMap::new(),
        }
    }
}

fn bound<const N: usize>(
    histogram: &Histogram<f64>,
    label: &'static str,
    values: [&'static str; N],
) -> BTreeMap<&'static str, BoundHistogram<f64>> {
    let bound = |value| (value, histogram.bind(&[KeyValue::new(label, value)]));
    values.into_iter().map(bound).collect()
}

impl EventMeter {
    /// There is this group.
    pub fn know(&mut self, group: GroupId) {
        let (reshard_pause, recovery) = (&self.reshard_pause, &self.recovery);
        self.groups.entry(group).or_insert_with(|| {
            let labels = [KeyValue::new("group", group.0.to_string())];
            OfGroup {
                reshard_pause: reshard_pause.bind(&labels),
                recovery: recovery.bind(&labels),
            }
        });
    }

    pub fn moved(&self, reason: MigrationReason, pause: Duration) {
        if let Some(pauses) = self.migration_pauses.get(reason.name()) {
            pauses.record(pause.as_secs_f64());
        }
    }

    pub fn switched(&self, group: GroupId, pause: Duration) {
        if let Some(of) = self.groups.get(&group) {
            of.reshard_pause.record(pause.as_secs_f64());
        }
    }

    pub fn lost(&self, how: LossCause, detection_ms: u64) {
        if let Some(detections) = self.detections.get(how.name()) {
            detections.record(detection_ms as f64 / 1e3);
        }
    }

    pub fn recovered(&self, group: GroupId, stall_ms: u64) {
        if let Some(of) = self.groups.get(&group) {
            of.recovery.record(stall_ms as f64 / 1e3);
        }
    }
}
