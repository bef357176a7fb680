//! A connection to a peer that blocks: one thread reads it while another one writes. Plain, or TLS.
//!
//! The socket is never waited for with the state of TLS locked: a reader that waits keeps no writer from its turn.

use std::{
    io::{self, IoSlice, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustls::Connection;

/// Read from the socket at a time: a record and its head fit.
const READ_BYTES: usize = 17 << 10;
/// Encrypted at a time; less than what a connection holds back.
const WRITE_BYTES: usize = 32 << 10;

/// Clones are the same connection. One thread reads at a time.
#[derive(Clone, Debug)]
pub struct SharedStream(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    socket: TcpStream,
    tls: Option<Tls>,
}

#[derive(Debug)]
struct Tls {
    state: Mutex<State>,
    /// Records leave in the order in which they were encrypted. Taken before `state`.
    writing: Mutex<()>,
}

#[derive(Debug)]
struct State {
    connection: Connection,
    /// Come from the socket; the first `taken` bytes are with the connection, which takes no more while it holds something
    /// that nobody has read.
    arrived: Vec<u8>,
    taken: usize,
}

impl SharedStream {
    pub fn plain(socket: TcpStream) -> Self {
        Self(Arc::new(Inner { socket, tls: None }))
    }

    /// Waits for the handshake until `deadline` at most, however bytes dribble in.
    pub fn encrypted(socket: TcpStream, mut connection: Connection, deadline: Instant) -> io::Result<Self> {
        let timeouts = (socket.read_timeout()?, socket.write_timeout()?);
        let done = shake_hands(&socket, &mut connection, deadline);
        if done.is_err() {
            // The other side is told why; if it does not listen, that is its loss.
            let _ = connection.write_tls(&mut &socket);
        }
        done?;
        socket.set_read_timeout(timeouts.0)?;
        socket.set_write_timeout(timeouts.1)?;
        let tls = Tls {
            state: Mutex::new(State {
                connection,
                arrived: Vec::new(),
                taken: 0,
            }),
            writing: Mutex::default(),
        };
        Ok(Self(Arc::new(Inner { socket, tls: Some(tls) })))
    }

    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.socket.peer_addr()
    }

    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.0.socket.set_read_timeout(timeout)
    }

    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.0.socket.set_write_timeout(timeout)
    }

    /// Reads and writes end at once, those of other threads too.
    pub fn cut(&self) {
        // It may have ended by itself.
        let _ = self.0.socket.shutdown(Shutdown::Both);
    }

    /// Reads until then at most, however bytes dribble in.
    pub fn until(&mut self, deadline: Instant) -> Until<'_> {
        Until { stream: self, deadline }
    }
}

fn shake_hands(socket: &TcpStream, connection: &mut Connection, deadline: Instant) -> io::Result<()> {
    let mut socket = socket;
    while connection.is_handshaking() || connection.wants_write() {
        let left = left(deadline)?;
        if connection.wants_write() {
            socket.set_write_timeout(Some(left))?;
            connection.write_tls(&mut socket)?;
        } else {
            socket.set_read_timeout(Some(left))?;
            if connection.read_tls(&mut socket)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let processed = connection.process_new_packets();
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }
    Ok(())
}

fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.checked_duration_since(Instant::now()) {
        Some(left) if !left.is_zero() => Ok(left),
        _ => Err(io::ErrorKind::TimedOut.into()),
    }
}

impl Tls {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, socket: &TcpStream, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            // A statement of its own: the lock ends with it.
            let read = self.lock().read(bytes)?;
            match read {
                Some(read) => return Ok(read),
                None if self.receive(socket)? == 0 => return Ok(0),
                None => {}
            }
        }
    }

    /// Waits for the socket without the lock.
    fn receive(&self, mut socket: &TcpStream) -> io::Result<usize> {
        let mut encrypted = [0; READ_BYTES];
        let len = socket.read(&mut encrypted)?;
        self.lock().arrive(&encrypted[..len]);
        Ok(len)
    }

    fn write(&self, mut socket: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut encrypted = Vec::new();
        let written = self.lock().encrypt(slices, &mut encrypted)?;
        socket.write_all(&encrypted)?;
        Ok(written)
    }
}

impl State {
    fn arrive(&mut self, encrypted: &[u8]) {
        self.arrived.drain(..self.taken);
        self.taken = 0;
        self.arrived.extend_from_slice(encrypted);
    }

    /// `None` if more must come first.
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.connection.reader().read(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read.map(Some),
            }
            let mut rest = &self.arrived[self.taken..];
            if rest.is_empty() {
                return Ok(None);
            }
            self.taken += self.connection.read_tls(&mut rest)?;
            let processed = self.connection.process_new_packets();
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }

    /// As much of the slices as is encrypted at a time.
    fn encrypt(&mut self, slices: &[IoSlice<'_>], encrypted: &mut Vec<u8>) -> io::Result<usize> {
        let mut taken = 0;
        for slice in slices {
            let part = &slice[..slice.len().min(WRITE_BYTES - taken)];
            self.connection.writer().write_all(part)?;
            taken += part.len();
        }
        while self.connection.wants_write() {
            self.connection.write_tls(encrypted)?;
        }
        Ok(taken)
    }
}

impl Read for SharedStream {
    /// 0 at the end, whether or not it was announced: what is told here says itself when it is whole.
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut socket = &self.0.socket;
        match &self.0.tls {
            None => socket.read(bytes),
            Some(tls) => tls.read(socket, bytes),
        }
    }
}

impl Write for SharedStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut socket = &self.0.socket;
        match &self.0.tls {
            None => socket.write_vectored(slices),
            Some(tls) => tls.write(socket, slices),
        }
    }

    /// Nothing is held back.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reader that is impatient. Leaves the stream with a read timeout.
#[derive(Debug)]
pub struct Until<'a> {
    stream: &'a mut SharedStream,
    deadline: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(left(self.deadline)?))?;
        self.stream.read(bytes)
    }
}
