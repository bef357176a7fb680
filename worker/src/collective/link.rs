//! The connection to one peer, and how far the frames of the current exchange have got on it.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::AsFd;

use kvasir_runtime::tls::{Interest, PolledStream};
use rustix::event::{PollFd, PollFlags};

use super::CollectiveError;
use super::frame::{FrameHead, HEAD_BYTES};

/// How many payload bytes the peer is to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    Exactly(usize),
    AtMost(usize),
}

/// The connection to one peer. In each exchange one frame goes out and one comes in, both as far as they go without
/// blocking, so that two ranks that send at once never wait for each other.
#[derive(Debug)]
pub(super) struct Link {
    peer: usize,
    stream: PolledStream,
    outgoing: FrameHead,
    sent_bytes: usize,
    expected: Expected,
    head: [u8; HEAD_BYTES],
    received_bytes: usize,
    /// The incoming payload is its first `payload_bytes`; it never shrinks, so that nothing is zeroed twice.
    inbox: Vec<u8>,
    payload_bytes: usize,
}

/// Why a link cannot go on.
#[derive(Debug)]
pub(super) enum LinkError {
    Closed,
    Wrong(CollectiveError),
}

impl Link {
    pub fn new(peer: usize, stream: PolledStream) -> Self {
        Self {
            peer,
            stream,
            outgoing: FrameHead {
                content: super::content::Content::Bytes,
                sequence: 0,
                payload_bytes: 0,
            },
            sent_bytes: HEAD_BYTES,
            expected: Expected::Exactly(0),
            head: [0; HEAD_BYTES],
            received_bytes: HEAD_BYTES,
            inbox: Vec::new(),
            payload_bytes: 0,
        }
    }

    pub fn peer(&self) -> usize {
        self.peer
    }

    /// The payload of the frame that came in last.
    pub fn payload(&self) -> &[u8] {
        &self.inbox[..self.payload_bytes]
    }

    /// Starts an exchange; the last one is done.
    pub fn begin(&mut self, outgoing: FrameHead, expected: Expected) {
        assert!(self.is_done(), "one exchange after the other");
        self.outgoing = outgoing;
        self.expected = expected;
        self.sent_bytes = 0;
        self.received_bytes = 0;
        self.set_payload_bytes(match expected {
            Expected::Exactly(bytes) => bytes,
            Expected::AtMost(_) => 0,
        });
    }

    pub fn is_done(&self) -> bool {
        self.is_sent() && self.is_received()
    }

    /// Moves both frames as far as they go without blocking; true if anything moved.
    pub fn advance(&mut self, payload: &[u8]) -> Result<bool, LinkError> {
        let before = (self.sent_bytes, self.received_bytes);
        while !self.is_sent() && self.send_some(payload)? {}
        while !self.is_received() && self.receive_some()? {}
        Ok(before != (self.sent_bytes, self.received_bytes))
    }

    /// What the rest of the exchange waits for.
    pub fn poll_fd(&self) -> Option<PollFd<'_>> {
        let wanted = flags(self.stream.interest(!self.is_received(), !self.is_sent()));
        (!wanted.is_empty()).then(|| PollFd::from_borrowed_fd(self.stream.as_fd(), wanted))
    }

    fn is_written(&self) -> bool {
        self.sent_bytes == HEAD_BYTES + self.outgoing.payload_bytes as usize
    }

    fn is_sent(&self) -> bool {
        self.is_written() && self.stream.is_flushed()
    }

    fn is_received(&self) -> bool {
        self.received_bytes >= HEAD_BYTES && self.received_bytes - HEAD_BYTES == self.payload_bytes
    }

    fn send_some(&mut self, payload: &[u8]) -> Result<bool, LinkError> {
        if self.is_written() {
            let flushed = self.stream.flush_some();
            return flushed.map(|bytes| bytes > 0).map_err(|_| LinkError::Closed);
        }
        let moved = match self.sent_bytes.checked_sub(HEAD_BYTES) {
            Some(payload_sent) => self.stream.write(&payload[payload_sent..]),
            None => {
                let head = self.outgoing.to_bytes();
                self.stream
                    .write_vectored(&[IoSlice::new(&head[self.sent_bytes..]), IoSlice::new(payload)])
            }
        };
        let moved_bytes = moved_bytes(moved)?;
        self.sent_bytes += moved_bytes;
        Ok(moved_bytes > 0)
    }

    fn receive_some(&mut self) -> Result<bool, LinkError> {
        let payload = &mut self.inbox[..self.payload_bytes];
        let moved = match self.received_bytes.checked_sub(HEAD_BYTES) {
            Some(payload_received) => self.stream.read(&mut payload[payload_received..]),
            None => {
                let head = &mut self.head[self.received_bytes..];
                self.stream
                    .read_vectored(&mut [IoSliceMut::new(head), IoSliceMut::new(payload)])
            }
        };
        let moved_bytes = moved_bytes(moved)?;
        let had_head = self.received_bytes >= HEAD_BYTES;
        self.received_bytes += moved_bytes;
        if !had_head && self.received_bytes >= HEAD_BYTES {
            self.take_head()?;
        }
        Ok(moved_bytes > 0)
    }

    /// Checks the head that is now complete, before anything is believed of what it says.
    fn take_head(&mut self) -> Result<(), LinkError> {
        let FrameHead { content, sequence, .. } = self.outgoing;
        let found = FrameHead::payload_bytes_of(&self.head, content, sequence);
        match (found, self.expected) {
            (Some(found), Expected::Exactly(bytes)) if found == bytes as u64 => Ok(()),
            (Some(found), Expected::AtMost(limit)) if found <= limit as u64 => {
                self.set_payload_bytes(found as usize);
                Ok(())
            }
            (Some(found_bytes), Expected::AtMost(limit_bytes)) => {
                Err(LinkError::Wrong(CollectiveError::GatherTooLong {
                    rank: self.peer,
                    found_bytes,
                    limit_bytes,
                }))
            }
            _ => Err(LinkError::Wrong(CollectiveError::OutOfStep {
                rank: self.peer,
                expected: format!("{content:?} frame {sequence}, {:?} bytes", self.expected),
                found: format!("head {:02x?}", self.head),
            })),
        }
    }

    fn set_payload_bytes(&mut self, payload_bytes: usize) {
        self.payload_bytes = payload_bytes;
        if self.inbox.len() < payload_bytes {
            self.inbox.resize(payload_bytes, 0);
        }
    }
}

pub(super) fn flags(interest: Interest) -> PollFlags {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN, interest.readable);
    flags.set(PollFlags::OUT, interest.writable);
    flags
}

/// 0 if the stream would block. A peer's end and a broken connection are the same to us.
fn moved_bytes(outcome: io::Result<usize>) -> Result<usize, LinkError> {
    match outcome {
        Ok(0) => Err(LinkError::Closed),
        Ok(bytes) => Ok(bytes),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
        Err(_) => Err(LinkError::Closed),
    }
}
