//! The plumbing that every role needs: signals, logging, addresses, byte sizes, and the doors between processes: TLS, access,
//! bounds. Nothing here knows of models.

pub mod access;
pub mod address;
pub mod byte_size;
pub mod descriptors;
pub mod door;
pub mod logging;
pub mod refusals;
pub mod registry;
mod reloading;
pub mod shutdown;
pub mod status_metadata;
pub mod telemetry;
pub mod tls;

pub use address::{AddressError, parse_address, parse_endpoint};
pub use byte_size::ByteSize;
pub use logging::LogFormat;
