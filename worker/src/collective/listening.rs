//! Setting up one epoch's collective, in two steps.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use kvasir_runtime::tls::PeerDoor;

use super::handshake::TcpListening;
use super::member::{Member, Wire};
use super::patience::Patience;
use super::shared_memory_wire::SharedMemoryListening;
use super::solo_wire::SoloWire;
use super::{Abort, Collective, CollectiveError, Endpoint, Transport, WORLD_SIZE_MAX};

/// A number that only the ranks of one epoch know: drawn at random by the coordinator, new for each epoch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct EpochNonce(pub u64);

impl fmt::Debug for EpochNonce {
    /// It keeps strangers out, so it stays out of logs.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("EpochNonce(..)")
    }
}

/// A rank's place in one epoch.
#[derive(Debug, Clone, Copy)]
pub struct Seat {
    pub nonce: EpochNonce,
    pub rank: usize,
    pub world_size: usize,
    /// The address to listen on, and that peers connect to. Used by TCP alone.
    pub listen_ip: IpAddr,
}

/// How the collective of one epoch behaves.
#[derive(Debug, Clone)]
pub struct Terms {
    /// How long `connect` waits for the peers.
    pub connect_deadline: Duration,
    /// How long each call waits for the peers.
    pub call_deadline: Duration,
    /// Ends `connect` and every call.
    pub abort: Abort,
    /// Counts the calls entered, for whoever watches progress.
    pub entered: Arc<AtomicU64>,
}

/// A rank that can be met by its peers, and has not met them yet.
#[derive(Debug)]
pub struct Listening {
    seat: Seat,
    place: Place,
    peers: PeerDoor,
}

#[derive(Debug)]
enum Place {
    Solo,
    SharedMemory(SharedMemoryListening),
    Tcp(TcpListening),
}

impl Listening {
    /// Opens what the peers will need to reach this rank. A group of one is always [`Transport::Solo`].
    pub fn prepare(transport: Transport, seat: Seat) -> Result<(Listening, Endpoint), CollectiveError> {
        seat.check(transport)?;
        let (place, endpoint) = match transport {
            _ if seat.world_size == 1 => (Place::Solo, Endpoint::solo()),
            Transport::Solo => unreachable!("the seat was checked"),
            Transport::SharedMemory => {
                let (listening, endpoint) = SharedMemoryListening::prepare(seat)?;
                (Place::SharedMemory(listening), endpoint)
            }
            Transport::Tcp => {
                let (listening, endpoint) = TcpListening::prepare(seat)?;
                (Place::Tcp(listening), endpoint)
            }
        };
        let peers = PeerDoor::default();
        Ok((Listening { seat, place, peers }, endpoint))
    }

    /// Peers are met so over TCP: in the open if nothing is said.
    pub fn behind(mut self, peers: PeerDoor) -> Self {
        self.peers = peers;
        self
    }

    /// Meets the peers; endpoints: `[world_size]`, in rank order. Returns once all of them are there, and waits at
    /// most the connect deadline.
    pub fn connect(self, endpoints: &[Endpoint], terms: Terms) -> Result<Box<dyn Collective>, CollectiveError> {
        let Listening { seat, place, peers } = self;
        if endpoints.len() != seat.world_size {
            return Err(seat.refused(format!("there are {} endpoints", endpoints.len())));
        }
        let mut patience = Patience::new(&terms.abort, terms.connect_deadline);
        Ok(match place {
            Place::Solo => seat.member(SoloWire, &terms),
            Place::SharedMemory(listening) => seat.member(listening.connect(endpoints, &mut patience)?, &terms),
            Place::Tcp(listening) => seat.member(listening.connect(endpoints, peers, &mut patience)?, &terms),
        })
    }
}

impl Seat {
    fn check(&self, transport: Transport) -> Result<(), CollectiveError> {
        if self.world_size > WORLD_SIZE_MAX {
            return Err(self.refused(format!("a group has at most {WORLD_SIZE_MAX} ranks")));
        }
        if self.rank >= self.world_size {
            return Err(self.refused("ranks count from 0".to_owned()));
        }
        if transport == Transport::Solo && self.world_size > 1 {
            return Err(self.refused("solo is for a group of one".to_owned()));
        }
        Ok(())
    }

    fn refused(&self, reason: String) -> CollectiveError {
        CollectiveError::BadSeat {
            rank: self.rank,
            world_size: self.world_size,
            reason,
        }
    }

    fn member<W: Wire + 'static>(&self, wire: W, terms: &Terms) -> Box<dyn Collective> {
        Box::new(Member {
            rank: self.rank,
            world_size: self.world_size,
            call_deadline: terms.call_deadline,
            abort: terms.abort.clone(),
            entered: Arc::clone(&terms.entered),
            dead: false,
            wire,
        })
    }
}
