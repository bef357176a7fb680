//! The layout of one epoch's shared memory.
//!
//! A header that says what it is, one line of counters per rank, and for each rank two buffers that it alone writes.
//! Whatever a peer writes here is only ever compared or added: no length or offset from the segment is used without
//! a check, so a peer that scribbles gives wrong sums at worst, which its epoch's end discards.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::endpoint::SegmentFile;
use super::shared_memory::{MemorySize, SharedMemory};
use super::{CollectiveError, EpochNonce, Seat};

const MAGIC: u32 = u32::from_le_bytes(*b"Kvsr");
const VERSION: u32 = 1;

/// Words of the header and of each rank's line: two cache lines, since processors fetch them in pairs.
const LINE_WORDS: usize = 32;

/// Elements of an all-reduce that one buffer holds: longer ones are worked off in pieces that stay in L2.
pub(super) const PIECE_WORDS: usize = 1 << 15;

/// A buffer: one word that says what it holds, then the piece; padded so that buffers share no cache line.
const BUFFER_WORDS: usize = PIECE_WORDS + 16;

/// The counters of one rank. Everybody reads them, and only `sleepers` and `claimed` are written by others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line<'a> {
    words: &'a [AtomicU32],
}

impl<'a> Line<'a> {
    /// The last phase this rank has reached.
    #[inline]
    pub fn arrived(self) -> &'a AtomicU32 {
        &self.words[0]
    }

    /// How many sleep until `arrived` changes.
    #[inline]
    pub fn sleepers(self) -> &'a AtomicU32 {
        &self.words[1]
    }

    /// 1 once somebody sits here.
    pub fn claimed(self) -> &'a AtomicU32 {
        &self.words[2]
    }

    /// 1 once this rank has let go of the segment.
    pub fn departed(self) -> &'a AtomicU32 {
        &self.words[3]
    }
}

/// One epoch's shared memory, checked.
#[derive(Debug)]
pub(super) struct Segment {
    memory: SharedMemory,
}

impl Segment {
    /// Makes the segment of a new epoch; peers can open it while the descriptor is open.
    pub fn create(seat: &Seat) -> Result<(Segment, OwnedFd), CollectiveError> {
        let (memory, file) = SharedMemory::create(size(seat.world_size))?;
        for (word, value) in memory.control().iter().zip(header(seat.nonce, seat.world_size)) {
            word.store(value, Ordering::Release);
        }
        Ok((Segment { memory }, file))
    }

    /// Opens the segment of rank 0. Refused if it is not one, or one of another epoch.
    pub fn open(source: SegmentFile, seat: &Seat) -> Result<Segment, CollectiveError> {
        let refused = |reason: &str| CollectiveError::Refused {
            rank: 0,
            reason: reason.to_owned(),
        };
        let memory = SharedMemory::open(source, size(seat.world_size))?
            .ok_or_else(|| refused("its endpoint is not a sealed segment for a group of this size"))?;
        let found = memory.control().iter().map(|word| word.load(Ordering::Acquire));
        if !found.take(HEADER_LEN).eq(header(seat.nonce, seat.world_size)) {
            return Err(refused("its segment is of another epoch or version"));
        }
        Ok(Segment { memory })
    }

    /// Takes the rank's place; false if somebody has it already.
    pub fn claim(&self, rank: usize) -> bool {
        self.line(rank).claimed().swap(1, Ordering::AcqRel) == 0
    }

    #[inline]
    pub fn line(&self, rank: usize) -> Line<'_> {
        let start = (rank + 1) * LINE_WORDS;
        Line {
            words: &self.memory.control()[start..start + LINE_WORDS],
        }
    }

    /// One of the two buffers that `rank` writes: its tag, and [PIECE_WORDS] data words.
    #[inline]
    pub fn buffer(&self, rank: usize, parity: u32) -> (&AtomicU64, &[AtomicU64]) {
        let start = (2 * rank + (parity & 1) as usize) * BUFFER_WORDS;
        let words = &self.memory.data()[start..start + 1 + PIECE_WORDS];
        (&words[0], &words[1..])
    }
}

const HEADER_LEN: usize = 6;

fn header(nonce: EpochNonce, world_size: usize) -> [u32; HEADER_LEN] {
    [
        MAGIC,
        VERSION,
        nonce.0 as u32,
        (nonce.0 >> 32) as u32,
        world_size as u32,
        BUFFER_WORDS as u32,
    ]
}

fn size(world_size: usize) -> MemorySize {
    MemorySize {
        control_words: (world_size + 1) * LINE_WORDS,
        data_words: world_size * 2 * BUFFER_WORDS,
    }
}
