//! Where a rank can be met, as text that others carry.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

/// Where a rank can be met: `solo:`, `shm:/proc/<pid>/fd/<n>` (rank 0), `shm:` (other ranks), `tcp:<ip>:<port>`.
/// It is meant for the ranks of one epoch and worth nothing afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint(pub String);

impl Endpoint {
    pub(super) fn solo() -> Self {
        Self("solo:".to_owned())
    }

    pub(super) fn segment(file: SegmentFile) -> Self {
        Self(format!("shm:/proc/{}/fd/{}", file.process, file.descriptor))
    }

    pub(super) fn segment_guest() -> Self {
        Self("shm:".to_owned())
    }

    pub(super) fn tcp(address: SocketAddr) -> Self {
        Self(format!("tcp:{address}"))
    }

    pub(super) fn as_segment(&self) -> Option<SegmentFile> {
        let (process, descriptor) = self.0.strip_prefix("shm:/proc/")?.split_once("/fd/")?;
        Some(SegmentFile {
            process: process.parse().ok()?,
            descriptor: descriptor.parse().ok()?,
        })
    }

    pub(super) fn as_tcp(&self) -> Option<SocketAddr> {
        self.0.strip_prefix("tcp:")?.parse().ok()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The file descriptor of a process of this host that holds shared memory. Parsed to numbers, so that an endpoint can name nothing
/// but a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentFile {
    pub process: u32,
    pub descriptor: u32,
}

impl SegmentFile {
    /// Opens what lies behind the descriptor, to read or to write as `access` says.
    pub fn open(self, access: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = format!("/proc/{}/fd/{}", self.process, self.descriptor);
        // Not to block on whatever else such a descriptor may be.
        let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        rustix::fs::open(path, flags, Mode::empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_survive_the_way_through_text() {
        let file = SegmentFile {
            process: 12,
            descriptor: 7,
        };
        assert_eq!(Endpoint::segment(file).as_segment(), Some(file));
        let address: SocketAddr = "[::1]:80".parse().unwrap();
        assert_eq!(Endpoint::tcp(address).as_tcp(), Some(address));
    }

    #[test]
    fn a_segment_endpoint_names_only_descriptors() {
        for text in [
            "shm:",
            "shm:/etc/passwd",
            "shm:/proc/1/fd/../mem",
            "shm:/proc/self/fd/3",
            "tcp:1.2.3.4:5",
        ] {
            assert_eq!(Endpoint(text.to_owned()).as_segment(), None, "{text}");
        }
    }
}
