//! A lease that is kept alive, and replaced when it is gone.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{LeaseId, Registry, RegistryError};

/// Refreshed four times in its life: one answer may be late, or a member may have to be changed.
const REFRESHES: u32 = 4;
const END_DEADLINE: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(100);

/// Ends with the token that it was begun with.
#[derive(Clone, Debug)]
pub struct KeptLease {
    id: watch::Receiver<Option<LeaseId>>,
}

impl KeptLease {
    /// `None` until the registry has granted the first one.
    pub fn id(&self) -> watch::Receiver<Option<LeaseId>> {
        self.id.clone()
    }

    /// Waits until it has ended with its token, so that values under it are gone; a moment at most.
    pub async fn ended(mut self) {
        let ended = async { while self.id.changed().await.is_ok() {} };
        // A registry that is away ends it by itself.
        let _ = tokio::time::timeout(END_DEADLINE, ended).await;
    }
}

impl Registry {
    /// Is there as soon as the registry is. A lease that was lost is replaced by another one, whatever the reason; values
    /// under it are their owners' business.
    pub fn keep_lease(&self, ttl: Duration, stop: CancellationToken) -> KeptLease {
        let (sender, id) = watch::channel(None);
        tokio::spawn(keep(self.clone(), ttl, sender, stop));
        KeptLease { id }
    }

    /// Leases that were gone before their time.
    pub fn leases_lost(&self) -> u64 {
        self.leases_lost.load(Ordering::Relaxed)
    }
}

async fn keep(registry: Registry, ttl: Duration, sender: watch::Sender<Option<LeaseId>>, stop: CancellationToken) {
    loop {
        let lease = tokio::select! {
            () = stop.cancelled() => return,
            lease = granted(&registry, ttl) => lease,
        };
        sender.send_replace(Some(lease));
        tokio::select! {
            () = stop.cancelled() => {
                // Values go at once, not when the time is over. Nobody waits for a registry that is away.
                let _ = registry.revoke(lease).await;
                return;
            }
            () = lost(&registry, lease, ttl) => {}
        }
        registry.leases_lost.fetch_add(1, Ordering::Relaxed);
        warn!("the lease in the registry is gone; taking another one");
    }
}

async fn granted(registry: &Registry, ttl: Duration) -> LeaseId {
    loop {
        match registry.grant(ttl).await {
            Ok(lease) => {
                info!(?lease, ttl_s = ttl.as_secs(), "lease granted");
                return lease;
            }
            Err(error) => debug!(%error, "no lease"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Returns when the lease is gone. A registry that is away has not taken it.
async fn lost(registry: &Registry, lease: LeaseId, ttl: Duration) {
    let mut wait = ttl / REFRESHES;
    loop {
        tokio::time::sleep(wait).await;
        wait = match registry.refresh(lease).await {
            Ok(()) => ttl / REFRESHES,
            Err(RegistryError::LeaseGone) => return,
            Err(error) => {
                debug!(%error, "lease not refreshed");
                RETRY
            }
        };
    }
}
