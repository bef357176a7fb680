//! The gRPC edge: services, and the one file where errors become statuses.

mod admin;
mod cluster;
mod hand_on;
mod inference;
mod led_admin;
mod led_inference;
mod open_inference;
mod report;
pub(crate) mod status;
mod tensors;
mod watch;

pub use admin::{AdminService, ModelFacts};
pub use cluster::ClusterService;
pub use inference::InferenceService;
pub(crate) use inference::Responses;
pub use led_admin::LedAdmin;
pub use led_inference::LedInference;
pub use open_inference::OpenInferenceService;
