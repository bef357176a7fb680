//! One connection of a source rank to a target rank: a thread that sends what the rank has copied out.

use std::{
    io::{self, BufReader, IoSlice, Write},
    net::{TcpStream, ToSocketAddrs},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread,
    time::Duration,
};

use kvasir_kv::TransferFault;
use kvasir_runtime::tls::{PeerDoor, SharedStream, Side};

use super::{
    frame::{FrameError, Header, Hello, Verdict},
    hub::{Failure, TransferHub},
    slot_memory::SlotMemory,
    slots::{Buffer, SLOTS, SLOTS_MIN, SlotOffer, SlotsOut},
};
use crate::collective::SegmentFile;

const CONNECT_MAX: Duration = Duration::from_secs(5);
/// The answer to a hello includes the wait for the ticket.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// A target that takes nothing for so long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Cells between the rank and the connection, where they go through it.
const BUFFERS: u32 = 16;

/// A cell on its way.
struct Outgoing {
    header: Header,
    buffer: Buffer,
    /// What the cell's checksum was when its block was filled.
    sealed: Option<u32>,
}

/// The rank's end.
#[derive(Debug)]
pub(super) struct CellSender {
    out: SyncSender<Outgoing>,
    given_back: Receiver<Buffer>,
    /// The one that came back last is last: what it holds is still in a cache.
    spare: Vec<Buffer>,
    stream: Arc<Mutex<Option<SharedStream>>>,
}

/// The thread's end.
struct Sending {
    hello: Hello,
    address: String,
    give_back: Sender<Buffer>,
    stream: Arc<Mutex<Option<SharedStream>>>,
    hub: Arc<TransferHub>,
}

impl CellSender {
    /// Connects in the background, and offers shared memory to a target on the same host: for `cells` on their way at a
    /// time, within bounds. What goes wrong is told to the hub.
    ///
    /// Errors if the system gives no thread.
    pub fn start(
        hello: Hello,
        address: String,
        same_host: bool,
        cells: u32,
        hub: Arc<TransferHub>,
    ) -> io::Result<Self> {
        let slots = cells.clamp(SLOTS_MIN, SLOTS);
        let (out, cells) = sync_channel(SLOTS.max(BUFFERS) as usize);
        let (give_back, given_back) = channel();
        let stream = Arc::new(Mutex::new(None));
        let sending = Sending {
            hello,
            address,
            give_back,
            stream: Arc::clone(&stream),
            hub: Arc::clone(&hub),
        };
        let send = move || {
            let transfer = hello.ticket.transfer;
            if let Err((fault, reason)) = sending.run(&cells, same_host.then_some(slots)) {
                hub.fail(Failure {
                    transfer,
                    fault,
                    reason,
                });
            }
        };
        thread::Builder::new().name("kvasir-cells-out".to_owned()).spawn(send)?;
        Ok(Self {
            out,
            given_back,
            spare: Vec::new(),
            stream,
        })
    }

    /// A buffer to copy a cell into, unless all are on their way or none is made yet.
    pub fn buffer(&mut self) -> Option<Buffer> {
        self.spare.extend(self.given_back.try_iter());
        self.spare.pop()
    }

    /// `buffer` is one of this sender's. Does not wait: there are no more buffers than places.
    pub fn send(&self, header: Header, buffer: Buffer, sealed: Option<u32>) {
        // A thread that is gone has told why.
        let _ = self.out.try_send(Outgoing { header, buffer, sealed });
    }
}

impl Drop for CellSender {
    fn drop(&mut self) {
        cut(&self.stream);
    }
}

fn cut(stream: &Mutex<Option<SharedStream>>) {
    let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(stream) = stream {
        stream.cut();
    }
}

type Fault = (TransferFault, String);

