//! The decision: what is asked for, by whom, and whether they may.

use std::{sync::Arc, time::Duration, time::Instant};

use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};

use super::{
    api_key::ApiKey,
    key_file::{AccessError, ApiKeys, KeyLimits},
    usage::{OpenUse, Usages},
};
use crate::{
    door::{ConnInfo, DoorConfig},
    refusals::{Refusal, Refusals},
    reloading::Reloading,
    tls::Identity,
};

/// How one coordinator says to another for whom it asks: by these fields, beside its certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HandedOn;

impl HandedOn {
    /// It was handed on once, and is not again.
    pub const MARK: &str = "kvasir-handed-on";
    pub const NAME: &str = "kvasir-on-behalf-of";
    pub const ADMIN: &str = "kvasir-on-behalf-of-admin";
}

/// The `authorization` that a request came with, for whoever hands it on.
#[derive(Clone, Debug)]
pub struct Presented(pub HeaderValue);

/// Whoever asks, as a key or a certificate says; an extension of each request of somebody known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Principal {
    pub name: String,
    pub admin: bool,
}

impl Principal {
    /// A tenant of this one's, by whatever name they give it.
    pub fn tenant(&self, name: &str) -> String {
        match name {
            "" => self.name.clone(),
            name => format!("{}/{name}", self.name),
        }
    }
}

#[derive(Debug)]
pub struct Access {
    keys: Option<Reloading<ApiKeys, AccessError>>,
    /// An authority is configured: identities of certificates count.
    certificates: bool,
    insecure: bool,
    usages: Usages,
    refusals: Arc<Refusals>,
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asked {
    Open,
    Cluster,
    Admin,
    Other,
}

impl Asked {
    fn of(path: &str) -> Self {
        let service = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        match service {
            "grpc.health.v1.Health" | "grpc.reflection.v1.ServerReflection" => Self::Open,
            "grpc.reflection.v1alpha.ServerReflection" => Self::Open,
            "kvasir.v1.Cluster" => Self::Cluster,
            "kvasir.v1.Admin" => Self::Admin,
            // What people see of the cluster, they see as admins.
            "cluster" => Self::Admin,
            "page" => Self::Open,
            _ if matches!(path, "/" | "/health" | "/ready" | "/live" | "/metrics") => Self::Open,
            _ => Self::Other,
        }
    }
}

/// May go on.
#[derive(Debug, Default)]
pub(super) struct Admitted {
    pub principal: Option<Principal>,
    pub counted: Option<OpenUse>,
}

/// May not.
#[derive(Debug)]
pub(super) struct Denied {
    pub refusal: Refusal,
    pub message: String,
    pub retry_after: Option<Duration>,
}

impl Access {
    pub(crate) fn open(config: &DoorConfig, refusals: Arc<Refusals>) -> Result<Self, AccessError> {
        let keys = config.api_keys.clone();
        let keys = keys.map(|path| Reloading::open(vec![path.clone()], move || ApiKeys::read(&path)));
        Ok(Self {
            keys: keys.transpose()?,
            certificates: config.tls.as_ref().is_some_and(|tls| tls.authority.is_some()),
            insecure: config.insecure,
            usages: Usages::default(),
            refusals,
        })
    }

    /// Counts and logs whom it denies.
    pub(super) fn check(&self, path: &str, headers: &HeaderMap, conn: Option<&ConnInfo>) -> Result<Admitted, Denied> {
        self.decide(path, headers, conn).inspect_err(|denied| {
            let who = conn.map_or_else(|| "unknown".to_owned(), |conn| conn.peer.to_string());
            self.refusals
                .refuse(denied.refusal, who, format!("{path}: {}", denied.message));
        })
    }

    fn decide(&self, path: &str, headers: &HeaderMap, conn: Option<&ConnInfo>) -> Result<Admitted, Denied> {
        let identity = conn.and_then(|conn| conn.identity.as_ref());
        match Asked::of(path) {
            Asked::Open => Ok(Admitted::default()),
            _ if self.keys.is_none() && !self.certificates => Ok(Admitted::default()),
            Asked::Cluster => self.decide_worker(identity, conn).map(|()| Admitted::default()),
            Asked::Admin => {
                let admitted = self.decide_client(headers, identity)?;
                match &admitted.principal {
                    Some(principal) if principal.admin => Ok(admitted),
                    _ => Err(denied(
                        Refusal::NotAllowed,
                        "this needs an admin's key or certificate".to_owned(),
                    )),
                }
            }
            Asked::Other => self.decide_client(headers, identity),
        }
    }

