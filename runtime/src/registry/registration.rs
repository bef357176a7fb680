//! A value that is there as long as whoever put it there.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{KeptLease, LeaseId, Put, Registry, View};

const RETRY: Duration = Duration::from_millis(100);

/// Registered until it is dropped, or the lease ends for good.
#[derive(Debug)]
pub struct Registration {
    value: watch::Sender<String>,
    _stop: tokio_util::sync::DropGuard,
}

impl Registration {
    /// The new value is written soon.
    pub fn update(&self, value: String) {
        self.value
            .send_if_modified(|known| std::mem::replace(known, value) != *known);
    }
}

impl Registry {
    /// Writes a value under the lease, and writes it again when the lease is another one or the value is gone.
    pub fn register(&self, name: &str, value: String, lease: &KeptLease) -> Registration {
        let stop = CancellationToken::new();
        let (sender, values) = watch::channel(value);
        let view = self.watch(name, stop.clone());
        let keeping = Keeping {
            registry: self.clone(),
            name: name.to_owned(),
            values,
            leases: lease.id(),
            view,
        };
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = keeping.keep() => {}
            }
        });
        Registration {
            value: sender,
            _stop: stop.drop_guard(),
        }
    }
}

struct Keeping {
    registry: Registry,
    name: String,
    values: watch::Receiver<String>,
    leases: watch::Receiver<Option<LeaseId>>,
    view: watch::Receiver<View>,
}

impl Keeping {
    fn is_gone(&mut self) -> bool {
        let view = self.view.borrow_and_update();
        view.is_known && !view.entries.contains_key(&self.name)
    }

    /// Ends with the lease.
    async fn keep(mut self) {
        let mut written = None;
        loop {
            let wanted = (
                self.values.borrow_and_update().clone(),
                *self.leases.borrow_and_update(),
            );
            let is_gone = self.is_gone();
            if let (value, Some(lease)) = &wanted
                && (is_gone || written.as_ref() != Some(&wanted))
            {
                let put = Put {
                    name: self.name.clone(),
                    value: value.clone(),
                    lease: Some(*lease),
                };
                written = match self.registry.put(put).await {
                    Ok(_) => Some(wanted),
                    Err(error) => {
                        debug!(name = self.name, %error, "not registered yet");
                        None
                    }
                };
            }
            let retry = async {
                match written.is_none() || is_gone {
                    true => tokio::time::sleep(RETRY).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.leases.changed() => if changed.is_err() { return },
                changed = self.values.changed() => if changed.is_err() { return },
                changed = self.view.changed() => if changed.is_err() { return },
                () = retry => {}
            }
        }
    }
}
