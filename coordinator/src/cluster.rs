//! The coordinator's state machine: takes events, returns effects. No clock, no I/O, no randomness.

use kvasir_kv::UnitLayout;

use crate::{ClusterConfig, ClusterStatus, Effect, Event, Now};

#[derive(Debug)]
pub struct Cluster {
    config: ClusterConfig,
    layout: UnitLayout,
}

impl Cluster {
    pub fn new(config: ClusterConfig, layout: UnitLayout) -> Self {
        Self { config, layout }
    }

    pub fn config(&self) -> &ClusterConfig {
        &self.config
    }

    pub fn layout(&self) -> &UnitLayout {
        &self.layout
    }

    /// Effects are to be carried out in order. `now` never goes back.
    pub fn on(&mut self, _event: Event, _now: Now) -> Vec<Effect> {
        Vec::new()
    }

    pub fn status(&self, _now: Now) -> ClusterStatus {
        ClusterStatus::default()
    }
}
