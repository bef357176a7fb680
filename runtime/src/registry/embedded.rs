//! The registry of a cluster without a server for it: values, versions and leases in this process.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{Entry, LeaseId, Listing, RegistryError, RegistryState, Revision, Transaction};

#[derive(Debug)]
pub(super) struct Embedded {
    shared: Arc<Shared>,
    state: watch::Sender<RegistryState>,
}

#[derive(Debug)]
struct Shared {
    values: Mutex<Values>,
    revision: watch::Sender<Revision>,
}

#[derive(Debug, Default)]
struct Values {
    entries: BTreeMap<String, Entry>,
    revision: Revision,
    leases: BTreeMap<LeaseId, Lease>,
    leases_granted: i64,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    ends: Instant,
}

impl Default for Embedded {
    fn default() -> Self {
        let shared = Shared {
            values: Mutex::default(),
            revision: watch::Sender::new(Revision(0)),
        };
        Self {
            shared: Arc::new(shared),
            state: watch::Sender::new(RegistryState::Embedded),
        }
    }
}

impl Embedded {
    pub fn state(&self) -> watch::Receiver<RegistryState> {
        self.state.subscribe()
    }

    pub fn list(&self, prefix: &str) -> Listing {
        let values = self.shared.current();
        let under = values.entries.iter().filter(|(name, _)| name.starts_with(prefix));
        Listing {
            entries: under.map(|(name, entry)| (name.clone(), entry.clone())).collect(),
            revision: values.revision,
        }
    }

    /// Errors if a lease is gone.
    pub fn transact(&self, transaction: Transaction) -> Result<Option<Revision>, RegistryError> {
        let mut values = self.shared.current();
        let holds = |(name, expected): &(String, Option<Revision>)| {
            values.entries.get(name).map(|entry| entry.version) == *expected
        };
        if !transaction.expected.iter().all(holds) {
            return Ok(None);
        }
        let leases = transaction.puts.iter().filter_map(|put| put.lease);
        for lease in leases {
            if !values.leases.contains_key(&lease) {
                return Err(RegistryError::LeaseGone);
            }
        }
        let version = Revision(values.revision.0 + 1);
        values.revision = version;
        for put in transaction.puts {
            let entry = Entry {
                value: put.value,
                version,
                lease: put.lease,
            };
            values.entries.insert(put.name, entry);
        }
        self.shared.tell(&values);
        Ok(Some(version))
    }

    pub fn grant(&self, ttl: Duration) -> LeaseId {
        let mut values = self.shared.current();
        values.leases_granted += 1;
        let id = LeaseId(values.leases_granted);
        let ends = Instant::now() + ttl;
        values.leases.insert(id, Lease { ttl, ends });
        id
    }

    pub fn refresh(&self, lease: LeaseId) -> Result<(), RegistryError> {
        let mut values = self.shared.current();
        let lease = values.leases.get_mut(&lease).ok_or(RegistryError::LeaseGone)?;
        lease.ends = Instant::now() + lease.ttl;
        Ok(())
    }

    pub fn revoke(&self, lease: LeaseId) -> Result<(), RegistryError> {
        let mut values = self.shared.current();
        if !values.leases.contains_key(&lease) {
            return Err(RegistryError::LeaseGone);
        }
        values.end_lease(lease);
        self.shared.tell(&values);
        Ok(())
    }

    pub fn changes(&self, revision: Revision) -> Changes {
        Changes {
            shared: Arc::clone(&self.shared),
            revisions: self.shared.revision.subscribe(),
            seen: revision,
        }
    }
}

impl Shared {
    /// Without what has ended by now.
    fn current(&self) -> MutexGuard<'_, Values> {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let ended = values.leases.iter().filter(|(_, lease)| lease.ends <= now);
        let ended: Vec<LeaseId> = ended.map(|(id, _)| *id).collect();
        if !ended.is_empty() {
            ended.into_iter().for_each(|lease| values.end_lease(lease));
            self.tell(&values);
        }
        values
    }

    fn tell(&self, values: &Values) {
        self.revision.send_replace(values.revision);
    }

    fn next_end(&self) -> Option<Instant> {
        self.current().leases.values().map(|lease| lease.ends).min()
    }
}

impl Values {
    fn end_lease(&mut self, lease: LeaseId) {
        self.leases.remove(&lease);
        let before = self.entries.len();
        self.entries.retain(|_, entry| entry.lease != Some(lease));
        self.revision.0 += u64::from(self.entries.len() < before);
    }
}

#[derive(Debug)]
pub(super) struct Changes {
    shared: Arc<Shared>,
    revisions: watch::Receiver<Revision>,
    seen: Revision,
}

impl Changes {
    pub async fn next(&mut self) {
        loop {
            let ends = self.shared.next_end();
            let revision = *self.revisions.borrow_and_update();
            if revision > self.seen {
                self.seen = revision;
                return;
            }
            let ended = async {
                match ends {
                    Some(ends) => tokio::time::sleep_until(ends).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // The sender is in `shared`.
                _ = self.revisions.changed() => {}
                () = ended => {}
            }
        }
    }
}
