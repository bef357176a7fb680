//! The way to the coordinator that leads: one connection, shared by all who ask.

use std::time::Duration;

use kvasir_runtime::{
    registry::records::LeaderRecord,
    tls::{self, ClientTls, innermost},
};
use tokio::sync::Mutex;
use tonic::{Code, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::LEADER_SERVICE;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const PROBE_DEADLINE: Duration = Duration::from_secs(1);
/// A host that died without a word is noticed after these.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Way {
    tls: Option<ClientTls>,
    known: Mutex<Option<(String, Channel)>>,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("cannot reach the coordinator that leads, {name} at {url}: {reason}")]
pub(crate) struct WayError {
    pub name: String,
    pub url: String,
    pub reason: String,
}

/// What a coordinator says when it is asked whether it leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Probe {
    Leads,
    /// Nobody is there, or it leads no more.
    Gone,
    Silent,
}

impl Way {
    pub fn new(tls: Option<ClientTls>) -> Self {
        Self {
            tls,
            known: Mutex::default(),
        }
    }

    /// Whether requests of others can be handed on in their names.
    pub fn shows_certificate(&self) -> bool {
        self.tls.is_some()
    }

    /// Errors if it cannot be reached within a second.
    pub async fn to(&self, leader: &LeaderRecord) -> Result<Channel, WayError> {
        let mut known = self.known.lock().await;
        if let Some((url, channel)) = known.as_ref()
            && *url == leader.url
        {
            return Ok(channel.clone());
        }
        let channel = self.dial(leader).await?;
        *known = Some((leader.url.clone(), channel.clone()));
        Ok(channel)
    }

    async fn dial(&self, leader: &LeaderRecord) -> Result<Channel, WayError> {
        let error = |reason: String| WayError {
            name: leader.name.clone(),
            url: leader.url.clone(),
            reason,
        };
        let tls = self.tls.as_ref().filter(|_| leader.url.starts_with("https://"));
        if tls.is_none() && leader.url.starts_with("https://") {
            return Err(error("no authority to believe; give --tls-ca or --tls-dir".to_owned()));
        }
        let endpoint = tls::endpoint(&leader.url).map_err(|found| error(found.to_string()))?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT);
        let dialled = tokio::time::timeout(CONNECT_TIMEOUT, tls::dial(&endpoint, tls)).await;
        dialled
            .map_err(|_| error("no answer within a second".to_owned()))?
            .map_err(|found| error(innermost(&found)))
    }

    /// On a connection of its own, which says more than one that stands.
    pub async fn probe(&self, leader: &LeaderRecord) -> Probe {
        let asked = tokio::time::timeout(PROBE_DEADLINE, async {
            let mut health = HealthClient::new(self.dial(leader).await.ok()?);
            let service = LEADER_SERVICE.to_owned();
            Some(health.check(HealthCheckRequest { service }).await)
        });
        match asked.await {
            Ok(Some(Ok(answer))) if answer.get_ref().status() == ServingStatus::Serving => Probe::Leads,
            Ok(Some(Err(status))) if status.code() == Code::DeadlineExceeded => Probe::Silent,
            Ok(_) => Probe::Gone,
            Err(_) => Probe::Silent,
        }
    }
}
