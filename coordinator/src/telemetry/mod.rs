//! What a coordinator tells of itself beside its answers: metrics, spans of traced requests, and news for those who watch.
//!
//! The driver and the services call it; the machine knows nothing of it. Where no telemetry was started all instruments do
//! nothing.

mod answers;
mod counters;
mod events;
mod gauges;
mod news;
mod recent;
pub mod request_span;
mod requests;
mod steps;
pub mod telling;

use std::sync::Arc;

pub use answers::AnswerMeter;
pub use events::EventMeter;
pub use gauges::{Gauges, Snapshot};
pub use news::News;
pub use recent::Recent;
pub use requests::{RequestMeters, RequestRecord};
pub use steps::StepMeter;

/// What the services and the driver share.
#[derive(Clone, Debug)]
pub struct Telemetry {
    pub requests: Arc<RequestMeters>,
    pub recent: Arc<Recent>,
    pub news: Arc<News>,
}

impl Telemetry {
    pub fn new(model: &str) -> Self {
        let recent = Arc::new(Recent::default());
        Self {
            requests: Arc::new(RequestMeters::new(model, Arc::clone(&recent))),
            recent,
            news: Arc::default(),
        }
    }
}
