//! What goes wrong between a client and its coordinators, and what can be done about it.

use std::time::Duration;

use kvasir_runtime::{
    AddressError,
    status_metadata::{ERROR_NAME, RETRY_AFTER_MS},
};
use tonic::{Code, Status};

#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error(
        "{url} needs an authority to believe: --tls-ca FILE, for a gateway --coordinator-ca FILE (what this system \
         believes is often in /etc/ssl/certs/ca-certificates.crt)"
    )]
    NoAuthority { url: String },
    #[error("{url} is not encrypted, and certificates are given; write https://")]
    NotEncrypted { url: String },
    #[error("the API key is none: keys are visible characters without spaces")]
    NoApiKey,
    #[error("no endpoint is given; one or more coordinators are needed")]
    NoEndpoint,
    #[error("cannot reach {url}: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("{}", .0.message())]
    Refused(Status),
    #[error("gave up after {attempts} attempts to resume: {last}")]
    GaveUp { attempts: u32, last: Box<ClientError> },
}

impl ClientError {
    /// The last word of a server, if there was one.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Refused(status) => Some(status),
            Self::GaveUp { last, .. } => last.status(),
            _ => None,
        }
    }

    /// True if the connection broke or the coordinator went away. What a server says about the request itself is final.
    pub(crate) fn is_broken_stream(&self) -> bool {
        match self {
            Self::Refused(status) => match error_name(status) {
                Some(name) => name == "shutting_down",
                None => matches!(
                    status.code(),
                    Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled
                ),
            },
            Self::Unreachable { .. } => true,
            _ => false,
        }
    }

    /// True if another coordinator, or this one later, may well take the request.
    pub(crate) fn is_lack_of_room(&self) -> bool {
        let status = self.status();
        status.is_some_and(|status| retry_after(status).is_some() || error_name(status) == Some("unavailable"))
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.status().and_then(retry_after)
    }
}

impl From<ClientError> for Status {
    fn from(error: ClientError) -> Self {
        match error.status() {
            Some(status) => status.clone(),
            None => Status::unavailable(error.to_string()),
        }
    }
}

/// What happened, in one word, if it was the server that says so.
pub fn error_name(status: &Status) -> Option<&str> {
    status.metadata().get(ERROR_NAME)?.to_str().ok()
}

/// When the server says that it is worth trying again.
pub fn retry_after(status: &Status) -> Option<Duration> {
    let hint = status.metadata().get(RETRY_AFTER_MS)?.to_str().ok()?;
    hint.parse().ok().map(Duration::from_millis)
}
