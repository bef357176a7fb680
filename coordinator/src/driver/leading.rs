//! The driver where several coordinators could lead: it begins anew when this one does, and lets everybody go when it does
//! no more.

use std::time::Duration;

use tokio::sync::watch;

use super::{ClusterHandle, Command, Driver, ShuttingDown};
use crate::{Cluster, ClusterConfig, Event, sampling_params::random_seed};

/// Workers of a coordinator that is gone join its successor at once.
const GATHER_MAX: Duration = Duration::from_secs(3);

/// What a coordinator leads with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leadership {
    pub term: u64,
    /// Of each group, by its id.
    pub group_sizes: Vec<u32>,
    /// Another coordinator led before: workers are there, or will not come.
    pub takes_over: bool,
}

impl ClusterHandle {
    /// The highest term of an epoch, as it grows.
    pub fn terms(&self) -> watch::Receiver<u64> {
        self.terms.clone()
    }

    /// Begins anew, with nobody: workers and requests are taken from now on.
    pub async fn lead(&self, leadership: Leadership) -> Result<(), ShuttingDown> {
        self.send(Command::Lead(leadership)).await
    }

    /// Answers end as when the coordinator goes away, workers' sessions too, and none are taken any more.
    pub async fn step_down(&self) -> Result<(), ShuttingDown> {
        self.send(Command::StepDown).await
    }

    /// No epoch begins with a lower one.
    pub async fn raise_term(&self, term: u64) -> Result<(), ShuttingDown> {
        self.send(Command::Event(Event::RaiseTerm { term })).await
    }
}

impl Driver {
    /// Leads when it is told to.
    pub fn standing_by(self) -> Self {
        Self { leads: false, ..self }
    }

    pub(super) fn lead(&mut self, leadership: Leadership) {
        self.end();
        let config = ClusterConfig {
            term_min: leadership.term,
            group_sizes: leadership.group_sizes,
            gather_max: leadership.takes_over.then_some(GATHER_MAX),
            // Those of an earlier leadership must not come again.
            nonce_seed: random_seed(),
            ..self.cluster.config().clone()
        };
        self.cluster = Cluster::new(config, self.cluster.layout().clone());
        self.leads = true;
    }

    pub(super) fn step_down(&mut self) {
        self.leads = false;
        self.end();
        self.cluster = Cluster::new(self.cluster.config().clone(), self.cluster.layout().clone());
    }

    pub(super) fn publish_term(&self) {
        let term = self.cluster.term_max();
        self.terms
            .send_if_modified(|known| std::mem::replace(known, term) != term);
    }
}
