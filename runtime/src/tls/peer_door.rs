//! How workers meet each other: with TLS or without, and where those are counted who are no workers of this cluster.

use std::{
    fmt::Display,
    io,
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{HandshakeError, PeerTls, PolledStream, SharedStream};
use crate::refusals::{Refusal, Refusals};

#[derive(Clone, Debug, Default)]
pub struct PeerDoor {
    tls: Option<PeerTls>,
    refusals: Arc<Refusals>,
}

/// Who made a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Calling,
    Answering,
}

impl PeerDoor {
    pub fn new(tls: Option<PeerTls>) -> Self {
        Self {
            tls,
            refusals: Arc::default(),
        }
    }

    pub fn refusals(&self) -> &Arc<Refusals> {
        &self.refusals
    }

    pub fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// For a socket that does not block: the handshake comes with the first bytes.
    pub fn polled(&self, socket: TcpStream, side: Side) -> io::Result<PolledStream> {
        let connection = self.tls.as_ref().map(|tls| begin(tls, side)).transpose()?;
        Ok(PolledStream::new(socket, connection))
    }

    /// For a socket that blocks; waits for the handshake, `deadline` at most.
    pub fn shared(&self, socket: TcpStream, side: Side, deadline: Duration) -> io::Result<SharedStream> {
        match &self.tls {
            None => Ok(SharedStream::plain(socket)),
            Some(tls) => SharedStream::encrypted(socket, begin(tls, side)?, Instant::now() + deadline),
        }
    }

    /// Counts a caller that did not get as far as to say something, or said what no worker of this cluster would.
    pub fn turn_away(&self, stranger: Refusal, who: impl Display, error: io::Error) {
        let error = HandshakeError::from(error);
        let refusal = match error.refusal {
            // What came was no handshake, or not what comes behind one.
            Refusal::BadHandshake => stranger,
            refusal => refusal,
        };
        self.refusals.refuse(refusal, who, error.reason);
    }
}

fn begin(tls: &PeerTls, side: Side) -> io::Result<rustls::Connection> {
    let connection = match side {
        Side::Calling => tls.calling(),
        Side::Answering => tls.answering(),
    };
    connection.map_err(io::Error::other)
}
