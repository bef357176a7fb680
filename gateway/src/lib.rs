//! The OpenAI door: HTTP requests in, `kvasir.v1` requests behind it, answers back in OpenAI's words.
//!
//! It translates and checks nothing that the service behind it checks: that service may be the coordinator in the same
//! process, or [`RemoteInference`], which asks one coordinator or several over gRPC and goes on with answers whose
//! coordinator dies. It holds no model and no tokenizer.

mod answers;
mod asked;
mod chat;
mod chat_form;
mod cluster_view;
mod completion_form;
mod completions;
mod constraint;
mod error;
mod fields;
mod form;
mod json_body;
mod model_routes;
mod page;
mod remote;
mod reply;
mod request_span;
mod routes;
mod server;
mod status_json;
mod token_routes;

pub use cluster_view::{Operations, Watched};
pub use error::ApiError;
pub use remote::RemoteInference;
pub use server::{Gateway, serve};
pub use status_json::{
    GroupJson, NewsJson, ProgressJson, RankJson, ReshardJson, SequenceJson, StatusJson, TransferJson, WorkerJson,
};
