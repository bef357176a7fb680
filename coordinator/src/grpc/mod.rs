//! The gRPC edge: services, and the one file where errors become statuses.

mod admin;
mod cluster;
mod inference;
pub(crate) mod status;

pub use admin::{AdminService, ModelFacts};
pub use cluster::ClusterService;
pub use inference::InferenceService;
