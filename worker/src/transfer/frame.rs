//! What travels on a transfer's connection: a hello, its answer, then headers, each with its cell behind it or with the
//! slot of shared memory that the cell lies in.
//!
//! All numbers are little-endian. A header carries its own checksum, because a length must not be believed before it is
//! known to be one.

use std::io::{self, Read, Write};

use kvasir_kv::{
    BlockCopy, BlockId, BlockTag, Epoch, KvHead, NumericsId, Rank, TaggedBlock, Ticket, TransferFault, TransferId,
};

use super::slots::SlotOffer;
use crate::collective::SegmentFile;

const MAGIC: u32 = u32::from_le_bytes(*b"Kvxf");
const VERSION: u32 = 2;
const HELLO_LEN: usize = 96;
const HEADER_LEN: usize = 52;
/// Longest reason of a refusal that is read.
const REASON_LEN_MAX: usize = 1024;

/// The first words of a source rank.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hello {
    pub ticket: Ticket,
    pub source_rank: Rank,
    pub target_rank: Rank,
    pub numerics: NumericsId,
    /// Where cells can lie instead of in the connection.
    pub offer: Option<SlotOffer>,
}

/// The answer to a hello.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Each cell is to follow its header.
    InStream,
    /// Headers are to name the slots that were offered.
    InSlots,
    Refused(String),
}

/// What comes with a cell's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub round: u32,
    /// Of the cell, in the round's set.
    pub index: u32,
    pub head: KvHead,
    pub copy: BlockCopy,
    pub bytes: u32,
    /// CRC-32C of the bytes.
    pub checksum: u32,
    /// Somebody waits for it.
    pub urgent: bool,
    /// Where the bytes lie, if they do not follow.
    pub slot: Option<u32>,
}

/// What a connection says that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error("the connection ended or broke: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Malformed(&'static str),
}

impl FrameError {
    pub fn fault(&self) -> TransferFault {
        match self {
            Self::Io(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                TransferFault::Deadline
            }
            Self::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => TransferFault::Frame,
            Self::Io(_) => TransferFault::Connection,
            Self::Malformed(_) => TransferFault::Frame,
        }
    }
}

impl Hello {
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut out = Writer::default();
        out.u32(MAGIC);
        out.u32(VERSION);
        out.u64(self.ticket.transfer.0);
        out.u64(self.ticket.secret);
        out.epoch(self.ticket.source);
        out.epoch(self.ticket.target);
        out.u32(self.source_rank.0);
        out.u32(self.target_rank.0);
        out.0.extend(self.numerics.0);
        out.offer(self.offer);
        out.seal();
        to.write_all(&out.0)
    }

    pub fn read(from: &mut impl Read) -> Result<Self, FrameError> {
        let mut bytes = [0; HELLO_LEN];
        from.read_exact(&mut bytes)?;
        let mut bytes = Reader::unseal(&bytes).ok_or(FrameError::Malformed("the hello is no hello"))?;
        if [bytes.u32(), bytes.u32()] != [MAGIC, VERSION] {
            return Err(FrameError::Malformed("the hello is of another protocol"));
        }
        Ok(Self {
            ticket: Ticket {
                transfer: TransferId(bytes.u64()),
                secret: bytes.u64(),
                source: bytes.epoch(),
                target: bytes.epoch(),
            },
            source_rank: Rank(bytes.u32()),
            target_rank: Rank(bytes.u32()),
            numerics: NumericsId(bytes.take()),
            offer: bytes.offer(),
        })
    }
}

impl Verdict {
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let (kind, reason) = match self {
            Self::InStream => (0, ""),
            Self::Refused(reason) => (1, reason.as_str()),
            Self::InSlots => (2, ""),
        };
        let len = reason.len().min(REASON_LEN_MAX);
        let mut out = vec![kind];
        out.extend((len as u32).to_le_bytes());
        out.extend(&reason.as_bytes()[..len]);
        to.write_all(&out)
    }

    pub fn read(from: &mut impl Read) -> Result<Self, FrameError> {
        let mut head = [0; 5];
        from.read_exact(&mut head)?;
        let len = Reader(&head[1..]).u32() as usize;
        if len > REASON_LEN_MAX {
            return Err(FrameError::Malformed("the answer to the hello is none"));
        }
        let mut reason = vec![0; len];
        from.read_exact(&mut reason)?;
        match head[0] {
            0 => Ok(Self::InStream),
            1 => Ok(Self::Refused(String::from_utf8_lossy(&reason).into_owned())),
            2 => Ok(Self::InSlots),
            _ => Err(FrameError::Malformed("the answer to the hello is none")),
        }
    }
}