impl Sending {
    fn run(mut self, cells: &Receiver<Outgoing>, slots: Option<u32>) -> Result<(), Fault> {
        let file = self.make_buffers(slots);
        let mut stream = connect(&self.address, self.hub.peers())?;
        let io = |error| FrameError::Io(error);
        *self.stream.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream.clone());
        self.hello.write(&mut stream).map_err(io)?;
        let verdict = Verdict::read(&mut stream)?;
        // Whoever could open it has.
        drop(file);
        match verdict {
            Verdict::InStream => self.send_in_stream(cells, &mut stream),
            Verdict::InSlots if self.hello.offer.is_some() => self.send_in_slots(cells, &mut stream),
            Verdict::InSlots => Err((TransferFault::Frame, "the target takes slots that are none".to_owned())),
            Verdict::Refused(reason) => Err((
                TransferFault::Connection,
                format!("the target at {} refused: {reason}", self.address),
            )),
        }
    }

    /// Gives the rank buffers, and offers them to the target if they can be shared. The descriptor is to be open until it
    /// has answered.
    fn make_buffers(&mut self, slots: Option<u32>) -> Option<OwnedFd> {
        let cell_bytes = self.hub.cell_bytes();
        let made = slots.map(|slots| SlotMemory::make(slots, cell_bytes));
        let (buffers, file): (Vec<Buffer>, _) = match made {
            Some(Ok((slots, file))) => {
                let buffer = |(index, memory)| Buffer::Slot { index, memory };
                ((0..).zip(slots).map(buffer).collect(), Some(file))
            }
            failed => {
                if let Some(Err(error)) = failed {
                    tracing::debug!(%error, "no memory to share; cells go through the connection");
                }
                let buffer = |_| Buffer::Private(vec![0; cell_bytes]);
                ((0..BUFFERS).map(buffer).collect(), None)
            }
        };
        self.hello.offer = file.as_ref().map(|file| SlotOffer {
            file: SegmentFile {
                process: std::process::id(),
                descriptor: file.as_raw_fd() as u32,
            },
            count: buffers.len() as u32,
        });
        for buffer in buffers {
            self.give_back(buffer);
        }
        file
    }

    fn give_back(&self, buffer: Buffer) {
        // Fails when the rank has let go of the transfer.
        let _ = self.give_back.send(buffer);
        self.hub.wake();
    }

    fn send_in_stream(&self, cells: &Receiver<Outgoing>, stream: &mut SharedStream) -> Result<(), Fault> {
        for mut cell in cells {
            cell.seal();
            let header = cell.header.bytes();
            write_both(stream, &header, cell.buffer.bytes()).map_err(FrameError::Io)?;
            self.give_back(cell.buffer);
        }
        Ok(())
    }

    fn send_in_slots(&self, cells: &Receiver<Outgoing>, stream: &mut SharedStream) -> Result<(), Fault> {
        let out = SlotsOut::default();
        let back = stream.clone();
        // Between rounds the target has nothing to give back.
        back.set_read_timeout(None).map_err(FrameError::Io)?;
        thread::scope(|scope| {
            let take_back = thread::Builder::new().name("kvasir-slots-in".to_owned());
            let taker = take_back.spawn_scoped(scope, || self.take_slots_back(&out, back));
            taker.map_err(FrameError::Io)?;
            let sent = self.name_slots(cells, &out, stream);
            cut(&self.stream);
            sent
        })
    }

    /// Headers go together while there are more.
    fn name_slots(&self, cells: &Receiver<Outgoing>, out: &SlotsOut, stream: &mut SharedStream) -> Result<(), Fault> {
        let mut headers = Vec::new();
        let mut next = cells.recv().ok();
        while let Some(mut cell) = next {
            cell.seal();
            if let Buffer::Slot { index, memory } = cell.buffer {
                cell.header.slot = Some(index);
                headers.extend(cell.header.bytes());
                out.lend(index, memory);
            }
            next = cells.try_recv().ok();
            if next.is_none() {
                stream.write_all(&headers).map_err(FrameError::Io)?;
                headers.clear();
                next = cells.recv().ok();
            }
        }
        Ok(())
    }

    fn take_slots_back(&self, out: &SlotsOut, stream: SharedStream) {
        let mut stream = BufReader::with_capacity(4 * SLOTS as usize, stream);
        loop {
            match out.come_back(&mut stream) {
                Ok(Some(buffer)) => self.give_back(buffer),
                Ok(None) => break,
                Err(error) => {
                    let transfer = self.hello.ticket.transfer;
                    let reason = format!("the target at {} gives no slots back: {error}", self.address);
                    let fault = TransferFault::Connection;
                    self.hub.fail(Failure {
                        transfer,
                        fault,
                        reason,
                    });
                    break;
                }
            }
        }
        cut(&self.stream);
    }
}

/// Both in one packet, if it has room.
fn write_both(stream: &mut SharedStream, header: &[u8], bytes: &[u8]) -> io::Result<()> {
    let written = stream.write_vectored(&[IoSlice::new(header), IoSlice::new(bytes)])?;
    match written.checked_sub(header.len()) {
        Some(written) => stream.write_all(&bytes[written..]),
        None => {
            stream.write_all(&header[written..])?;
            stream.write_all(bytes)
        }
    }
}

fn connect(address: &str, peers: &PeerDoor) -> Result<SharedStream, Fault> {
    let failed = |error: std::io::Error| {
        let reason = format!("cannot reach the target at {address}: {error}");
        (TransferFault::Connection, reason)
    };
    let resolved = address.to_socket_addrs().map_err(failed)?.next();
    let nowhere = || std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
    let resolved = resolved.ok_or_else(nowhere).map_err(failed)?;
    let stream = TcpStream::connect_timeout(&resolved, CONNECT_MAX).map_err(failed)?;
    stream
        .set_nodelay(true)
        .and(stream.set_read_timeout(Some(ANSWER_MAX)))
        .and(stream.set_write_timeout(Some(SILENCE_MAX)))
        .map_err(failed)?;
    peers.shared(stream, Side::Calling, CONNECT_MAX).map_err(failed)
}

impl Outgoing {
    /// The checksum that goes with a cell is the one that it had when its block was filled, so that the target finds out
    /// what happened to it since, here as on the way.
    fn seal(&mut self) {
        let sealed = self.sealed;
        self.header.checksum = sealed.unwrap_or_else(|| crc32c::crc32c(self.buffer.bytes()));
    }
}
