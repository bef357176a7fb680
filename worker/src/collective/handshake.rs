//! How the ranks of one epoch find each other over TCP.
//!
//! Each rank listens before its address is given out; then each calls all lower ranks and answers all higher ones.
//! Both sides say who they are and show the epoch's nonce before anything else is sent, where workers have certificates by
//! TLS and behind these. Whoever does not is dropped without harm and counted: strangers cannot block the meeting, and are
//! told nothing.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use kvasir_runtime::{
    refusals::Refusal,
    tls::{PeerDoor, PolledStream, Side},
};
use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::exchange::poll;
use super::link::{Link, flags};
use super::patience::Patience;
use super::tcp_wire::TcpWire;
use super::{CollectiveError, Endpoint, Seat, Transport};

/// Strangers that may be on the line beside the ranks before they say who they are; the oldest makes room.
const STRANGERS_MAX: usize = 64;

/// A rank whose peers can connect to it.
#[derive(Debug)]
pub(super) struct TcpListening {
    seat: Seat,
    listener: TcpListener,
}

impl TcpListening {
    pub fn prepare(seat: Seat) -> Result<(Self, Endpoint), CollectiveError> {
        if seat.listen_ip.is_unspecified() {
            let reason = "peers cannot connect to an unspecified address".to_owned();
            return Err(CollectiveError::BadSeat {
                rank: seat.rank,
                world_size: seat.world_size,
                reason,
            });
        }
        let listener =
            TcpListener::bind((seat.listen_ip, 0)).map_err(CollectiveError::io("cannot listen for peers"))?;
        listener
            .set_nonblocking(true)
            .map_err(CollectiveError::io("cannot listen without blocking"))?;
        let address = listener
            .local_addr()
            .map_err(CollectiveError::io("cannot tell the listening address"))?;
        Ok((Self { seat, listener }, Endpoint::tcp(address)))
    }

    pub fn connect(
        self,
        endpoints: &[Endpoint],
        peers: PeerDoor,
        patience: &mut Patience<'_>,
    ) -> Result<TcpWire, CollectiveError> {
        let Self { seat, listener } = self;
        let mut meeting = Meeting {
            seat,
            listener,
            calls: (0..seat.rank)
                .map(|peer| call(peer, &endpoints[peer], &peers))
                .collect::<Result<_, _>>()?,
            peers,
            callers: Vec::new(),
            met: (0..seat.world_size).map(|_| None).collect(),
        };
        while !meeting.missing().is_empty() {
            meeting.sleep(patience)?;
            meeting.advance_calls()?;
            meeting.accept_callers()?;
            meeting.advance_callers();
        }
        let met = meeting.met.into_iter().enumerate();
        let links = met
            .filter_map(|(peer, stream)| Some(Link::new(peer, stream?)))
            .collect();
        Ok(TcpWire::new(seat.rank, seat.world_size, links))
    }
}

fn call(peer: usize, endpoint: &Endpoint, peers: &PeerDoor) -> Result<Call, CollectiveError> {
    let address = endpoint.as_tcp().ok_or_else(|| CollectiveError::BadEndpoint {
        rank: peer,
        endpoint: endpoint.0.clone(),
        transport: Transport::Tcp,
    })?;
    let greeting = start_connecting(address).and_then(|stream| Greeting::new(stream, address, peers, Side::Calling));
    let greeting = greeting.map_err(CollectiveError::io("cannot connect to a peer"))?;
    Ok(Call { peer, greeting })
}

/// A stream that will be connected, or fail, at its first write.
fn start_connecting(address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
        Err(errno) => Err(errno.into()),
    }
}

/// The ranks that have met so far, and those that are about to.
#[derive(Debug)]
struct Meeting {
    seat: Seat,
    listener: TcpListener,
    peers: PeerDoor,
    /// To lower ranks.
    calls: Vec<Call>,
    /// From anybody; ours are the higher ranks.
    callers: Vec<Greeting>,
    /// met: [world_size]
    met: Vec<Option<PolledStream>>,
}

#[derive(Debug)]
struct Call {
    peer: usize,
    greeting: Greeting,
}

impl Meeting {
    fn missing(&self) -> Vec<usize> {
        (0..self.seat.world_size)
            .filter(|&rank| rank != self.seat.rank && self.met[rank].is_none())
            .collect()
    }

    fn hello(&self) -> [u8; HELLO_BYTES] {
        hello(&self.seat, self.seat.rank)
    }

    /// We speak first, and the answer must be the peer's.
    fn advance_calls(&mut self) -> Result<(), CollectiveError> {
        let hello = self.hello();
        for mut call in std::mem::take(&mut self.calls) {
            let refused = |reason: &str| CollectiveError::Refused {
                rank: call.peer,
                reason: reason.to_owned(),
            };
            let greeting = &mut call.greeting;
            if !greeting
                .send(&hello)
                .map_err(|error| refused(&format!("cannot be reached: {error}")))?
            {
                self.calls.push(call);
                continue;
            }
            match greeting
                .receive()
                .map_err(|error| refused(&format!("did not answer: {error}")))?
            {
                None => self.calls.push(call),
                Some(answer) if answer == self::hello(&self.seat, call.peer) => {
                    self.met[call.peer] = Some(call.greeting.stream);
                }
                Some(_) => return Err(refused("its answer is of another epoch or rank")),
            }
        }
        Ok(())
    }

