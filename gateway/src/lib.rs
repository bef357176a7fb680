//! The OpenAI door: HTTP requests in, `kvasir.v1` requests behind it, answers back in OpenAI's words.
//!
//! It translates and checks nothing that the service behind it checks: that service may be the coordinator in the same
//! process, or [`RemoteInference`], which asks one coordinator or several over gRPC and goes on with answers whose
//! coordinator dies. It holds no model and no tokenizer.

mod answers;
mod asked;
mod chat;
mod chat_form;
mod completion_form;
mod completions;
mod constraint;
mod error;
mod fields;
mod form;
mod json_body;
mod model_routes;
mod remote;
mod reply;
mod routes;
mod server;
mod token_routes;

pub use error::ApiError;
pub use remote::RemoteInference;
pub use server::{Gateway, serve};
