//! Whether the registry answers.

use std::{fmt, time::SystemTime};

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RegistryState {
    Embedded,
    Connected { url: String },
    Away { since: SystemTime, reason: String },
}

impl RegistryState {
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Away { .. })
    }
}

impl fmt::Display for RegistryState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded"),
            Self::Connected { .. } => f.write_str("etcd, connected"),
            Self::Away { since, reason } => {
                let seconds = since.elapsed().unwrap_or_default().as_secs();
                write!(f, "etcd, away since {seconds} s: {reason}")
            }
        }
    }
}
