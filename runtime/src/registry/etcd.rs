//! The registry in an etcd: one connection at a time, to one of its members, and to the next one when that does not answer.
//!
//! A member that was stopped keeps its connections and says nothing. So every question has a deadline, and one that is not
//! answered ends the connection, with all that is watched through it.

use std::{
    error::Error as _,
    future::Future,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, SystemTime},
};

use etcd_client::{
    Channel, Client, Compare, CompareOp, ConnectOptions, Error, GetOptions, PutOptions, Txn, TxnOp, WatchOptions,
    WatchStream,
};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tracing::{info, warn};

use super::{
    Entry, EtcdConfig, LeaseId, Listing, RegistryError, RegistryState, Revision, Transaction, config::Password,
};
use crate::tls::{self, ClientTls, TlsError, innermost};

/// Of one question.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);
/// etcd hashes passwords slowly, on purpose.
const LOGIN_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Etcd {
    config: EtcdConfig,
    tls: Option<ClientTls>,
    connection: Mutex<Option<Connection>>,
    /// Which endpoint is asked next.
    turn: AtomicUsize,
    state: watch::Sender<RegistryState>,
}

#[derive(Clone)]
struct Connection {
    client: Client,
    url: String,
    /// Nothing more is to be expected of it.
    broken: CancellationToken,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Etcd {
    /// Errors if the files for TLS cannot be used.
    pub fn open(config: EtcdConfig) -> Result<Self, TlsError> {
        let tls = config.tls.clone().map(ClientTls::open).transpose()?;
        let never_there = RegistryState::Away {
            since: SystemTime::now(),
            reason: "not asked yet".to_owned(),
        };
        Ok(Self {
            config,
            tls,
            connection: Mutex::default(),
            turn: AtomicUsize::new(0),
            state: watch::Sender::new(never_there),
        })
    }

    pub fn state(&self) -> watch::Receiver<RegistryState> {
        self.state.subscribe()
    }

    pub async fn list(&self, prefix: &str) -> Result<Listing, RegistryError> {
        let key = self.key(prefix);
        let ask = async |mut client: Client| client.get(key, Some(GetOptions::new().with_prefix())).await;
        let mut found = self.ask(ask).await?;
        let revision = revision_of(found.header());
        let entries = found.take_kvs().into_iter().map(|pair| {
            let entry = Entry {
                value: String::from_utf8_lossy(pair.value()).into_owned(),
                version: Revision(pair.mod_revision() as u64),
                lease: (pair.lease() != 0).then_some(LeaseId(pair.lease())),
            };
            (self.name(pair.key()), entry)
        });
        Ok(Listing {
            entries: entries.collect(),
            revision,
        })
    }

    pub async fn transact(&self, transaction: Transaction) -> Result<Option<Revision>, RegistryError> {
        let expected = transaction.expected.iter().map(|(name, version)| {
            // A key that is not there has a revision of 0.
            let version = version.map_or(0, |version| version.0 as i64);
            Compare::mod_revision(self.key(name), CompareOp::Equal, version)
        });
        let puts = transaction.puts.iter().map(|put| {
            let options = put.lease.map(|lease| PutOptions::new().with_lease(lease.0));
            TxnOp::put(self.key(&put.name), put.value.as_str(), options)
        });
        let (expected, puts): (Vec<_>, Vec<_>) = (expected.collect(), puts.collect());
        let written = self
            .ask(async |mut client: Client| client.txn(Txn::new().when(expected).and_then(puts)).await)
            .await?;
        Ok(written.succeeded().then(|| revision_of(written.header())))
    }

    pub async fn grant(&self, ttl: Duration) -> Result<LeaseId, RegistryError> {
        let seconds = ttl.as_secs() as i64;
        let granted = self
            .ask(async |mut client: Client| client.lease_grant(seconds, None).await)
            .await?;
        Ok(LeaseId(granted.id()))
    }

    pub async fn refresh(&self, lease: LeaseId) -> Result<(), RegistryError> {
        self.ask(async |mut client: Client| client.lease_keep_alive(lease.0).await)
            .await
            .map(drop)
    }

    pub async fn revoke(&self, lease: LeaseId) -> Result<(), RegistryError> {
        self.ask(async |mut client: Client| client.lease_revoke(lease.0).await)
            .await
            .map(drop)
    }

    pub async fn compact(&self, revision: Revision) -> Result<(), RegistryError> {
        let revision = revision.0 as i64;
        self.ask(async |mut client: Client| client.compact(revision, None).await)
            .await
            .map(drop)
    }

    pub async fn changes(&self, prefix: &str, revision: Revision) -> Result<Changes, RegistryError> {
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(revision.0 as i64 + 1);
        let (key, connection) = (self.key(prefix), self.connection().await?);
        let watched = connection.client.clone();
        let opening = async |mut client: Client| client.watch(key, Some(options)).await;
        let stream = self.answer(&connection, opening(watched)).await?;
        Ok(Changes {
            stream,
            broken: connection.broken,
        })
    }

    fn key(&self, name: &str) -> String {
        format!("/{}/{name}", self.config.prefix)
    }

    fn name(&self, key: &[u8]) -> String {
        let key = String::from_utf8_lossy(key);
        let own = self.key("");
        key.strip_prefix(&own).unwrap_or(&key).to_owned()
    }

    async fn ask<T>(&self, ask: impl AsyncFnOnce(Client) -> Result<T, Error>) -> Result<T, RegistryError> {
        let connection = self.connection().await?;
        self.answer(&connection, ask(connection.client.clone())).await
    }

    async fn answer<T>(
        &self,
        connection: &Connection,
        asking: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, RegistryError> {
        let answered = tokio::time::timeout(ANSWER_DEADLINE, asking).await;
        let error = match answered {
            Ok(Ok(answer)) => {
                self.note_connected(&connection.url);
                return Ok(answer);
            }
            Ok(Err(error)) => error,
            Err(_) => {
                let reason = format!(
                    "{} does not answer within {} s",
                    connection.url,
                    ANSWER_DEADLINE.as_secs()
                );
                return Err(self.give_up(connection, reason).await);
            }
        };
        match Fault::of(&error) {
            Fault::LeaseGone => Err(RegistryError::LeaseGone),
            Fault::Compacted => Err(RegistryError::Compacted),
            Fault::Refused => {
                let reason = format!("{} refuses: {}; {}", connection.url, words(&error), self.hint());
                Err(self.note_away(reason))
            }
            Fault::Broken => {
                let reason = format!("{}: {}", connection.url, words(&error));
                Err(self.give_up(connection, reason).await)
            }
        }
    }

    /// The one there is, or one to the first endpoint that answers.
    async fn connection(&self) -> Result<Connection, RegistryError> {
        let mut connection = self.connection.lock().await;
        if let Some(connection) = connection.as_ref().filter(|known| !known.broken.is_cancelled()) {
            return Ok(connection.clone());
        }
        let mut reasons = Vec::new();
        for _ in &self.config.endpoints {
            let turn = self.turn.load(Ordering::Relaxed);
            let url = &self.config.endpoints[turn % self.config.endpoints.len()];
            match self.connect(url).await {
                Ok(client) => {
                    let made = Connection {
                        client,
                        url: url.clone(),
                        broken: CancellationToken::new(),
                    };
                    return Ok(connection.insert(made).clone());
                }
                Err(reason) => reasons.push(reason),
            }
            self.turn.fetch_add(1, Ordering::Relaxed);
        }
        Err(self.note_away(reasons.join("; ")))
    }

    async fn connect(&self, url: &str) -> Result<Client, String> {
        let endpoint = tls::endpoint(url).map_err(|error| format!("{url}: {error}"))?;
        let endpoint = endpoint.connect_timeout(CONNECT_DEADLINE).tcp_nodelay(true);
        let dialled = tokio::time::timeout(CONNECT_DEADLINE, tls::dial(&endpoint, self.tls.as_ref())).await;
        let channel = dialled
            .map_err(|_| format!("{url} does not answer within {} s", CONNECT_DEADLINE.as_secs()))?
            .map_err(|error| format!("{url}: {}", innermost(&error)))?;
        let mut options = ConnectOptions::new().with_require_leader(true);
        if let Some((user, Password(password))) = &self.config.user {
            options = options.with_user(user, password).with_auto_token_refresh(true);
        }
        let login = Client::from_channel(Channel::Tonic(channel), Some(options));
        let login = tokio::time::timeout(LOGIN_DEADLINE, login).await;
        login
            .map_err(|_| format!("{url} does not answer within {} s", LOGIN_DEADLINE.as_secs()))?
            .map_err(|error| match &self.config.user {
                Some((user, _)) => format!(
                    "{url} does not let user `{user}` in: {}; is the password right?",
                    words(&error)
                ),
                None => format!("{url}: {}", words(&error)),
            })
    }

    /// What would help against a refusal.
    fn hint(&self) -> String {
        match &self.config.user {
            None => "--etcd-user NAME says who asks".to_owned(),
            Some((user, _)) => format!(
                "user `{user}` must be allowed to read and write /{}/",
                self.config.prefix
            ),
        }
    }

    /// The next question goes to the next endpoint.
    async fn give_up(&self, connection: &Connection, reason: String) -> RegistryError {
        let mut current = self.connection.lock().await;
        if !connection.broken.is_cancelled() {
            connection.broken.cancel();
            self.turn.fetch_add(1, Ordering::Relaxed);
            current.take();
        }
        self.note_away(reason)
    }

    fn note_connected(&self, url: &str) {
        let connected = self.state.send_if_modified(|state| {
            let new = match state {
                RegistryState::Connected { url: known } => known != url,
                _ => true,
            };
            if new {
                *state = RegistryState::Connected { url: url.to_owned() };
            }
            new
        });
        if connected {
            info!(url, prefix = self.config.prefix, "etcd answers");
        }
    }

    fn note_away(&self, reason: String) -> RegistryError {
        let mut is_news = false;
        self.state.send_modify(|state| match state {
            RegistryState::Away { reason: known, .. } => {
                is_news = *known != reason;
                known.clone_from(&reason);
            }
            _ => {
                is_news = true;
                let (since, reason) = (SystemTime::now(), reason.clone());
                *state = RegistryState::Away { since, reason };
            }
        });
        if is_news {
            warn!(reason, "etcd is away; waiting for it");
        }
        RegistryError::Away { reason }
    }
}

/// A prefix that is watched through one connection.
#[derive(Debug)]
pub(super) struct Changes {
    stream: WatchStream,
    broken: CancellationToken,
}

impl Changes {
    /// Errors when the connection is given up, or if what was to be watched has been compacted.
    pub async fn next(&mut self) -> Result<(), RegistryError> {
        let away = |reason: &str| RegistryError::Away {
            reason: reason.to_owned(),
        };
        loop {
            let message = tokio::select! {
                () = self.broken.cancelled() => return Err(away("the connection was given up")),
                message = self.stream.message() => message,
            };
            let response = message
                .map_err(|error| away(&words(&error)))?
                .ok_or_else(|| away("the watch has ended"))?;
            if response.compact_revision() > 0 {
                return Err(RegistryError::Compacted);
            }
            if response.canceled() {
                return Err(away(response.cancel_reason()));
            }
            if !response.events().is_empty() {
                return Ok(());
            }
        }
    }
}

enum Fault {
    LeaseGone,
    Compacted,
    /// Asking elsewhere would not help.
    Refused,
    Broken,
}

impl Fault {
    fn of(error: &Error) -> Self {
        match error {
            Error::LeaseKeepAliveError(_) => Self::LeaseGone,
            Error::GRpcStatus(status) => match status.code() {
                Code::NotFound => Self::LeaseGone,
                Code::OutOfRange => Self::Compacted,
                Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition => Self::Refused,
                _ => Self::Broken,
            },
            Error::InvalidArgs(_) | Error::InvalidUri(_) => Self::Refused,
            _ => Self::Broken,
        }
    }
}

fn words(error: &Error) -> String {
    match error {
        Error::GRpcStatus(status) => match status.source() {
            Some(source) => format!("{}: {}", status.message(), innermost(source)),
            None => status.message().to_owned(),
        },
        error => error.to_string(),
    }
}

fn revision_of(header: Option<&etcd_client::ResponseHeader>) -> Revision {
    Revision(header.map_or(0, |header| header.revision() as u64))
}
