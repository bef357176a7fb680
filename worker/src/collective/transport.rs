//! What carries the bytes between ranks.

use std::fmt;

/// What carries the bytes between ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A group of one: nothing is carried.
    Solo,
    /// One segment of memory that all ranks map. Ranks on one host.
    SharedMemory,
    /// One connection between each two ranks.
    Tcp,
}

impl fmt::Display for Transport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Transport::Solo => "solo",
            Transport::SharedMemory => "shared-memory",
            Transport::Tcp => "tcp",
        })
    }
}
