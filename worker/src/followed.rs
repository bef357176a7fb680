//! Which coordinator a worker obeys: the one that it was told, or whoever leads, as the registry says.
//!
//! Terms never go back: of two leaders the one with the higher term is obeyed, whatever the registry says later. A record
//! that is refused is told of and counted, and changes nothing. While the registry is away, its last word counts.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use kvasir_runtime::{
    registry::{
        EtcdConfig, KeptLease, LEASE_TTL, Registration, Registry, RegistryConfig, View,
        records::{LeaderRecord, WorkerRecord, to_json, worker},
    },
    tls::TlsError,
};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use crate::rank::RankControl;

/// How often the registry is told of a term that has grown.
const TERM_CHECK: Duration = Duration::from_millis(200);

/// How a worker finds its coordinator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CoordinatorChoice {
    /// `http://host:port` or `https://host:port`
    At(String),
    /// Whoever leads there.
    Etcd(EtcdConfig),
}

/// Whom to obey.
pub(crate) struct Followed {
    control: Arc<RankControl>,
    obeyed: Option<LeaderRecord>,
    refused: BTreeSet<(u64, String)>,
    registry: Option<Registered>,
}

/// For as long as the worker lives.
struct Registered {
    view: watch::Receiver<View>,
    term: watch::Sender<u64>,
    lease: KeptLease,
    end: DropGuard,
}

/// What a worker does about a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// It obeys this one already.
    Known,
    Follow,
    /// It has obeyed a higher term.
    Refuse {
        obeyed: u64,
    },
}

impl Followed {
    /// Registers the worker where there is a registry. Errors if files for TLS cannot be used.
    pub fn new(
        choice: &CoordinatorChoice,
        id: &str,
        address: &str,
        control: Arc<RankControl>,
    ) -> Result<Self, TlsError> {
        let mut followed = Self {
            control,
            obeyed: None,
            refused: BTreeSet::new(),
            registry: None,
        };
        match choice {
            CoordinatorChoice::At(url) => {
                followed.obeyed = Some(LeaderRecord {
                    name: String::new(),
                    url: url.clone(),
                    term: 0,
                });
            }
            CoordinatorChoice::Etcd(config) => {
                let registry = Registry::open(&RegistryConfig::Etcd(config.clone()))?;
                followed.registry = Some(register(&registry, id, address, Arc::clone(&followed.control)));
            }
        }
        Ok(followed)
    }

    /// Waits until somebody leads whom this worker obeys.
    pub async fn leader(&mut self) -> LeaderRecord {
        loop {
            if self.registry.is_none()
                && let Some(told) = &self.obeyed
            {
                return told.clone();
            }
            self.look();
            if let Some(leader) = &self.obeyed {
                return leader.clone();
            }
            self.news().await;
        }
    }

    /// Waits until another one leads, by a higher term. Never returns where there is no registry. Losing no news when it is
    /// dropped.
    pub async fn another(&mut self) -> LeaderRecord {
        loop {
            let before = self.obeyed.clone();
            self.look();
            if let (Some(before), Some(now)) = (before, &self.obeyed)
                && !now.is_same(&before)
            {
                return now.clone();
            }
            self.news().await;
        }
    }

    /// The worker leaves, and the registry knows it at once.
    pub async fn leave(self) {
        if let Some(registered) = self.registry {
            drop(registered.end);
            registered.lease.ended().await;
        }
    }

