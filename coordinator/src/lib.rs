//! The brain of the cluster: scheduler, group and recovery as state machines without I/O, and the drivers around them.

mod adoption;
mod answer_text;
mod chat_prompt;
pub mod cluster;
#[cfg(test)]
mod cluster_bench;
#[cfg(test)]
mod cluster_tests;
pub mod config;
mod copy_cost;
mod detector;
mod drain;
mod driver;
mod elastic;
pub mod event;
mod fair_share;
mod formation;
mod generate;
mod group;
mod group_role;
mod grpc;
mod handoff;
mod intake;
pub mod lead;
mod loss;
mod migration;
mod migration_order;
#[cfg(test)]
mod plan_scenarios;
mod planner;
mod preemption;
mod prefix_copy;
#[cfg(test)]
mod prefix_copy_tests;
mod rebalance;
mod recovery;
mod reshard;
mod router;
#[cfg(test)]
mod router_tests;
mod running_requests;
mod sampling_params;
mod scheduler;
mod sequence;
mod server;
mod snapshot;
mod spelling;
pub mod status;
mod step_books;
mod stop_strings;
mod telemetry;
mod token_log;
mod transfer;
mod workers;

pub use cluster::Cluster;
pub use config::ClusterConfig;
pub use event::{
    Effect, Event, LossCause, MigrationError, MigrationOutcome, MigrationReason, MigrationReport, Now, OrderId,
    PrefixCopyReport, ReshardError, ReshardOutcome, ReshardReport, SequenceError, SessionId, Usage,
};
pub use group_role::{GroupRole, UnknownRole};
pub use grpc::{AdminService, InferenceService, LedInference, ModelFacts};
pub use lead::{Lead, LeadConfig};
pub use prefix_copy::{PrefixCopying, UnknownPrefixCopying};
pub use server::{Coordinator, CoordinatorConfig, CoordinatorError, MetricsSource, run};
pub use status::ClusterStatus;
