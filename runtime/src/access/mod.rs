//! Who may do what: API keys, and what certificates say, request by request.
//!
//! | asked for | needs, where keys or an authority are configured |
//! |---|---|
//! | health and reflection, `/health`, `/ready`, `/live` | nothing |
//! | `kvasir.v1.Cluster` | a worker's certificate where there is an authority, whatever the key; else a peer on this host |
//! | `kvasir.v1.Admin` | an admin's certificate or key |
//! | all else | a certificate of a client or an admin, or a key; a coordinator's, in the name of whoever asked it |
//!
//! Where neither is configured, everybody who can connect may do everything; the listener sees to it that this is only who
//! is on this host. It does not decide about single requests beyond that: whose they are is in their [`Principal`].

mod api_key;
mod guard;
mod guarded_body;
mod key_file;
mod layer;
mod refused;
#[cfg(test)]
mod tests;
mod usage;

pub use api_key::ApiKey;
pub use guard::{Access, HandedOn, Presented, Principal};
pub use guarded_body::GuardedBody;
pub use key_file::{AccessError, KeyEntry, KeyLimits};
pub use layer::{AccessLayer, AccessService};
