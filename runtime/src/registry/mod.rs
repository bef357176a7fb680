//! Where coordinators and workers find each other: keys with values, some of them under leases, in etcd or in this process.
//!
//! Guarantees: what is registered is registered anew, under a new lease, whenever its key or lease is gone; a view is always
//! a whole one, also after a compaction and after a connection that broke; every question to etcd has a deadline; an etcd
//! that is away is waited for, and changes nothing meanwhile. What the records mean is not known here, but in [`records`].

mod config;
mod election;
mod embedded;
mod etcd;
mod lease;
pub mod records;
mod registration;
mod state;
mod view;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use tokio::sync::watch;

pub use config::{BadEndpoints, EtcdConfig, Password, RegistryConfig};
pub use election::{Asserted, Campaign};
pub use lease::KeptLease;
pub use registration::Registration;
pub use state::RegistryState;
pub use view::View;

use embedded::Embedded;
use etcd::Etcd;

use crate::tls::TlsError;

/// The least that etcd grants with its usual timing.
pub const LEASE_TTL: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LeaseId(i64);

/// Of a value: grows with each change of anything in the registry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Revision(pub u64);

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    pub value: String,
    /// When it was written last.
    pub version: Revision,
    pub lease: Option<LeaseId>,
}

/// All that is under a prefix, at one time. Names are without the registry's own prefix.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Listing {
    pub entries: BTreeMap<String, Entry>,
    pub revision: Revision,
}

/// What is to be written, if all that is expected holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Transaction {
    /// The version that a name has; `None`: it has no value.
    pub expected: Vec<(String, Option<Revision>)>,
    pub puts: Vec<Put>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Put {
    pub name: String,
    pub value: String,
    /// The value ends with it.
    pub lease: Option<LeaseId>,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    #[error("etcd is away: {reason}")]
    Away { reason: String },
    #[error("the lease is gone")]
    LeaseGone,
    #[error("what was to be watched has been compacted")]
    Compacted,
}

/// Cheap to clone; all clones share connections and, where there is no server, the values.
#[derive(Clone, Debug)]
pub struct Registry {
    store: Arc<Store>,
    /// Of the process, for tests and people: how often leases had to be replaced.
    leases_lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Store {
    Embedded(Embedded),
    Etcd(Box<Etcd>),
}

impl Registry {
    /// Connects nothing yet. Errors if the files for TLS cannot be used.
    pub fn open(config: &RegistryConfig) -> Result<Self, TlsError> {
        Ok(Self::over(match config {
            RegistryConfig::Embedded => Store::Embedded(Embedded::default()),
            RegistryConfig::Etcd(config) => Store::Etcd(Box::new(Etcd::open(config.clone())?)),
        }))
    }

    fn over(store: Store) -> Self {
        Self {
            store: Arc::new(store),
            leases_lost: Arc::default(),
        }
    }

    /// Whether it is a server of its own that others can see, too.
    pub fn is_shared(&self) -> bool {
        matches!(*self.store, Store::Etcd(_))
    }

    pub fn state(&self) -> watch::Receiver<RegistryState> {
        match &*self.store {
            Store::Embedded(embedded) => embedded.state(),
            Store::Etcd(etcd) => etcd.state(),
        }
    }

    /// All whose names begin with `prefix`.
    pub async fn list(&self, prefix: &str) -> Result<Listing, RegistryError> {
        match &*self.store {
            Store::Embedded(embedded) => Ok(embedded.list(prefix)),
            Store::Etcd(etcd) => etcd.list(prefix).await,
        }
    }

    pub async fn get(&self, name: &str) -> Result<Option<Entry>, RegistryError> {
        let mut listing = self.list(name).await?;
        Ok(listing.entries.remove(name))
    }

    /// All of it or nothing. Returns the version of what was written, or `None` if something was not as expected.
    pub async fn transact(&self, transaction: Transaction) -> Result<Option<Revision>, RegistryError> {
        match &*self.store {
            Store::Embedded(embedded) => embedded.transact(transaction),
            Store::Etcd(etcd) => etcd.transact(transaction).await,
        }
    }

    /// Writes if the value's version is `expected`, where `None` is that there is none.
    pub async fn put_if(
        &self,
        name: &str,
        value: &str,
        expected: Option<Revision>,
    ) -> Result<Option<Revision>, RegistryError> {
        let put = Put {
            name: name.to_owned(),
            value: value.to_owned(),
            lease: None,
        };
        self.transact(Transaction {
            expected: vec![(name.to_owned(), expected)],
            puts: vec![put],
        })
        .await
    }

    pub(crate) async fn put(&self, put: Put) -> Result<Option<Revision>, RegistryError> {
        self.transact(Transaction {
            expected: Vec::new(),
            puts: vec![put],
        })
        .await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, RegistryError> {
        match &*self.store {
            Store::Embedded(embedded) => Ok(embedded.grant(ttl)),
            Store::Etcd(etcd) => etcd.grant(ttl).await,
        }
    }

    /// Errors with `LeaseGone` if it has ended.
    async fn refresh(&self, lease: LeaseId) -> Result<(), RegistryError> {
        match &*self.store {
            Store::Embedded(embedded) => embedded.refresh(lease),
            Store::Etcd(etcd) => etcd.refresh(lease).await,
        }
    }

    /// Ends a lease, and all values under it.
    pub async fn revoke(&self, lease: LeaseId) -> Result<(), RegistryError> {
        match &*self.store {
            Store::Embedded(embedded) => embedded.revoke(lease),
            Store::Etcd(etcd) => etcd.revoke(lease).await,
        }
    }

    /// Forgets the history before `revision`.
    pub async fn compact(&self, revision: Revision) -> Result<(), RegistryError> {
        match &*self.store {
            Store::Embedded(_) => Ok(()),
            Store::Etcd(etcd) => etcd.compact(revision).await,
        }
    }

    /// What happens under `prefix` after `revision`.
    pub async fn changes(&self, prefix: &str, revision: Revision) -> Result<Changes, RegistryError> {
        match &*self.store {
            Store::Embedded(embedded) => Ok(Changes(Following::Embedded(embedded.changes(revision)))),
            Store::Etcd(etcd) => {
                let changes = etcd.changes(prefix, revision).await?;
                Ok(Changes(Following::Etcd(Box::new(changes))))
            }
        }
    }
}

/// That something has changed, not what: whoever needs to know that lists.
#[derive(Debug)]
pub struct Changes(Following);

#[derive(Debug)]
enum Following {
    Embedded(embedded::Changes),
    Etcd(Box<etcd::Changes>),
}

impl Changes {
    /// Returns when something has changed. Errors when that cannot be told any more.
    pub async fn next(&mut self) -> Result<(), RegistryError> {
        match &mut self.0 {
            Following::Embedded(changes) => {
                changes.next().await;
                Ok(())
            }
            Following::Etcd(changes) => changes.next().await,
        }
    }
}
