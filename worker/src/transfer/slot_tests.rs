//! Cells through shared memory: what comes, and what is refused of a source that names wrong slots or changes them.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use kvasir_kv::{Rank, TransferFault};

use super::{
    frame::{Header, Hello, Verdict},
    hub::{ArrivedCell, CellContent},
    rank_transfers::import,
    sender::CellSender,
    slot_memory::SlotMemory,
    slots::{SLOTS, SlotOffer},
    tests::{CELL_BYTES, PATIENCE, Target, cell, hello},
};
use crate::{collective::SegmentFile, rank::tests::OneCell};

/// A source that may do what it wants.
struct Source {
    stream: TcpStream,
    slots: Vec<SlotMemory>,
    verdict: Verdict,
}

fn offer_of(file: &OwnedFd, count: u32) -> SlotOffer {
    SlotOffer {
        file: SegmentFile {
            process: std::process::id(),
            descriptor: file.as_raw_fd() as u32,
        },
        count,
    }
}

impl Source {
    fn connect(target: &Target) -> Self {
        let (slots, file) = SlotMemory::make(SLOTS, CELL_BYTES).unwrap();
        let (stream, verdict) = greet(target, offer_of(&file, SLOTS));
        Self { stream, slots, verdict }
    }

    /// Puts the cell into a slot and names one.
    fn send(&mut self, lies: usize, named: u32) {
        let (header, bytes) = cell();
        self.slots[lies].copy_from_slice(&bytes);
        let slot = Some(named);
        self.stream.write_all(&Header { slot, ..header }.bytes()).unwrap();
    }

    /// The slot that comes back next; `None` at the end.
    fn slot_back(&mut self) -> Option<u32> {
        let mut index = [0; 4];
        let came = self.stream.read_exact(&mut index);
        came.is_ok().then(|| u32::from_le_bytes(index))
    }
}

