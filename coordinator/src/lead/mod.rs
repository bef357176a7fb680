//! Which coordinator leads, as this one knows it, and the way to it from here.
//!
//! Of several coordinators with one registry one leads: workers obey it, and the others hand on to it what they are asked.
//! Guarantees: a term is given to one leader; a leader goes on while the registry is away, and steps down for a higher term
//! alone; a step down ends its workers' sessions and its answers, never the process. `campaign` is the task that decides.

mod campaign;
mod groups;
mod health;
mod way;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kvasir_kv::GroupId;
use kvasir_proto::v1;
use kvasir_runtime::{
    door::DoorConfig,
    registry::{Registry, RegistryConfig, records::LeaderRecord},
    tls::{ClientTls, ClientTlsFiles, TlsError},
};
use tokio::sync::{mpsc, watch};
use tonic::Status;
use tracing::warn;

pub(crate) use campaign::Campaigner;
pub(crate) use groups::of_flags as groups_of_flags;
pub(crate) use health::{LEADER_SERVICE, keep_readiness};
pub(crate) use way::{Way, WayError};

use crate::grpc::status;

/// So long a request waits for somebody who leads: a new leader is there after the old one's lease.
const LEADER_WAIT: Duration = Duration::from_secs(5);
const NOTE_DEADLINE: Duration = Duration::from_secs(3);
const NEWS_MAX: usize = 16;

/// How a coordinator takes part with others.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LeadConfig {
    pub registry: RegistryConfig,
    /// Unique among the coordinators.
    pub name: String,
    /// Where workers and the other coordinators reach this one.
    pub url: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Role {
    /// The leader as it was last known; it may be gone.
    Standby {
        leader: Option<LeaderRecord>,
    },
    Leader {
        term: u64,
    },
}

/// What the doors need to know. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Lead(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: String,
    url: String,
    registry: Registry,
    role: watch::Sender<Role>,
    /// Leaders that workers tell of.
    news: mpsc::Sender<LeaderRecord>,
    way: Way,
    reached: groups::Reached,
}

/// Who answers a request.
pub(crate) enum Answerer {
    Here,
    Leader(LeaderRecord),
}

impl Lead {
    /// Without a registry of several it leads from the beginning. Errors if files for TLS cannot be used.
    pub fn open(config: &LeadConfig, door: &DoorConfig) -> Result<(Self, mpsc::Receiver<LeaderRecord>), TlsError> {
        let registry = Registry::open(&config.registry)?;
        let role = match registry.is_shared() {
            true => Role::Standby { leader: None },
            false => Role::Leader { term: 1 },
        };
        let (news, received) = mpsc::channel(NEWS_MAX);
        let shared = Shared {
            name: config.name.clone(),
            url: config.url.clone(),
            registry,
            role: watch::Sender::new(role),
            news,
            way: Way::new(tls_of(door)?),
            reached: groups::Reached::default(),
        };
        Ok((Self(Arc::new(shared)), received))
    }

    pub fn role(&self) -> watch::Receiver<Role> {
        self.0.role.subscribe()
    }

    pub fn leads(&self) -> bool {
        matches!(*self.0.role.borrow(), Role::Leader { .. })
    }

    pub(crate) fn way(&self) -> &Way {
        &self.0.way
    }

    /// Who leads, this one included.
    pub fn leader(&self) -> Option<LeaderRecord> {
        match &*self.0.role.borrow() {
            Role::Standby { leader } => leader.clone(),
            Role::Leader { term } => Some(self.own_record(*term)),
        }
    }

    fn own_record(&self, term: u64) -> LeaderRecord {
        LeaderRecord {
            name: self.0.name.clone(),
            url: self.0.url.clone(),
            term,
        }
    }

    /// A worker has gone to another leader. Too many such news at once are one too many.
    pub fn tell_of(&self, leader: LeaderRecord) {
        let _ = self.0.news.try_send(leader);
    }

    /// Waits until somebody leads. Errors with `UNAVAILABLE` if that takes too long.
    pub(crate) async fn answerer(&self, since: Instant) -> Result<Answerer, Status> {
        let mut role = self.role();
        let somebody = role.wait_for(|role| !matches!(role, Role::Standby { leader: None }));
        let left = LEADER_WAIT.saturating_sub(since.elapsed());
        let role = tokio::time::timeout(left, somebody).await;
        // The sender is in `self`.
        match role.ok().and_then(Result::ok).as_deref() {
            Some(Role::Leader { .. }) => Ok(Answerer::Here),
            Some(Role::Standby { leader: Some(leader) }) => Ok(Answerer::Leader(leader.clone())),
            Some(Role::Standby { leader: None }) | None => Err(status::no_leader(LEADER_WAIT)),
        }
    }

    /// `leader` cannot be reached, or leads no more: waits until another one does, or it may have come back. False if there
    /// is no more time.
    pub(crate) async fn another(&self, leader: &LeaderRecord, since: Instant) -> bool {
        const AGAIN: Duration = Duration::from_millis(200);
        let left = LEADER_WAIT.saturating_sub(since.elapsed());
        if left.is_zero() {
            return false;
        }
        let mut role = self.role();
        let is_another = |role: &Role| !matches!(role, Role::Standby { leader: Some(known) } if known == leader);
        let _ = tokio::time::timeout(left.min(AGAIN), role.wait_for(is_another)).await;
        true
    }

    /// A group has another size from now on, by an operator's order.
    pub(crate) async fn note_size(&self, group: GroupId, ranks: u32) {
        if !self.0.registry.is_shared() {
            return;
        }
        let note = groups::note(&self.0.registry, &self.0.reached, group, ranks);
        let noted = tokio::time::timeout(NOTE_DEADLINE, note).await;
        if !matches!(noted, Ok(Ok(()))) {
            warn!(%group, ranks, ?noted, "the registry does not know of the new size; the next leader begins with the old one");
        }
    }

    /// The registry can be asked.
    pub fn is_connected(&self) -> bool {
        !self.0.registry.state().borrow().is_away()
    }

    /// What `Admin.Status` says of this coordinator.
    pub fn describe(&self, response: &mut v1::StatusResponse) {
        let leader = self.leader();
        response.coordinator.clone_from(&self.0.name);
        response.leader = self.leads();
        response.leader_term = leader.as_ref().map_or(0, |leader| leader.term);
        response.registry = self.0.registry.state().borrow().to_string();
        (response.leader_name, response.leader_url) = leader.map_or_else(Default::default, |it| (it.name, it.url));
    }
}

/// To another coordinator this one shows its own certificate.
fn tls_of(door: &DoorConfig) -> Result<Option<ClientTls>, TlsError> {
    let Some(files) = &door.tls else { return Ok(None) };
    let Some(authority) = files.authority.clone() else {
        return Ok(None);
    };
    let pair = Some(files.pair.clone());
    ClientTls::to_coordinator(ClientTlsFiles { authority, pair }).map(Some)
}
