//! The plumbing that every role needs: signals, logging, addresses, byte sizes. Nothing here knows of models.

pub mod address;
pub mod byte_size;
pub mod logging;
pub mod shutdown;

pub use address::{AddressError, parse_address, parse_endpoint, require_loopback};
pub use byte_size::ByteSize;
pub use logging::LogFormat;
