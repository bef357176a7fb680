//! The Rust client: answers whose streams go on when their coordinator does not.
//!
//! A stream begins with all that determines its answer. When the connection breaks, the client shows that and the tokens
//! it has to whichever coordinator it reaches, and gets the rest: the same tokens and bits, none twice, none missing.
//!
//! ```no_run
//! use futures::StreamExt as _;
//! use kvasir_client::{Client, Target, Update};
//! use kvasir_proto::v1::{GenerateRequest, generate_request::Prompt, generate_response::Event};
//!
//! # async fn run() -> Result<(), kvasir_client::ClientError> {
//! let client = Client::new([Target::plain("http://127.0.0.1:50051")?])?;
//! let request = GenerateRequest {
//!     prompt: Some(Prompt::Text("Once upon a time".to_owned())),
//!     max_tokens: Some(64),
//!     ..Default::default()
//! };
//! let mut answer = Box::pin(client.generate(request).await?);
//! while let Some(update) = answer.next().await {
//!     if let Update::Response(response) = update?
//!         && let Some(Event::Chunk(chunk)) = response.event
//!     {
//!         print!("{}", chunk.text);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod endpoints;
mod error;
mod progress;
mod request_span;
mod resuming;
mod target;

pub use error::{ClientError, error_name, retry_after};
pub use resuming::{Answers, Client, Update};
pub use target::{Bearer, Channel, Target};