    fn accept_callers(&mut self) -> Result<(), CollectiveError> {
        loop {
            match self.listener.accept() {
                Ok((stream, from)) => self.admit(stream, from),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => return Err(CollectiveError::io("cannot accept a peer")(error)),
            }
        }
    }

    fn admit(&mut self, stream: TcpStream, from: SocketAddr) {
        let ready = stream.set_nonblocking(true);
        let Ok(greeting) = ready.and_then(|()| Greeting::new(stream, from, &self.peers, Side::Answering)) else {
            return;
        };
        if self.callers.len() == self.seat.world_size + STRANGERS_MAX {
            let silent = self.callers.remove(0);
            self.peers.turn_away(
                Refusal::CollectiveStranger,
                silent.address,
                io::ErrorKind::TimedOut.into(),
            );
        }
        self.callers.push(greeting);
    }

    /// Callers speak first, and get an answer only if they are ranks of this epoch. Whoever fails is dropped.
    fn advance_callers(&mut self) {
        let answer = self.hello();
        for mut caller in std::mem::take(&mut self.callers) {
            let peer = match caller.receive() {
                Ok(None) => {
                    self.callers.push(caller);
                    continue;
                }
                Ok(Some(hello)) => self.awaited(hello).ok_or_else(not_of_this_epoch),
                Err(error) => Err(error),
            };
            match peer.and_then(|peer| Ok((peer, caller.send(&answer)?))) {
                Ok((peer, true)) => self.met[peer] = Some(caller.stream),
                Ok((_, false)) => self.callers.push(caller),
                Err(error) => self.peers.turn_away(Refusal::CollectiveStranger, caller.address, error),
            }
        }
    }

    /// The higher rank that says this, unless it is here already.
    fn awaited(&self, found: [u8; HELLO_BYTES]) -> Option<usize> {
        (self.seat.rank + 1..self.seat.world_size)
            .find(|&peer| found == hello(&self.seat, peer) && self.met[peer].is_none())
    }

    /// Sleeps until somebody can go on, for the length of a nap at most.
    fn sleep(&self, patience: &mut Patience<'_>) -> Result<(), CollectiveError> {
        let nap = patience.nap(|| self.missing())?;
        let greetings = self.calls.iter().map(|call| &call.greeting);
        let mut waiting = vec![PollFd::new(&self.listener, PollFlags::IN)];
        waiting.extend(greetings.map(|greeting| greeting.poll_fd(greeting.is_sent())));
        waiting.extend(self.callers.iter().map(|caller| caller.poll_fd(!caller.is_received())));
        poll(&mut waiting, nap)
    }
}

const HELLO_BYTES: usize = 24;

const HELLO_MAGIC: [u8; 8] = *b"KvsrTcp1";

/// What `rank` of this epoch says.
fn hello(seat: &Seat, rank: usize) -> [u8; HELLO_BYTES] {
    let mut bytes = [0; HELLO_BYTES];
    bytes[..8].copy_from_slice(&HELLO_MAGIC);
    bytes[8..16].copy_from_slice(&seat.nonce.0.to_le_bytes());
    bytes[16..20].copy_from_slice(&(rank as u32).to_le_bytes());
    bytes[20..].copy_from_slice(&(seat.world_size as u32).to_le_bytes());
    bytes
}

fn not_of_this_epoch() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "its hello is of no rank that this epoch waits for",
    )
}

/// A connection on which two hellos cross, and nothing is read beyond them.
#[derive(Debug)]
struct Greeting {
    stream: PolledStream,
    address: SocketAddr,
    sent_bytes: usize,
    hello: [u8; HELLO_BYTES],
    received_bytes: usize,
}

impl Greeting {
    /// `stream` must not block.
    fn new(stream: TcpStream, address: SocketAddr, peers: &PeerDoor, side: Side) -> io::Result<Self> {
        // Without it small frames wait for acknowledgements: slow, and still right.
        let _nodelay = stream.set_nodelay(true);
        Ok(Self {
            stream: peers.polled(stream, side)?,
            address,
            sent_bytes: 0,
            hello: [0; HELLO_BYTES],
            received_bytes: 0,
        })
    }

    /// True once all of it is out.
    fn send(&mut self, hello: &[u8; HELLO_BYTES]) -> io::Result<bool> {
        while !self.is_written() {
            match self.stream.write(&hello[self.sent_bytes..]) {
                Ok(bytes) => self.sent_bytes += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.stream.flush_some()?;
        Ok(self.is_sent())
    }

    /// The other side's hello, once all of it is here.
    fn receive(&mut self) -> io::Result<Option<[u8; HELLO_BYTES]>> {
        while !self.is_received() {
            match self.stream.read(&mut self.hello[self.received_bytes..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => self.received_bytes += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(self.hello))
    }

    fn is_written(&self) -> bool {
        self.sent_bytes == HELLO_BYTES
    }

    fn is_sent(&self) -> bool {
        self.is_written() && self.stream.is_flushed()
    }

    fn is_received(&self) -> bool {
        self.received_bytes == HELLO_BYTES
    }

    fn poll_fd(&self, reads: bool) -> PollFd<'_> {
        PollFd::from_borrowed_fd(self.stream.as_fd(), flags(self.stream.interest(reads, !reads)))
    }
}
