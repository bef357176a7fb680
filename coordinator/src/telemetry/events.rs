//! What seldom happens and takes a while: moves, reshards, losses, recoveries.

use std::time::Duration;

use kvasir_runtime::telemetry;
use opentelemetry::{KeyValue, metrics::Histogram};

use super::requests::seconds;
use crate::{LossCause, MigrationReason};

const PAUSE_BOUNDS: [f64; 13] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
const OUTAGE_BOUNDS: [f64; 14] = [
    0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
];

#[derive(Debug)]
pub struct EventMeter {
    migration_pause: Histogram<f64>,
    reshard_pause: Histogram<f64>,
    detection: Histogram<f64>,
    recovery: Histogram<f64>,
}

impl Default for EventMeter {
    fn default() -> Self {
        let meter = telemetry::meter();
        let seconds = |name, description, bounds: &[f64]| seconds(&meter, name, description, bounds);
        Self {
            migration_pause: seconds(
                "kvasir.migration.pause",
                "From a sequence's last token in one group to its first in another",
                &PAUSE_BOUNDS,
            ),
            reshard_pause: seconds(
                "kvasir.reshard.pause",
                "From a group's last token with its old ranks to the first with the new ones",
                &PAUSE_BOUNDS,
            ),
            detection: seconds(
                "kvasir.detection.duration",
                "From a lost rank's last sign of life to the verdict",
                &OUTAGE_BOUNDS,
            ),
            recovery: seconds(
                "kvasir.recovery.duration",
                "From a loss until the last of its sequences went on",
                &OUTAGE_BOUNDS,
            ),
        }
    }
}

impl EventMeter {
    pub fn moved(&self, reason: MigrationReason, pause: Duration) {
        let reason = KeyValue::new("reason", reason.name());
        self.migration_pause.record(pause.as_secs_f64(), &[reason]);
    }

    pub fn switched(&self, pause: Duration) {
        self.reshard_pause.record(pause.as_secs_f64(), &[]);
    }

    pub fn lost(&self, how: LossCause, detection_ms: u64) {
        let how = KeyValue::new("how", how.name());
        self.detection.record(detection_ms as f64 / 1e3, &[how]);
    }

    pub fn recovered(&self, stall_ms: u64) {
        self.recovery.record(stall_ms as f64 / 1e3, &[]);
    }
}