    /// Looks at what the registry says now.
    fn look(&mut self) {
        let Some(record) = self
            .registry
            .as_mut()
            .and_then(|it| it.view.borrow_and_update().leader())
        else {
            return;
        };
        let term_max = self.control.term_max();
        match verdict(self.obeyed.as_ref(), term_max, &record) {
            Verdict::Known => {}
            Verdict::Follow => {
                info!(
                    leader = record.name,
                    url = record.url,
                    term = record.term,
                    "this coordinator leads"
                );
                if let Some(registered) = &self.registry {
                    registered.term.send_replace(record.term);
                }
                self.obeyed = Some(record);
            }
            Verdict::Refuse { obeyed } => {
                if self.refused.insert((record.term, record.url.clone())) {
                    let refused = self.refused.len();
                    warn!(
                        leader = record.name,
                        url = record.url,
                        term = record.term,
                        obeyed,
                        refused,
                        "leader refused: this worker has obeyed a higher term"
                    );
                }
            }
        }
    }

    async fn news(&mut self) {
        if let Some(registered) = &mut self.registry {
            // Its sender ends with `self`.
            let _ = registered.view.changed().await;
            return;
        }
        std::future::pending().await
    }
}

fn verdict(obeyed: Option<&LeaderRecord>, term_max: u64, record: &LeaderRecord) -> Verdict {
    let Some(known) = obeyed else {
        return match record.term < term_max {
            true => Verdict::Refuse { obeyed: term_max },
            false => Verdict::Follow,
        };
    };
    if record.is_same(known) {
        return match record.term.cmp(&known.term) {
            std::cmp::Ordering::Equal => Verdict::Known,
            std::cmp::Ordering::Greater => Verdict::Follow,
            std::cmp::Ordering::Less => Verdict::Refuse { obeyed: known.term },
        };
    }
    let obeyed = known.term.max(term_max);
    match record.term > obeyed {
        true => Verdict::Follow,
        false => Verdict::Refuse { obeyed },
    }
}

fn register(registry: &Registry, id: &str, address: &str, control: Arc<RankControl>) -> Registered {
    let end = CancellationToken::new();
    let (term, terms) = watch::channel(0);
    let lease = registry.keep_lease(LEASE_TTL, end.clone());
    let record = WorkerRecord::of_here(address, 0);
    let registration = registry.register(&worker(id), to_json(&record), &lease);
    tokio::spawn(keep_term(registration, record, control, terms));
    Registered {
        view: registry.watch("", end.clone()),
        term,
        lease,
        end: end.drop_guard(),
    }
}

/// Ends with the worker.
async fn keep_term(
    registration: Registration,
    record: WorkerRecord,
    control: Arc<RankControl>,
    followed: watch::Receiver<u64>,
) {
    while followed.has_changed().is_ok() {
        let term = control.term_max().max(*followed.borrow());
        registration.update(to_json(&WorkerRecord { term, ..record.clone() }));
        tokio::time::sleep(TERM_CHECK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, term: u64) -> LeaderRecord {
        LeaderRecord {
            name: name.to_owned(),
            url: format!("http://{name}:1"),
            term,
        }
    }

    #[test]
    fn a_term_never_goes_back() {
        let of = |obeyed: Option<&LeaderRecord>, term_max, found: &LeaderRecord| verdict(obeyed, term_max, found);
        let a5 = record("a", 5);
        assert_eq!(of(None, 0, &a5), Verdict::Follow);
        assert_eq!(of(None, 6, &a5), Verdict::Refuse { obeyed: 6 });
        // Another one needs a higher term than all that was obeyed, epochs included.
        assert_eq!(of(Some(&a5), 5, &record("b", 6)), Verdict::Follow);
        for term in [4, 5] {
            assert_eq!(of(Some(&a5), 0, &record("b", term)), Verdict::Refuse { obeyed: 5 });
        }
        assert_eq!(of(Some(&a5), 7, &record("b", 7)), Verdict::Refuse { obeyed: 7 });
        // Epochs of the one that is obeyed may be ahead of its record.
        assert_eq!(of(Some(&a5), 7, &a5), Verdict::Known);
        assert_eq!(of(Some(&a5), 7, &record("a", 6)), Verdict::Follow);
        assert_eq!(of(Some(&a5), 0, &record("a", 4)), Verdict::Refuse { obeyed: 5 });
    }
}
