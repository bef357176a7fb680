//! The connections of a listener, as a stream: each has a seat and has finished its handshake.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc::{Receiver, Sender, channel},
    task::{AbortHandle, JoinSet},
};

use super::{
    Conn, ConnLimits, conn,
    seats::{Seat, Seats},
};
use crate::{
    refusals::{Refusal, Refusals},
    tls::ServerTls,
};

/// Connections that wait for the server to take them.
const WAITING_MAX: usize = 64;
/// Out of descriptors, say: it may pass.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Ends listening, and handshakes under way, when dropped.
#[derive(Debug)]
pub struct Incoming {
    accepted: Receiver<Conn>,
    accepting: AbortHandle,
}

impl Incoming {
    pub(super) fn start(
        listener: TcpListener,
        tls: Option<ServerTls>,
        limits: ConnLimits,
        seats: Arc<Seats>,
        refusals: Arc<Refusals>,
    ) -> Self {
        let (sender, accepted) = channel(WAITING_MAX);
        let accepting = Accepting {
            tls,
            limits,
            seats,
            refusals,
            sender,
        };
        let accepting = tokio::spawn(accepting.run(listener)).abort_handle();
        Self { accepted, accepting }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Conn>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.accepted.poll_recv(context).map(|conn| conn.map(Ok))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[derive(Clone)]
struct Accepting {
    tls: Option<ServerTls>,
    limits: ConnLimits,
    seats: Arc<Seats>,
    refusals: Arc<Refusals>,
    sender: Sender<Conn>,
}

impl Accepting {
    async fn run(self, listener: TcpListener) {
        // No more than there are seats; they end with this.
        let mut handshakes = JoinSet::new();
        loop {
            while handshakes.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, peer)) => {
                    // One that came by IPv6 as IPv4 is who it is.
                    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                    match self.seats.take(peer.ip()) {
                        Ok(seat) => {
                            let accepting = self.clone();
                            handshakes.spawn(async move { accepting.admit(stream, peer, seat).await });
                        }
                        Err(why) => self.refusals.refuse(Refusal::TooManyConnections, peer, why),
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn admit(&self, stream: TcpStream, peer: SocketAddr, seat: Seat) {
        // Without it small messages wait for acknowledgements: slow, and still right.
        let _nodelay = stream.set_nodelay(true);
        let (stream, identity) = match &self.tls {
            None => (conn::Stream::Plain(stream), None),
            Some(tls) => match tls.accept(stream, self.limits.handshake_max).await {
                Ok((stream, identity)) => (conn::Stream::Tls(Box::new(stream)), identity),
                Err(error) => return self.refusals.refuse(error.refusal, peer, error.reason),
            },
        };
        let refusals = Arc::clone(&self.refusals);
        let conn = Conn::new(stream, peer, identity, seat, self.limits, refusals);
        // Fails when the server has ended.
        let _ = self.sender.send(conn).await;
    }
}