impl Header {
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Writer::default();
        let (source, target) = (self.copy.source, self.copy.target);
        for number in [
            self.round,
            self.index,
            self.head.0,
            source.id.0,
            source.tag.0,
            target.id.0,
            target.tag.0,
            self.copy.written,
            self.bytes,
            self.checksum,
            u32::from(self.urgent),
            self.slot.map_or(0, |slot| slot.saturating_add(1)),
        ] {
            out.u32(number);
        }
        out.seal();
        out.0
    }

    /// Errors if the bytes with this checksum are not those that were sent.
    pub fn check(&self, found: u32) -> Result<(), (TransferFault, String)> {
        if found == self.checksum {
            return Ok(());
        }
        let (block, head, sent) = (self.copy.source.id, self.head, self.checksum);
        let reason = format!("block {block} of KV head {head} has checksum {found:08x}; sent was {sent:08x}");
        Err((TransferFault::Checksum, reason))
    }

    /// `None` at the end of the connection.
    pub fn read(from: &mut impl Read) -> Result<Option<Self>, FrameError> {
        let mut bytes = [0; HEADER_LEN];
        if from.read(&mut bytes[..1])? == 0 {
            return Ok(None);
        }
        from.read_exact(&mut bytes[1..])?;
        let mut bytes = Reader::unseal(&bytes).ok_or(FrameError::Malformed("a cell's header is damaged"))?;
        let (round, index, head) = (bytes.u32(), bytes.u32(), KvHead(bytes.u32()));
        let copy = BlockCopy {
            source: bytes.block(),
            target: bytes.block(),
            written: bytes.u32(),
        };
        Ok(Some(Self {
            round,
            index,
            head,
            copy,
            bytes: bytes.u32(),
            checksum: bytes.u32(),
            urgent: bytes.u32() != 0,
            slot: bytes.u32().checked_sub(1),
        }))
    }
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn u32(&mut self, number: u32) {
        self.0.extend(number.to_le_bytes());
    }

    fn u64(&mut self, number: u64) {
        self.0.extend(number.to_le_bytes());
    }

    fn epoch(&mut self, epoch: Epoch) {
        self.u64(epoch.term);
        self.u64(epoch.number);
    }

    /// No slots are as good as no offer.
    fn offer(&mut self, offer: Option<SlotOffer>) {
        let [count, process, descriptor] =
            offer.map_or([0; 3], |offer| [offer.count, offer.file.process, offer.file.descriptor]);
        [count, process, descriptor]
            .into_iter()
            .for_each(|number| self.u32(number));
    }

    /// Appends a checksum of all before it.
    fn seal(&mut self) {
        self.u32(crc32c::crc32c(&self.0));
    }
}

/// Reads from the front; whoever uses it knows how much there is.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// What a seal covers, if it is whole.
    fn unseal(bytes: &'a [u8]) -> Option<Self> {
        let (content, seal) = bytes.split_last_chunk::<4>()?;
        (crc32c::crc32c(content) == u32::from_le_bytes(*seal)).then_some(Self(content))
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (front, rest) = self
            .0
            .split_first_chunk()
            .expect("the length is a constant of the format");
        self.0 = rest;
        *front
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn epoch(&mut self) -> Epoch {
        Epoch {
            term: self.u64(),
            number: self.u64(),
        }
    }

    fn offer(&mut self) -> Option<SlotOffer> {
        let count = self.u32();
        let file = SegmentFile {
            process: self.u32(),
            descriptor: self.u32(),
        };
        (count > 0).then_some(SlotOffer { file, count })
    }

    fn block(&mut self) -> TaggedBlock {
        TaggedBlock {
            id: BlockId(self.u32()),
            tag: BlockTag(self.u32()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            ticket: Ticket {
                transfer: TransferId(7),
                secret: 0x0123_4567_89ab_cdef,
                source: Epoch { term: 1, number: 2 },
                target: Epoch { term: 3, number: 4 },
            },
            source_rank: Rank(5),
            target_rank: Rank(6),
            numerics: NumericsId(*b"numerics-of-this"),
            offer: Some(SlotOffer {
                file: SegmentFile {
                    process: 11,
                    descriptor: 12,
                },
                count: 13,
            }),
        }
    }

    fn header() -> Header {
        let block = |id, tag| TaggedBlock {
            id: BlockId(id),
            tag: BlockTag(tag),
        };
        Header {
            round: 1,
            index: 2,
            head: KvHead(3),
            copy: BlockCopy {
                source: block(4, 5),
                target: block(6, 7),
                written: 8,
            },
            bytes: 9,
            checksum: 10,
            urgent: true,
            slot: Some(0),
        }
    }

    #[test]
    fn a_hello_and_a_header_survive_and_no_flipped_bit_does() {
        let (mut greeting, mut head) = (Vec::new(), header().bytes());
        hello().write(&mut greeting).unwrap();
        assert_eq!((greeting.len(), head.len()), (HELLO_LEN, HEADER_LEN));
        assert_eq!(Hello::read(&mut greeting.as_slice()).unwrap(), hello());
        assert_eq!(Header::read(&mut head.as_slice()).unwrap(), Some(header()));
        for bit in 0..8 * HELLO_LEN {
            greeting[bit / 8] ^= 1 << (bit % 8);
            assert!(Hello::read(&mut greeting.as_slice()).is_err());
            greeting[bit / 8] ^= 1 << (bit % 8);
        }
        for bit in 0..8 * HEADER_LEN {
            head[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::read(&mut head.as_slice()).is_err());
            head[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_connection_may_end_between_cells_and_nowhere_else() {
        let head = header().bytes();
        assert!(Header::read(&mut [].as_slice()).unwrap().is_none());
        for len in 1..HEADER_LEN {
            let torn = Header::read(&mut &head[..len]).unwrap_err();
            assert_eq!(torn.fault(), TransferFault::Frame);
        }
    }

    #[test]
    fn a_verdict_survives_and_an_absurd_length_is_not_believed() {
        let refused = |why: &str| Verdict::Refused(why.to_owned());
        for verdict in [Verdict::InStream, Verdict::InSlots, refused("why"), refused("")] {
            let mut bytes = Vec::new();
            verdict.write(&mut bytes).unwrap();
            assert_eq!(Verdict::read(&mut bytes.as_slice()).unwrap(), verdict);
        }
        let absurd = [1, 0xff, 0xff, 0xff, 0xff];
        assert!(matches!(
            Verdict::read(&mut absurd.as_slice()),
            Err(FrameError::Malformed(_))
        ));
    }
}
