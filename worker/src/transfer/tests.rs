//! Cells from strangers, torn, forged, replayed, damaged and late, over real sockets.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
    time::Duration,
};

use kvasir_kv::{
    BlockCopy, BlockId, BlockTag, Epoch, KvHead, NumericsId, Rank, TaggedBlock, Ticket, TransferFault, TransferId,
};

use super::{
    frame::{Header, Hello, Verdict},
    hub::{CellContent, Failure, TransferHub},
    listen,
};

pub(super) const CELL_BYTES: usize = 96;
/// Long enough for any machine; nothing waits for it unless something is wrong.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Target {
    pub hub: Arc<TransferHub>,
    pub woken: Receiver<()>,
    pub address: SocketAddr,
}

impl Target {
    pub fn new() -> Self {
        let (wake, woken) = channel();
        let hub = Arc::new(TransferHub::new(numerics(), CELL_BYTES, move || {
            // The test may be over.
            let _ = wake.send(());
        }));
        let address = listen(IpAddr::V4(Ipv4Addr::LOCALHOST), Arc::clone(&hub)).unwrap();
        Self { hub, woken, address }
    }

    /// One that waits for the good ticket.
    pub fn open() -> Self {
        let target = Self::new();
        target.hub.announce(hello().ticket, Rank(0), Rank(1));
        target
    }

    /// Connects and says this; returns the connection and why it was refused.
    pub fn greet(&self, hello: &Hello) -> (TcpStream, Option<String>) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        hello.write(&mut stream).unwrap();
        let refusal = match Verdict::read(&mut stream).unwrap() {
            Verdict::Refused(reason) => Some(reason),
            Verdict::InStream | Verdict::InSlots => None,
        };
        (stream, refusal)
    }

    pub fn failure(&self) -> Failure {
        self.failure_after(0)
    }

    /// The first thing that happens after so many others.
    pub fn failure_after(&self, others: usize) -> Failure {
        for _ in 0..others {
            self.woken.recv_timeout(PATIENCE).expect("others happen");
        }
        self.woken.recv_timeout(PATIENCE).expect("something happens");
        self.hub.take_failure().expect("a failure")
    }
}

fn numerics() -> NumericsId {
    NumericsId([7; 16])
}

pub(super) fn hello() -> Hello {
    Hello {
        ticket: Ticket {
            transfer: TransferId(3),
            secret: 99,
            source: Epoch { term: 1, number: 4 },
            target: Epoch { term: 1, number: 5 },
        },
        source_rank: Rank(0),
        target_rank: Rank(1),
        numerics: numerics(),
        offer: None,
    }
}

pub(super) fn cell() -> (Header, Vec<u8>) {
    let bytes: Vec<u8> = (0..CELL_BYTES as u8).collect();
    let block = |id| TaggedBlock {
        id: BlockId(id),
        tag: BlockTag(1),
    };
    let header = Header {
        round: 0,
        index: 2,
        head: KvHead(1),
        copy: BlockCopy {
            source: block(4),
            target: block(6),
            written: 16,
        },
        bytes: CELL_BYTES as u32,
        checksum: crc32c::crc32c(&bytes),
        urgent: false,
        slot: None,
    };
    (header, bytes)
}

#[test]
fn a_cell_with_its_ticket_comes_as_it_was_sent() {
    let target = Target::open();
    let (mut stream, refusal) = target.greet(&hello());
    assert_eq!(refusal, None);
    let (header, bytes) = cell();
    stream.write_all(&header.bytes()).unwrap();
    stream.write_all(&bytes).unwrap();
    target.woken.recv_timeout(PATIENCE).unwrap();
    assert!(target.hub.take(false).is_none(), "nobody waits for it");
    let arrived = target.hub.take(true).unwrap();
    assert_eq!(arrived.header, header);
    assert!(matches!(arrived.content, CellContent::Private(found) if found == bytes));
}

