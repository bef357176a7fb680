//! Addresses from the command line, and the rule that nothing listens to strangers by accident.

use std::net::{SocketAddr, ToSocketAddrs};

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddressError {
    #[error("`{0}` is not an address; write host:port, for example 127.0.0.1:50051")]
    NotAnAddress(String),
    #[error(
        "`{0}` is not an endpoint; write http://host:port or https://host:port, for example http://127.0.0.1:50051"
    )]
    NotAnEndpoint(String),
    #[error(
        "{address} can be reached from other machines, and connections are neither encrypted nor authenticated; \
         listen on 127.0.0.1, give certificates (kvasir certs makes some), or pass --insecure if this network is trusted"
    )]
    NotLoopback { address: SocketAddr },
    #[error(
        "{address} can be reached from other machines, and connections are encrypted but anybody may make them; give \
         --tls-ca or --api-keys, or pass --insecure if this network is trusted"
    )]
    NotAuthenticated { address: SocketAddr },
}

/// An address to listen on. Names are resolved; the first address counts.
pub fn parse_address(text: &str) -> Result<SocketAddr, AddressError> {
    let refuse = || AddressError::NotAnAddress(text.to_owned());
    let mut found = text.to_socket_addrs().map_err(|_| refuse())?;
    found.next().ok_or_else(refuse)
}

/// An endpoint to connect to, as a URL; a bare `host:port` is taken as http.
pub fn parse_endpoint(text: &str) -> Result<String, AddressError> {
    let refuse = || AddressError::NotAnEndpoint(text.to_owned());
    let (scheme, rest) = match text.strip_prefix("https://") {
        Some(rest) => ("https", rest),
        None => ("http", text.strip_prefix("http://").unwrap_or(text)),
    };
    let authority = rest.trim_end_matches('/');
    let (host, port) = authority.rsplit_once(':').ok_or_else(refuse)?;
    let forbidden = |c: char| c.is_whitespace() || c == '/' || c == '@';
    if host.is_empty() || host.contains(forbidden) || port.parse::<u16>().is_err() {
        return Err(refuse());
    }
    Ok(format!("{scheme}://{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_become_urls() {
        for text in ["127.0.0.1:5", "http://127.0.0.1:5", "http://127.0.0.1:5/"] {
            assert_eq!(parse_endpoint(text).as_deref(), Ok("http://127.0.0.1:5"));
        }
        assert_eq!(parse_endpoint("[::1]:5").as_deref(), Ok("http://[::1]:5"));
        for text in ["", "localhost", "http://", "a:b", "ftp://x:1", ":5", "x:99999", "a b:5"] {
            assert_eq!(
                parse_endpoint(text),
                Err(AddressError::NotAnEndpoint(text.to_owned())),
                "{text}"
            );
        }
        assert_eq!(parse_endpoint("https://x:1/").as_deref(), Ok("https://x:1"));
        assert!(parse_endpoint("https://x").is_err());
    }
}
