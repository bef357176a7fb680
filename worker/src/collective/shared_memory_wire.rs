//! The wire between ranks of one host: one segment that all of them map.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use super::arrival::Arrivals;
use super::content::Content;
use super::endpoint::{Endpoint, SegmentFile};
use super::member::Wire;
use super::patience::Patience;
use super::rounding::{round_sums, slice_of};
use super::segment::{PIECE_WORDS, Segment};
use super::shared_memory::{copy_in, copy_out};
use super::{CollectiveError, GATHER_BYTES_MAX, Seat, Transport};

/// Up to here every rank sums everything, with one meeting; beyond, each sums its slice, with two.
const SMALL_WORDS: usize = 2048;

/// Sums that are formed together, on the stack.
const STRIP_WORDS: usize = 256;

const PIECE_BYTES: usize = PIECE_WORDS * size_of::<u64>();

/// A rank whose peers can map the segment.
#[derive(Debug)]
pub(super) struct SharedMemoryListening {
    seat: Seat,
    /// Rank 0 alone has made a segment, and keeps the descriptor open until all have mapped it.
    made: Option<(Segment, OwnedFd)>,
}

impl SharedMemoryListening {
    pub fn prepare(seat: Seat) -> Result<(Self, Endpoint), CollectiveError> {
        if seat.rank != 0 {
            return Ok((Self { seat, made: None }, Endpoint::segment_guest()));
        }
        let (segment, file) = Segment::create(&seat)?;
        let source = SegmentFile {
            process: std::process::id(),
            descriptor: file.as_raw_fd() as u32,
        };
        Ok((
            Self {
                seat,
                made: Some((segment, file)),
            },
            Endpoint::segment(source),
        ))
    }

    pub fn connect(
        self,
        endpoints: &[Endpoint],
        patience: &mut Patience<'_>,
    ) -> Result<SharedMemoryWire, CollectiveError> {
        let Self { seat, made } = self;
        let (segment, file) = match made {
            Some((segment, file)) => (segment, Some(file)),
            None => (Segment::open(source_of(&endpoints[0])?, &seat)?, None),
        };
        if !segment.claim(seat.rank) {
            let reason = "somebody else has this place".to_owned();
            return Err(CollectiveError::Refused {
                rank: seat.rank,
                reason,
            });
        }
        let mut arrivals = Arrivals::new(segment, seat.rank, seat.world_size);
        arrivals.meet(patience)?;
        drop(file);
        Ok(SharedMemoryWire { arrivals })
    }
}

fn source_of(endpoint: &Endpoint) -> Result<SegmentFile, CollectiveError> {
    endpoint.as_segment().ok_or_else(|| CollectiveError::BadEndpoint {
        rank: 0,
        endpoint: endpoint.0.clone(),
        transport: Transport::SharedMemory,
    })
}

/// The wire between ranks of one host. Every exchange writes the buffer of the coming phase, meets the peers, and
/// reads theirs before the next meeting: `arrival` says why that is safe.
#[derive(Debug)]
pub(super) struct SharedMemoryWire {
    pub(super) arrivals: Arrivals,
}

impl Wire for SharedMemoryWire {
    fn transport(&self) -> Transport {
        Transport::SharedMemory
    }

    fn all_reduce(
        &mut self,
        sums: &[i64],
        out: &mut [f32],
        patience: &mut Patience<'_>,
    ) -> Result<(), CollectiveError> {
        if sums.len() <= SMALL_WORDS {
            return self.reduce_small(sums, out, patience);
        }
        for (sums, out) in sums.chunks(PIECE_WORDS).zip(out.chunks_mut(PIECE_WORDS)) {
            self.reduce_large(sums, out, patience)?;
        }
        Ok(())
    }

    fn all_gather(
        &mut self,
        mine: &[u8],
        gathered: &mut [Vec<u8>],
        patience: &mut Patience<'_>,
    ) -> Result<(), CollectiveError> {
        gathered[self.arrivals.rank()].extend_from_slice(mine);
        let mut sent_bytes = 0;
        loop {
            let rest = &mine[sent_bytes.min(mine.len())..];
            // The tag says how much is left, so that all know how many rounds there are.
            self.send(Content::Bytes, rest.len(), |words| {
                copy_in(&rest[..rest.len().min(PIECE_BYTES)], words)
            });
            self.arrivals.meet(patience)?;
            let mut longest = rest.len();
            for peer in self.arrivals.peers() {
                longest = longest.max(self.collect_bytes(peer, sent_bytes, &mut gathered[peer])?);
            }
            if longest <= PIECE_BYTES {
                return Ok(());
            }
            sent_bytes += PIECE_BYTES;
        }
    }
}

impl SharedMemoryWire {
    /// Everybody sums everything: one meeting.
    fn reduce_small(
        &mut self,
        sums: &[i64],
        out: &mut [f32],
        patience: &mut Patience<'_>,
    ) -> Result<(), CollectiveError> {
        self.send(Content::Sums, sums.len(), |words| copy_in(sums, words));
        self.arrivals.meet(patience)?;
        self.sum_strips(Content::Sums, sums, 0, sums.len(), |start, strip| {
            round_sums(strip, &mut out[start..start + strip.len()]);
        })
    }