#[test]
fn a_ticket_that_comes_before_its_announcement_is_waited_for() {
    let target = Target::new();
    let address = target.address;
    let early = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        hello().write(&mut stream).unwrap();
        Verdict::read(&mut stream).unwrap()
    });
    target.hub.announce(hello().ticket, Rank(0), Rank(1));
    assert_eq!(early.join().unwrap(), Verdict::InStream);
}

#[test]
fn tickets_that_are_forged_old_foreign_or_shown_twice_open_nothing() {
    let forged = |change: fn(&mut Hello)| {
        let mut forged = hello();
        change(&mut forged);
        forged
    };
    let cases = [
        (
            forged(|hello| hello.ticket.secret += 1),
            TransferFault::Ticket,
            "forged",
        ),
        (
            forged(|hello| hello.target_rank = Rank(2)),
            TransferFault::Ticket,
            "forged",
        ),
        (
            forged(|hello| hello.ticket.source.number -= 1),
            TransferFault::Epoch,
            "from epoch 1.3",
        ),
        (
            forged(|hello| hello.ticket.target.number += 1),
            TransferFault::Epoch,
            "to 1.6",
        ),
        (
            forged(|hello| hello.numerics.0[3] ^= 1),
            TransferFault::Numerics,
            "cells of numerics",
        ),
    ];
    for (bad, fault, why) in cases {
        let target = Target::open();
        let (mut stream, refusal) = target.greet(&bad);
        assert!(refusal.unwrap().contains(why), "{why}");
        assert_eq!(target.failure().fault, fault, "{why}");
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the connection is closed");
        // The right one is still welcome.
        assert_eq!(target.greet(&hello()).1, None);
    }
    let target = Target::open();
    let (_first, refusal) = target.greet(&hello());
    assert_eq!(refusal, None);
    let (_second, refusal) = target.greet(&hello());
    assert!(refusal.unwrap().contains("shown before"));
    assert_eq!(target.failure().fault, TransferFault::Ticket);
}

#[test]
fn what_is_no_hello_is_counted_as_a_stranger() {
    let target = Target::open();
    let mut stream = TcpStream::connect(target.address).unwrap();
    stream.write_all(&[b'G'; 200]).unwrap();
    let failure = target.failure();
    assert_eq!(
        (failure.fault, failure.transfer),
        (TransferFault::Ticket, TransferId::default())
    );
}

#[test]
fn damaged_torn_and_oversized_cells_are_refused_and_never_handed_on() {
    type Spoil = fn(&mut Header, &mut Vec<u8>);
    let cases: [(Spoil, TransferFault); 4] = [
        (|_, bytes| bytes[50] ^= 4, TransferFault::Checksum),
        (|header, _| header.checksum ^= 1, TransferFault::Checksum),
        (|_, bytes| bytes.truncate(40), TransferFault::Frame),
        (|header, _| header.bytes = u32::MAX, TransferFault::Cell),
    ];
    for (spoil, fault) in cases {
        let target = Target::open();
        let (mut stream, refusal) = target.greet(&hello());
        assert_eq!(refusal, None);
        let (mut header, mut bytes) = cell();
        spoil(&mut header, &mut bytes);
        stream.write_all(&header.bytes()).unwrap();
        // The target may have closed it by now.
        let _ = stream.write_all(&bytes);
        drop(stream);
        assert_eq!(target.failure().fault, fault);
        assert!(target.hub.take(true).is_none(), "{fault}");
    }
}

#[test]
fn an_ended_transfer_is_cut_off_and_its_late_comers_are_no_strangers() {
    let target = Target::open();
    let (mut stream, refusal) = target.greet(&hello());
    assert_eq!(refusal, None);
    let (header, bytes) = cell();
    stream.write_all(&header.bytes()).unwrap();
    stream.write_all(&bytes).unwrap();
    target.woken.recv_timeout(PATIENCE).unwrap();
    target.hub.end(TransferId(3));
    assert!(target.hub.take(true).is_none(), "what came is forgotten");
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "the connection is closed");
    let (_late, refusal) = target.greet(&hello());
    assert!(refusal.unwrap().contains("has ended"));
    assert!(target.hub.take_failure().is_none(), "nobody is to blame");
}
