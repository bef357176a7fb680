//! TLS on every link: certificates from PEM files, read again when they change, and who the other side is.
//!
//! Guarantees: a handshake takes at most its deadline; a peer whose certificate is not of the cluster's authority, has
//! expired, or is for another role does not get past it. It does not decide what somebody may do: that is `access`.

mod authority;
mod client;
mod files;
mod handshake_error;
mod identity;
mod peer;
mod peer_door;
mod polled_stream;
mod server;
mod shared_stream;
#[cfg(test)]
mod tests;
mod verifier;

pub use authority::{Authority, AuthorityError, Issued};
pub use client::{ClientTls, ClientTlsFiles, dial, endpoint, innermost};
pub use files::{KeyPairFiles, TlsError};
pub use handshake_error::HandshakeError;
pub use identity::{BadName, Identity};
pub use peer::{PeerTls, PeerTlsFiles};
pub use peer_door::{PeerDoor, Side};
pub use polled_stream::{Interest, PolledStream};
pub use server::{ServerTls, ServerTlsFiles};
pub use shared_stream::{SharedStream, Until};
