//! The brain of the cluster: scheduler, group and recovery as state machines without I/O, and the drivers around them.

pub mod cluster;
pub mod config;
mod detector;
pub mod event;
mod formation;
mod group;
mod loss;
mod planner;
mod recovery;
mod scheduler;
mod sequence;
mod snapshot;
pub mod status;
mod step_books;
mod workers;

pub use cluster::Cluster;
pub use config::ClusterConfig;
pub use event::{Effect, Event, LossCause, Now, SequenceError, SessionId, Usage};
pub use status::ClusterStatus;
