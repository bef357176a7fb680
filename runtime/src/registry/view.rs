//! What is under a prefix, kept up to date.

use std::{collections::BTreeMap, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{Entry, Registry, RegistryError, Revision};

const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Always a whole one. The last one stays while the registry is away.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct View {
    pub entries: BTreeMap<String, Entry>,
    pub revision: Revision,
    /// False until the registry has answered for the first time.
    pub is_known: bool,
    /// How often it was watched from the start: at first, after a compaction, after a broken connection.
    pub begun: u64,
}

impl Registry {
    /// Follows all whose names begin with `prefix`, until `stop`.
    pub fn watch(&self, prefix: &str, stop: CancellationToken) -> watch::Receiver<View> {
        let (sender, view) = watch::channel(View::default());
        let (registry, prefix) = (self.clone(), prefix.to_owned());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = sender.closed() => {}
                () = follow(&registry, &prefix, &sender) => {}
            }
        });
        view
    }
}

async fn follow(registry: &Registry, prefix: &str, sender: &watch::Sender<View>) {
    let mut wait = RETRY_MIN;
    loop {
        let begun = sender.borrow().begun;
        let Err(error) = follow_once(registry, prefix, sender).await;
        wait = match sender.borrow().begun > begun {
            true => RETRY_MIN,
            false => (wait * 2).min(RETRY_MAX),
        };
        debug!(prefix, %error, "watching again");
        tokio::time::sleep(wait).await;
    }
}

async fn follow_once(
    registry: &Registry,
    prefix: &str,
    sender: &watch::Sender<View>,
) -> Result<std::convert::Infallible, RegistryError> {
    let mut begins = true;
    let mut listing = registry.list(prefix).await?;
    // From the listing on, so that nothing falls between.
    let mut changes = registry.changes(prefix, listing.revision).await?;
    loop {
        sender.send_if_modified(|view| {
            let is_new = begins || view.entries != listing.entries;
            view.entries = std::mem::take(&mut listing.entries);
            view.revision = listing.revision;
            view.is_known = true;
            view.begun += u64::from(begins);
            is_new
        });
        begins = false;
        changes.next().await?;
        listing = registry.list(prefix).await?;
    }
}
