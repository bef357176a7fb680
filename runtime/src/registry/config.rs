//! Which registry, as the command line says.

use std::fmt;

use crate::{parse_endpoint, tls::ClientTlsFiles};

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum RegistryConfig {
    /// In this process; nobody else sees it.
    #[default]
    Embedded,
    Etcd(EtcdConfig),
}

/// How to reach an etcd.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EtcdConfig {
    /// `http://host:port` or `https://host:port`; at least one, all of the same etcd.
    pub endpoints: Vec<String>,
    /// All keys begin with it: several clusters may share an etcd.
    pub prefix: String,
    pub user: Option<(String, Password)>,
    pub tls: Option<ClientTlsFiles>,
}

/// Is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadEndpoints {
    #[error("--etcd `{0}` is not the address of an etcd; write http://HOST:PORT, several with commas between them")]
    NotAnEndpoint(String),
    #[error("--etcd {url} is encrypted; --etcd-ca FILE says whom to believe")]
    NoAuthority { url: String },
    #[error("--etcd {url} is not encrypted, and --etcd-ca is given; write https://")]
    NotEncrypted { url: String },
    #[error("--etcd-prefix `{0}` cannot be one; letters, digits, `.`, `_`, `-` and `/` between them")]
    Prefix(String),
}

impl EtcdConfig {
    /// `endpoints` have commas between them. Errors with what cannot be used, and what could.
    pub fn parse(endpoints: &str, prefix: &str, tls: Option<ClientTlsFiles>) -> Result<Self, BadEndpoints> {
        let parse = |text: &str| parse_endpoint(text).map_err(|_| BadEndpoints::NotAnEndpoint(text.to_owned()));
        let parsed: Result<Vec<_>, _> = endpoints.split(',').map(str::trim).map(parse).collect();
        let parsed = parsed?;
        for url in &parsed {
            match (url.starts_with("https://"), &tls) {
                (true, None) => return Err(BadEndpoints::NoAuthority { url: url.clone() }),
                (false, Some(_)) => return Err(BadEndpoints::NotEncrypted { url: url.clone() }),
                _ => {}
            }
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let is_part = |part: &str| !part.is_empty() && part.chars().all(allowed);
        if !prefix.split('/').all(is_part) {
            return Err(BadEndpoints::Prefix(prefix.to_owned()));
        }
        Ok(Self {
            endpoints: parsed,
            prefix: prefix.to_owned(),
            user: None,
            tls,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_named() {
        let parsed = |endpoints: &str, prefix: &str| EtcdConfig::parse(endpoints, prefix, None);
        let two = parsed("http://a:1, b:2", "kvasir").unwrap();
        assert_eq!(two.endpoints, ["http://a:1", "http://b:2"]);
        for (endpoints, prefix, named) in [
            ("htp:/a", "kvasir", "htp:/a"),
            ("a:1,,b:2", "kvasir", "``"),
            ("https://a:1", "kvasir", "--etcd-ca"),
            ("a:1", "", "--etcd-prefix"),
            ("a:1", "a b", "a b"),
            ("a:1", "/a", "/a"),
        ] {
            let message = parsed(endpoints, prefix).unwrap_err().to_string();
            assert!(message.contains(named), "{message}");
        }
        let tls = ClientTlsFiles {
            authority: "ca.pem".into(),
            pair: None,
        };
        let unencrypted = EtcdConfig::parse("a:1", "kvasir", Some(tls));
        assert!(matches!(unencrypted, Err(BadEndpoints::NotEncrypted { .. })));
    }

    #[test]
    fn a_password_is_not_shown() {
        assert!(!format!("{:?}", Password("secret".to_owned())).contains("secret"));
    }
}