    fn decide_worker(&self, identity: Option<&Identity>, conn: Option<&ConnInfo>) -> Result<(), Denied> {
        if !self.certificates {
            // Keys are for those who ask. Without an authority nobody can tell workers apart, so they are on this host.
            let on_this_host = conn.is_some_and(|conn| conn.peer.ip().is_loopback());
            let message = "without an authority for certificates workers join from the coordinator's host alone";
            return match on_this_host || self.insecure {
                true => Ok(()),
                false => Err(denied(Refusal::NotAllowed, message.to_owned())),
            };
        }
        match identity {
            Some(Identity::Worker(_)) => Ok(()),
            None => Err(denied(
                Refusal::NoCertificate,
                "workers need a certificate, kvasir://worker/ID".to_owned(),
            )),
            Some(other) => Err(denied(
                Refusal::NotAllowed,
                format!("workers need a worker's certificate; this one is {other}"),
            )),
        }
    }

    /// A key that is presented counts before a certificate: whoever shows a wrong one is not somebody else.
    fn decide_client(&self, headers: &HeaderMap, identity: Option<&Identity>) -> Result<Admitted, Denied> {
        if let Some(keys) = &self.keys {
            match bearer(headers) {
                Some(key) => {
                    let keys = keys.get();
                    let entry = keys.find(&key);
                    let entry =
                        entry.ok_or_else(|| denied(Refusal::WrongKey, "there is no such API key".to_owned()))?;
                    let principal = Principal {
                        name: entry.name.clone(),
                        admin: entry.admin,
                    };
                    return self.begin(principal, entry.limits);
                }
                None if identity.is_none() => return Err(denied(Refusal::MissingKey, missing_key(self.certificates))),
                None => {}
            }
        }
        let principal = match identity {
            Some(Identity::Client(name)) => (name.as_str(), false),
            Some(Identity::Admin(name)) => (name.as_str(), true),
            // Another coordinator, which has asked for a key or a certificate itself.
            Some(Identity::Coordinator) if headers.contains_key(HandedOn::NAME) => {
                let name = headers.get(HandedOn::NAME).and_then(|name| name.to_str().ok());
                (name.unwrap_or_default(), headers.contains_key(HandedOn::ADMIN))
            }
            None => {
                return Err(denied(
                    Refusal::NoCertificate,
                    "this needs a client's certificate, kvasir://client/NAME".to_owned(),
                ));
            }
            Some(other) => {
                return Err(denied(
                    Refusal::NotAllowed,
                    format!("this needs a client's certificate; this one is {other}"),
                ));
            }
        };
        let (name, admin) = principal;
        let name = name.to_owned();
        self.begin(Principal { name, admin }, KeyLimits::default())
    }

    fn begin(&self, principal: Principal, limits: KeyLimits) -> Result<Admitted, Denied> {
        if limits == KeyLimits::default() {
            return Ok(Admitted {
                principal: Some(principal),
                counted: None,
            });
        }
        let begun = self.usages.begin(&principal.name, limits, Instant::now());
        let counted = begun.map_err(|over| Denied {
            refusal: Refusal::OverLimit,
            message: format!("`{}` has used its {}", principal.name, over.limit),
            retry_after: Some(over.retry_after),
        })?;
        Ok(Admitted {
            principal: Some(principal),
            counted: Some(counted),
        })
    }
}

fn missing_key(certificates: bool) -> String {
    let or = if certificates {
        ", or a client's certificate"
    } else {
        ""
    };
    format!("this needs an API key, as `authorization: Bearer KEY`{or}")
}

fn denied(refusal: Refusal, message: String) -> Denied {
    Denied {
        refusal,
        message,
        retry_after: None,
    }
}

/// The scheme in any case, as RFC 9110 has it.
fn bearer(headers: &HeaderMap) -> Option<ApiKey> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| ApiKey::presented(key.trim()))
}
