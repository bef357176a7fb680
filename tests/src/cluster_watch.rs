//! A cluster as `Admin` shows it, for tests that look often and while something else goes on.

use std::time::{Duration, Instant};

use kvasir_proto::v1::{self, admin_client::AdminClient};
use tonic::transport::Channel;

use crate::cluster_sandbox::ClusterSandbox;

const WAIT_DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);
/// So often in a row the same is seen where nothing changes any more.
const SETTLED: u32 = 6;

#[derive(Clone, Debug)]
pub struct ClusterWatch {
    pub admin: AdminClient<Channel>,
}

impl ClusterWatch {
    pub async fn of(sandbox: &ClusterSandbox) -> Self {
        Self {
            admin: AdminClient::new(sandbox.channel().await),
        }
    }

    pub async fn status(&self) -> v1::StatusResponse {
        let status = self.admin.clone().status(v1::StatusRequest {}).await;
        status.expect("a status").into_inner()
    }

    /// Waits until something is seen. Panics with the last status if that takes too long.
    pub async fn until<T>(&self, what: &str, seen: impl Fn(&v1::StatusResponse) -> Option<T>) -> T {
        let deadline = Instant::now() + WAIT_DEADLINE;
        loop {
            let status = self.status().await;
            if let Some(seen) = seen(&status) {
                return seen;
            }
            assert!(Instant::now() < deadline, "waited in vain for {what}: {status:#?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// What is seen once it stays the same.
    pub async fn settled<T: PartialEq>(&self, of: impl Fn(&v1::StatusResponse) -> T) -> T {
        let deadline = Instant::now() + WAIT_DEADLINE;
        let (mut last, mut seen) = (of(&self.status().await), 1);
        while seen < SETTLED {
            assert!(Instant::now() < deadline, "the cluster does not settle");
            tokio::time::sleep(POLL).await;
            let now = of(&self.status().await);
            seen = if now == last { seen + 1 } else { 1 };
            last = now;
        }
        last
    }
}

/// # Panics
/// If there is no such counter.
pub fn count(status: &v1::StatusResponse, name: &str) -> u64 {
    let count = status.counters.get(name);
    *count.unwrap_or_else(|| panic!("no counter {name}"))
}
