//! A connection to a peer that never blocks: one thread moves it as far as it goes, then polls. Plain, or TLS.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    net::TcpStream,
    os::fd::{AsFd, BorrowedFd},
};

use rustls::Connection;

/// Reads and writes of one with TLS are `WouldBlock` until the handshake is over; they drive it.
#[derive(Debug)]
pub struct PolledStream {
    /// Does not block.
    socket: TcpStream,
    tls: Option<Box<Connection>>,
}

/// What a connection waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interest {
    pub readable: bool,
    pub writable: bool,
}

impl PolledStream {
    /// `socket` must not block.
    pub fn new(socket: TcpStream, tls: Option<Connection>) -> Self {
        Self {
            socket,
            tls: tls.map(Box::new),
        }
    }

    /// Whether all that was written has left this process.
    pub fn is_flushed(&self) -> bool {
        self.tls
            .as_ref()
            .is_none_or(|tls| !tls.wants_write() && !tls.is_handshaking())
    }

    /// Moves what was written and has not left yet; returns how many bytes did.
    pub fn flush_some(&mut self) -> io::Result<usize> {
        match &mut self.tls {
            None => Ok(0),
            Some(tls) => flush(tls, &mut self.socket),
        }
    }

    /// What to poll for by who wants to read, or to write; a handshake has needs of its own.
    pub fn interest(&self, reads: bool, writes: bool) -> Interest {
        match &self.tls {
            None => Interest {
                readable: reads,
                writable: writes,
            },
            Some(tls) => Interest {
                readable: reads || tls.is_handshaking(),
                writable: tls.wants_write() || writes && !tls.is_handshaking(),
            },
        }
    }

    /// The connection, once it can carry bytes.
    fn ready(&mut self) -> io::Result<Option<(&mut Connection, &mut TcpStream)>> {
        let Some(tls) = &mut self.tls else {
            return Ok(None);
        };
        flush(tls, &mut self.socket)?;
        while tls.is_handshaking() {
            if tls.read_tls(&mut self.socket)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            process(tls, &mut self.socket)?;
            flush(tls, &mut self.socket)?;
        }
        Ok(Some((tls.as_mut(), &mut self.socket)))
    }
}

/// Not an error if the socket takes nothing now.
fn flush(tls: &mut Connection, socket: &mut TcpStream) -> io::Result<usize> {
    let mut moved = 0;
    while tls.wants_write() {
        match tls.write_tls(socket) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => moved += bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(moved)
}

fn process(tls: &mut Connection, socket: &mut TcpStream) -> io::Result<()> {
    match tls.process_new_packets() {
        Ok(_) => Ok(()),
        Err(error) => {
            // The other side is told why; if it does not listen, that is its loss.
            let _ = flush(tls, socket);
            Err(io::Error::new(io::ErrorKind::InvalidData, error))
        }
    }
}

impl Read for PolledStream {
    /// 0 at the end, whether or not it was announced: what is told here says itself when it is whole.
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let Some((tls, socket)) = self.ready()? else {
            return self.socket.read(bytes);
        };
        loop {
            match tls.reader().read(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            tls.read_tls(socket)?;
            process(tls, socket)?;
        }
    }

    fn read_vectored(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        if self.tls.is_none() {
            return self.socket.read_vectored(slices);
        }
        match slices.iter_mut().find(|slice| !slice.is_empty()) {
            Some(slice) => self.read(slice),
            None => Ok(0),
        }
    }
}

impl Write for PolledStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some((tls, socket)) = self.ready()? else {
            return self.socket.write_vectored(slices);
        };
        if tls.wants_write() {
            // What was written before comes first, and nothing piles up.
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let written = tls.writer().write_vectored(slices)?;
        flush(tls, socket)?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flush_some().map(drop)
    }
}

impl AsFd for PolledStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
