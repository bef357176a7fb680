//! The coordinators that a client knows, and the ways to them.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use kvasir_runtime::parse_endpoint;
use tonic::transport::{Channel, Endpoint};

use crate::{ClientError, error::innermost};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A host that died without a word is noticed after these.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to one coordinator. Errors after at most five seconds.
pub async fn connect(endpoint: &str) -> Result<Channel, ClientError> {
    let url = parse_endpoint(endpoint)?;
    let unreachable = |error: tonic::transport::Error| ClientError::Unreachable {
        url: url.clone(),
        reason: innermost(&error),
    };
    Endpoint::from_shared(url.clone())
        .map_err(unreachable)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .connect()
        .await
        .map_err(unreachable)
}

/// At least one.
#[derive(Debug)]
pub(crate) struct Endpoints {
    all: Vec<Remembered>,
    /// Where the next request begins to ask: requests go around.
    turn: AtomicUsize,
}

#[derive(Debug)]
struct Remembered {
    url: String,
    /// What was connected once connects itself again.
    channel: Mutex<Option<Channel>>,
}

impl Endpoints {
    pub fn new(urls: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self, ClientError> {
        let remembered = |url: &str| {
            let url = parse_endpoint(url)?;
            let channel = Mutex::default();
            Ok::<_, ClientError>(Remembered { url, channel })
        };
        let all: Vec<_> = urls
            .into_iter()
            .map(|url| remembered(url.as_ref()))
            .collect::<Result<_, _>>()?;
        match all.is_empty() {
            true => Err(ClientError::NoEndpoint),
            false => Ok(Self {
                all,
                turn: AtomicUsize::new(0),
            }),
        }
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn next_turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// `nth` goes around.
    pub async fn channel(&self, nth: usize) -> Result<Channel, ClientError> {
        let remembered = &self.all[nth % self.all.len()];
        if let Some(channel) = remembered.channel() {
            return Ok(channel);
        }
        let channel = connect(&remembered.url).await?;
        *remembered.lock() = Some(channel.clone());
        Ok(channel)
    }
}

impl Remembered {
    fn channel(&self) -> Option<Channel> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Channel>> {
        // Nothing panics while it is held.
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