fn greet(target: &Target, offer: SlotOffer) -> (TcpStream, Verdict) {
    let mut stream = TcpStream::connect(target.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let offer = Some(offer);
    Hello { offer, ..hello() }.write(&mut stream).unwrap();
    let verdict = Verdict::read(&mut stream).unwrap();
    (stream, verdict)
}

/// What the rank finds in a cell, and whether it is what was sent.
fn look(arrived: &ArrivedCell) -> (Vec<u8>, bool) {
    let CellContent::Slot(slot) = &arrived.content else {
        panic!("it came through the connection");
    };
    let mut found = vec![0; CELL_BYTES];
    let checksum = slot.copy(&mut found);
    (found, arrived.header.check(checksum).is_ok())
}

#[test]
fn a_cell_comes_in_the_slot_that_its_header_names_and_the_slot_goes_back() {
    let target = Target::open();
    let mut source = Source::connect(&target);
    assert_eq!(source.verdict, Verdict::InSlots);
    for slot in [3, 0, 3] {
        source.send(slot as usize, slot);
        target.woken.recv_timeout(PATIENCE).unwrap();
        let arrived = target.hub.take(true).unwrap();
        assert_eq!(look(&arrived), (cell().1, true));
        drop(arrived);
        assert_eq!(source.slot_back(), Some(slot));
    }
}

#[test]
fn a_slot_that_does_not_exist_or_is_still_out_ends_the_transfer() {
    let cases = [
        (&[SLOTS][..], "slot 16 of 16"),
        (&[u32::MAX - 1], "slot 4294967294 of 16"),
        (&[2, 2], "slot 2 was not given back yet"),
    ];
    for (named, why) in cases {
        let target = Target::open();
        let mut source = Source::connect(&target);
        for slot in named {
            source.send(0, *slot);
        }
        let failure = target.failure_after(named.len() - 1);
        assert_eq!(failure.fault, TransferFault::Frame, "{why}");
        assert!(failure.reason.contains(why), "{}", failure.reason);
    }
}

#[test]
fn a_slot_is_worth_nothing_where_none_are_shared() {
    let target = Target::open();
    let (mut stream, refusal) = target.greet(&hello());
    assert_eq!(refusal, None);
    let slot = Some(0);
    stream.write_all(&Header { slot, ..cell().0 }.bytes()).unwrap();
    let failure = target.failure();
    assert_eq!(failure.fault, TransferFault::Frame);
    assert!(failure.reason.contains("none are shared"), "{}", failure.reason);
}

#[test]
fn bytes_that_change_after_their_header_do_not_pass_and_what_was_copied_stays() {
    let target = Target::open();
    let mut source = Source::connect(&target);
    source.send(1, 1);
    target.woken.recv_timeout(PATIENCE).unwrap();
    let arrived = target.hub.take(true).unwrap();
    let (copied, passes) = look(&arrived);
    assert!(passes);
    let mut backend = OneCell::holding(&Arc::default());
    assert!(import(&mut backend, &arrived).is_ok());
    source.slots[1][50] ^= 4;
    let (fault, reason) = import(&mut backend, &arrived).unwrap_err();
    assert_eq!(fault, TransferFault::Checksum);
    assert!(reason.contains("block 4 of KV head 1 has checksum"), "{reason}");
    assert_eq!(copied, cell().1, "changed after the copy");
}

#[test]
fn memory_that_is_too_small_or_loose_or_gone_or_absurd_is_done_without() {
    let (_slots, file) = SlotMemory::make(2, CELL_BYTES).unwrap();
    let (_other, gone) = SlotMemory::make(2, CELL_BYTES).unwrap();
    let no_memory = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let gone_offer = offer_of(&gone, 2);
    drop(gone);
    let offers = [
        offer_of(&file, 3),
        offer_of(&file, SLOTS + 1),
        offer_of(&no_memory, 2),
        gone_offer,
    ];
    for offer in offers {
        let target = Target::open();
        let (mut stream, verdict) = greet(&target, offer);
        assert_eq!(verdict, Verdict::InStream, "{offer:?}");
        let (header, bytes) = cell();
        stream.write_all(&header.bytes()).unwrap();
        stream.write_all(&bytes).unwrap();
        target.woken.recv_timeout(PATIENCE).unwrap();
        let arrived = target.hub.take(true).unwrap();
        assert!(matches!(arrived.content, CellContent::Private(found) if found == bytes));
        assert!(target.hub.take_failure().is_none(), "{offer:?}");
    }
}

/// The real sender, more cells than there are slots, in both lanes.
#[test]
fn a_sender_uses_slots_again_when_they_come_back_and_the_connection_where_none_are_shared() {
    for same_host in [true, false] {
        let (source, target) = (Target::new(), Target::open());
        let address = target.address.to_string();
        let mut sender = CellSender::start(hello(), address, same_host, SLOTS, source.hub).unwrap();
        for index in 0..5 * SLOTS {
            let mut buffer = loop {
                if let Some(buffer) = sender.buffer() {
                    break buffer;
                }
                source.woken.recv_timeout(PATIENCE).unwrap();
            };
            let (header, bytes) = cell();
            buffer.bytes_mut().copy_from_slice(&bytes);
            buffer.bytes_mut()[0] = index as u8;
            sender.send(Header { index, ..header }, buffer, None);
            target.woken.recv_timeout(PATIENCE).unwrap();
            let arrived = target.hub.take(true).unwrap();
            let content = match &arrived.content {
                CellContent::Private(bytes) => bytes.clone(),
                CellContent::Slot(_) => look(&arrived).0,
            };
            assert_eq!(matches!(arrived.content, CellContent::Slot(_)), same_host);
            assert_eq!((arrived.header.index, content[0]), (index, index as u8));
            assert_eq!(content[1..], bytes[1..]);
        }
    }
}

#[test]
fn a_target_that_gives_back_what_it_was_not_given_ends_the_transfer_at_its_source() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let source = Target::new();
    let address = listener.local_addr().unwrap().to_string();
    let _sender = CellSender::start(hello(), address, true, SLOTS, source.hub.clone()).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let offered = Hello::read(&mut stream).unwrap();
    assert_eq!((offered.source_rank, offered.offer.unwrap().count), (Rank(0), SLOTS));
    Verdict::InSlots.write(&mut stream).unwrap();
    stream.write_all(&5_u32.to_le_bytes()).unwrap();
    let failure = source.failure_after(SLOTS as usize);
    assert!(failure.reason.contains("slot 5 comes back"), "{}", failure.reason);
}
