//! The gRPC edge: services, and the one file where errors become statuses.

mod admin;
mod cluster;
mod inference;
mod open_inference;
pub(crate) mod status;
mod tensors;

pub use admin::{AdminService, ModelFacts};
pub use cluster::ClusterService;
pub use inference::InferenceService;
pub use open_inference::OpenInferenceService;
