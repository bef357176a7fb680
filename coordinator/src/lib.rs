//! The brain of the cluster: scheduler, group and recovery as state machines without I/O, and the drivers around them.

pub mod cluster;
pub mod config;
pub mod event;
pub mod status;

pub use cluster::Cluster;
pub use config::ClusterConfig;
pub use event::{Effect, Event, LossCause, Now, SequenceError, SessionId, Usage};
pub use status::ClusterStatus;
