//! Who a certificate is for: a URI among its names, `kvasir://worker/w0` for example.
//!
//! A role is in the certificate, not in a list of names somewhere: whoever signs says what the holder may do.

use std::fmt;

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

const SCHEME: &str = "kvasir://";
/// Of a worker, client or admin.
const NAME_LEN_MAX: usize = 64;

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Identity {
    Coordinator,
    /// By its id in the cluster.
    Worker(String),
    Client(String),
    Admin(String),
}

impl Identity {
    /// Errors with the name if it is none: letters, digits, `.`, `_` and `-`, 64 at most.
    pub fn check_name(name: &str) -> Result<(), BadName> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        match !name.is_empty() && name.len() <= NAME_LEN_MAX && name.chars().all(allowed) {
            true => Ok(()),
            false => Err(BadName(name.to_owned())),
        }
    }

    /// The one that a certificate names. `None` if it names none, or several.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let certificate = EndEntityCert::try_from(certificate).ok()?;
        let mut uris = certificate.valid_uri_names().filter(|uri| uri.starts_with(SCHEME));
        let found = uris.next().and_then(Self::parse);
        found.filter(|_| uris.next().is_none())
    }

    fn parse(uri: &str) -> Option<Self> {
        let rest = uri.strip_prefix(SCHEME)?;
        if rest == "coordinator" {
            return Some(Self::Coordinator);
        }
        let (role, name) = rest.split_once('/')?;
        Self::check_name(name).ok()?;
        let name = name.to_owned();
        match role {
            "worker" => Some(Self::Worker(name)),
            "client" => Some(Self::Client(name)),
            "admin" => Some(Self::Admin(name)),
            _ => None,
        }
    }
}

impl fmt::Display for Identity {
    /// As the URI.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator => write!(f, "{SCHEME}coordinator"),
            Self::Worker(id) => write!(f, "{SCHEME}worker/{id}"),
            Self::Client(name) => write!(f, "{SCHEME}client/{name}"),
            Self::Admin(name) => write!(f, "{SCHEME}admin/{name}"),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is not a name; letters, digits, `.`, `_` and `-` are taken, {NAME_LEN_MAX} at most")]
pub struct BadName(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read_as_it_is_written_and_nothing_else_is_one() {
        for identity in [
            Identity::Coordinator,
            Identity::Worker("w0".to_owned()),
            Identity::Client("a.b_c-9".to_owned()),
            Identity::Admin("ops".to_owned()),
        ] {
            assert_eq!(Identity::parse(&identity.to_string()), Some(identity));
        }
        for uri in [
            "kvasir://",
            "kvasir://worker",
            "kvasir://worker/",
            "kvasir://worker/a/b",
            "kvasir://coordinator/x",
            "kvasir://owner/x",
            "http://worker/w0",
        ] {
            assert_eq!(Identity::parse(uri), None, "{uri}");
        }
    }
}
