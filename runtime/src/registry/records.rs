//! What is written into the registry, as JSON, and under which names.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Entry, View};

pub const LEADER: &str = "leader";
/// The highest term that was ever given here. It outlives leases.
pub const TERM: &str = "term";
pub const GROUPS: &str = "groups";
const WORKERS: &str = "workers/";
const COORDINATORS: &str = "coordinators/";

pub fn worker(id: &str) -> String {
    format!("{WORKERS}{id}")
}

pub fn coordinator(name: &str) -> String {
    format!("{COORDINATORS}{name}")
}

/// Who leads. Of two, the one with the higher term.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeaderRecord {
    pub name: String,
    /// Where workers, clients and the other coordinators reach it.
    pub url: String,
    pub term: u64,
}

impl CoordinatorRecord {
    /// Of this process.
    pub fn of_here(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            pid: std::process::id(),
            started_unix: unix_now(),
        }
    }
}

impl WorkerRecord {
    /// Of this process.
    pub fn of_here(address: &str, term: u64) -> Self {
        Self {
            address: address.to_owned(),
            pid: std::process::id(),
            started_unix: unix_now(),
            term,
        }
    }
}

fn unix_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

impl LeaderRecord {
    /// The same coordinator, whatever its term.
    pub fn is_same(&self, other: &Self) -> bool {
        self.name == other.name && self.url == other.url
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CoordinatorRecord {
    pub url: String,
    pub pid: u32,
    pub started_unix: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WorkerRecord {
    pub address: String,
    pub pid: u32,
    pub started_unix: u64,
    /// The highest that it has obeyed: whoever wants to lead it needs a higher one.
    pub term: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct GroupsRecord {
    pub groups: Vec<GroupRecord>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GroupRecord {
    /// Ranks.
    pub size: u32,
    /// both, prefill or decode.
    pub role: String,
}

/// As it is written.
pub fn to_json(record: &impl Serialize) -> String {
    serde_json::to_string(record).expect("records are plain structs with text for keys")
}

/// `None` if it is none, or somebody wrote something else there.
pub fn parse<T: for<'a> Deserialize<'a>>(entry: Option<&Entry>) -> Option<T> {
    serde_json::from_str(&entry?.value).ok()
}

impl View {
    pub fn leader(&self) -> Option<LeaderRecord> {
        parse(self.entries.get(LEADER))
    }

    pub fn groups(&self) -> Option<GroupsRecord> {
        parse(self.entries.get(GROUPS))
    }

    /// The highest of all that is known here: given to leaders, and obeyed by workers.
    pub fn term_max(&self) -> u64 {
        let leader = self.leader().map_or(0, |leader| leader.term);
        self.workers_term_max().max(leader).max(given(self.entries.get(TERM)))
    }

    /// The highest that a worker has obeyed.
    pub fn workers_term_max(&self) -> u64 {
        let workers = self.entries.range(WORKERS.to_owned()..);
        let workers = workers.take_while(|(name, _)| name.starts_with(WORKERS));
        let terms = workers.filter_map(|(_, entry)| parse::<WorkerRecord>(Some(entry)));
        terms.map(|worker| worker.term).max().unwrap_or(0)
    }
}

/// 0 if none was, or it cannot be read.
pub(super) fn given(entry: Option<&Entry>) -> u64 {
    entry.and_then(|entry| entry.value.parse().ok()).unwrap_or(0)
}