    /// Everybody sums and rounds their slice, then all collect the floats: two meetings.
    fn reduce_large(
        &mut self,
        sums: &[i64],
        out: &mut [f32],
        patience: &mut Patience<'_>,
    ) -> Result<(), CollectiveError> {
        let (rank, world_size, len) = (self.arrivals.rank(), self.arrivals.world_size(), sums.len());
        let mine = slice_of(rank, world_size, len);
        self.send(Content::Scattered, len, |words| {
            copy_in(&sums[..mine.start], words);
            copy_in(&sums[mine.end..], &words[mine.end..]);
        });
        self.arrivals.meet(patience)?;

        self.sum_strips(Content::Scattered, sums, mine.start, mine.end, |start, strip| {
            round_sums(strip, &mut out[start..start + strip.len()]);
        })?;
        self.send(Content::Rounded, len, |words| copy_in(&out[mine.clone()], words));
        self.arrivals.meet(patience)?;

        for peer in self.arrivals.peers() {
            let words = self.receive(peer, Content::Rounded, len)?;
            copy_out(words, &mut out[slice_of(peer, world_size, len)]);
        }
        Ok(())
    }

    /// Hands the sums over all ranks of `[start, end)` to `consume`, strip by strip. sums: [len], our own.
    fn sum_strips(
        &self,
        content: Content,
        sums: &[i64],
        start: usize,
        end: usize,
        mut consume: impl FnMut(usize, &[i64]),
    ) -> Result<(), CollectiveError> {
        for peer in self.arrivals.peers() {
            self.receive(peer, content, sums.len())?;
        }
        let (mut strip, mut theirs) = ([0_i64; STRIP_WORDS], [0_i64; STRIP_WORDS]);
        for strip_start in (start..end).step_by(STRIP_WORDS) {
            let range = strip_start..(strip_start + STRIP_WORDS).min(end);
            let strip = &mut strip[..range.len()];
            strip.copy_from_slice(&sums[range.clone()]);
            for peer in self.arrivals.peers() {
                let (_, words) = self.arrivals.segment().buffer(peer, self.arrivals.parity());
                let theirs = &mut theirs[..range.len()];
                copy_out(&words[range.clone()], theirs);
                for (sum, theirs) in strip.iter_mut().zip(theirs) {
                    *sum = sum.wrapping_add(*theirs);
                }
            }
            consume(strip_start, strip);
        }
        Ok(())
    }

    /// Fills our buffer of the coming phase.
    fn send(&self, content: Content, len: usize, fill: impl FnOnce(&[AtomicU64])) {
        let (tag, words) = self
            .arrivals
            .segment()
            .buffer(self.arrivals.rank(), self.arrivals.next_parity());
        tag.store(tag_of(content, len as u64), Ordering::Relaxed);
        fill(words);
    }

    /// The peer's buffer of this phase, if it holds what we are here for. words: [PIECE_WORDS]
    fn receive(&self, peer: usize, content: Content, len: usize) -> Result<&[AtomicU64], CollectiveError> {
        let (tag, words) = self.arrivals.segment().buffer(peer, self.arrivals.parity());
        let found = tag.load(Ordering::Relaxed);
        if found == tag_of(content, len as u64) {
            Ok(words)
        } else {
            Err(out_of_step(peer, content, len, found))
        }
    }

    /// Appends the peer's piece, and returns how many bytes it had left, this piece included.
    fn collect_bytes(
        &self,
        peer: usize,
        received_bytes: usize,
        target: &mut Vec<u8>,
    ) -> Result<usize, CollectiveError> {
        let (tag, words) = self.arrivals.segment().buffer(peer, self.arrivals.parity());
        let found = tag.load(Ordering::Relaxed);
        let left = found & TAG_LEN_MAX;
        if found != tag_of(Content::Bytes, left) {
            return Err(out_of_step(peer, Content::Bytes, 0, found));
        }
        let found_bytes = received_bytes as u64 + left;
        if left > 0 && found_bytes > GATHER_BYTES_MAX as u64 {
            return Err(CollectiveError::GatherTooLong {
                rank: peer,
                found_bytes,
                limit_bytes: GATHER_BYTES_MAX,
            });
        }
        let left = left as usize;
        let start = target.len();
        target.resize(start + left.min(PIECE_BYTES), 0);
        copy_out(words, &mut target[start..]);
        Ok(left)
    }
}

const TAG_LEN_MAX: u64 = (1 << 56) - 1;

fn tag_of(content: Content, len: u64) -> u64 {
    (content as u64) << 56 | len
}

fn out_of_step(rank: usize, content: Content, len: usize, found: u64) -> CollectiveError {
    CollectiveError::OutOfStep {
        rank,
        expected: format!("{content:?} of {len}"),
        found: format!("content {} of {}", found >> 56, found & TAG_LEN_MAX),
    }
}
