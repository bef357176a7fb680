//! A door to strangers: connections that are bounded, encrypted where certificates are given, and known by their peer.
//!
//! gRPC and HTTP listen through the same [`Door`]: they share its bounds, its rules of access and its counts of refusals.
//! Nobody waits behind a slow handshake, and whoever is slow is cut off.

mod activity;
mod conn;
mod incoming;
mod seats;

pub use activity::{Activity, OpenRequest};
pub use conn::{Conn, ConnInfo};
pub use incoming::Incoming;
pub use seats::ConnLimits;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use tokio::net::TcpListener;

use self::seats::Seats;
use crate::{
    AddressError,
    access::{Access, AccessError, AccessLayer},
    refusals::Refusals,
    tls::{ServerTls, ServerTlsFiles, TlsError},
};

/// What an operator decides about who may come in.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DoorConfig {
    pub tls: Option<ServerTlsFiles>,
    /// A file of hashed keys.
    pub api_keys: Option<PathBuf>,
    /// Whoever reaches an address may use it.
    pub insecure: bool,
    pub limits: ConnLimits,
}

#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Access(#[from] AccessError),
}

/// Who may come in, and how many.
#[derive(Clone, Debug)]
pub struct Door {
    tls: Option<ServerTlsFiles>,
    limits: ConnLimits,
    seats: Arc<Seats>,
    access: Arc<Access>,
    refusals: Arc<Refusals>,
}

impl DoorConfig {
    /// Errors if strangers could reach `address` and what they may do is not restricted, or can be read on the way. With
    /// `insecure` that is meant.
    pub fn check_address(&self, address: SocketAddr) -> Result<(), AddressError> {
        if address.ip().is_loopback() || self.insecure {
            return Ok(());
        }
        match &self.tls {
            None => Err(AddressError::NotLoopback { address }),
            Some(tls) if tls.authority.is_none() && self.api_keys.is_none() => {
                Err(AddressError::NotAuthenticated { address })
            }
            Some(_) => Ok(()),
        }
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        match self.tls {
            Some(_) => "https",
            None => "http",
        }
    }

    /// What is open to whoever reaches `address`, for a warning. `None` if nothing is.
    pub fn open_to_all(&self, address: SocketAddr) -> Option<&'static str> {
        let restricted = self.api_keys.is_some() || self.tls.as_ref().is_some_and(|tls| tls.authority.is_some());
        match (address.ip().is_loopback(), &self.tls, restricted) {
            (true, ..) | (false, Some(_), true) => None,
            (false, Some(_), false) => Some("anybody who reaches it may ask, join as a worker, and administrate"),
            (false, None, true) => Some("keys and all that is said can be read on the way"),
            (false, None, false) => {
                Some("anybody who reaches it may ask, join as a worker and administrate, and read all that is said")
            }
        }
    }
}

impl Door {
    /// Errors if the files cannot be used.
    pub fn open(config: &DoorConfig) -> Result<Self, DoorError> {
        let refusals = Arc::new(Refusals::default());
        if let Some(files) = &config.tls {
            // Said before anything listens.
            ServerTls::open(files.clone(), &[])?;
        }
        Ok(Self {
            tls: config.tls.clone(),
            limits: config.limits,
            seats: Arc::new(Seats::new(config.limits)),
            access: Arc::new(Access::open(config, Arc::clone(&refusals))?),
            refusals,
        })
    }

    /// The connections that come to `listener`, until this is dropped. `protocols` are offered by ALPN: `h2`, `http/1.1`.
    ///
    /// Errors if the certificate's files cannot be used.
    pub fn incoming(&self, listener: TcpListener, protocols: &[&str]) -> Result<Incoming, TlsError> {
        let tls = self.tls.clone();
        let tls = tls.map(|files| ServerTls::open(files, protocols)).transpose()?;
        Ok(Incoming::start(
            listener,
            tls,
            self.limits,
            Arc::clone(&self.seats),
            Arc::clone(&self.refusals),
        ))
    }

    /// Says of each request who asks, or turns it away. For tonic's server and axum's router alike; the requests must carry
    /// their connection's [`ConnInfo`] as an extension.
    pub fn layer(&self) -> AccessLayer {
        AccessLayer::new(Arc::clone(&self.access))
    }

    pub fn refusals(&self) -> &Arc<Refusals> {
        &self.refusals
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::KeyPairFiles;

    #[test]
    fn beyond_loopback_nothing_is_open_without_a_word() {
        let far = "0.0.0.0:1".parse().unwrap();
        let near = "127.0.0.1:1".parse().unwrap();
        let plain = DoorConfig::default();
        assert_eq!(plain.check_address(near), Ok(()));
        assert!(plain.check_address(far).is_err());
        let pair = KeyPairFiles {
            certificate: "c".into(),
            key: "k".into(),
        };
        let encrypted = |authority| DoorConfig {
            tls: Some(ServerTlsFiles {
                pair: pair.clone(),
                authority,
            }),
            ..DoorConfig::default()
        };
        assert!(matches!(
            encrypted(None).check_address(far),
            Err(AddressError::NotAuthenticated { .. })
        ));
        assert_eq!(encrypted(Some("ca".into())).check_address(far), Ok(()));
        let keys = DoorConfig {
            api_keys: Some("keys".into()),
            ..encrypted(None)
        };
        assert_eq!(keys.check_address(far), Ok(()));
        let open = DoorConfig {
            insecure: true,
            ..plain
        };
        assert_eq!(open.check_address(far), Ok(()));
        assert!(open.open_to_all(far).is_some() && open.open_to_all(near).is_none());
    }
}
