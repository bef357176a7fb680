//! The door through which cells come in: one listener per worker, a thread for each connection that shows a ticket, where
//! workers have certificates by TLS.

use std::{
    io::{self, BufReader, Read},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use kvasir_kv::{TransferFault, TransferId};
use kvasir_runtime::{
    refusals::Refusal,
    tls::{SharedStream, Side},
};

use super::{
    frame::{FrameError, Header, Hello, Verdict},
    hub::{ArrivedCell, CellContent, Failure, TransferHub},
    slots::SlotsIn,
};

/// Whoever connects has so long to say who it is; then, a sender is silent at most so long in the midst of a cell.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Headers are read ahead together; of a cell behind one, this much is copied once more.
const HEADERS_BYTES: usize = 4096;
/// Connections at a time. One more is closed at once.
const CONNECTIONS_MAX: usize = 256;

/// Takes transfers at `ip`, on a port of the system's choice, for as long as the process lives.
///
/// Errors if it cannot listen there or the system gives no thread.
pub fn listen(ip: IpAddr, hub: Arc<TransferHub>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((ip, 0))?;
    let address = listener.local_addr()?;
    let accept = move || {
        let connections = Arc::new(AtomicUsize::new(0));
        for stream in listener.incoming() {
            match stream {
                Ok(stream) => serve(stream, &hub, &connections),
                // Out of descriptors, say: it may pass.
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
    };
    thread::Builder::new()
        .name("kvasir-cells-in".to_owned())
        .spawn(accept)?;
    Ok(address)
}

fn serve(stream: TcpStream, hub: &Arc<TransferHub>, connections: &Arc<AtomicUsize>) {
    if connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
        connections.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let (hub, counted) = (Arc::clone(hub), Arc::clone(connections));
    let receive = move || {
        receive(stream, &hub);
        counted.fetch_sub(1, Ordering::Relaxed);
    };
    let thread = thread::Builder::new().name("kvasir-cells-in".to_owned());
    if thread.spawn(receive).is_err() {
        connections.fetch_sub(1, Ordering::Relaxed);
    }
}

fn receive(stream: TcpStream, hub: &TransferHub) {
    let from = stream.peer_addr();
    let (mut stream, hello) = match greet(stream, hub) {
        Ok(greeted) => greeted,
        Err(error) => {
            let reason = error.to_string();
            let who = from.map_or_else(|_| "unknown".to_owned(), |from| from.to_string());
            match error {
                FrameError::Io(error) => hub.peers().turn_away(Refusal::TransferStranger, who, error),
                FrameError::Malformed(_) => hub.peers().refusals().refuse(Refusal::TransferStranger, who, &reason),
            }
            return hub.fail(Failure {
                transfer: TransferId::default(),
                fault: TransferFault::Ticket,
                reason,
            });
        }
    };
    let transfer = hello.ticket.transfer;
    let admitted = hub.admit(&hello, &stream);
    let slots = admitted.is_ok().then(|| open_slots(&hello, &stream, hub)).flatten();
    let verdict = match (&admitted, &slots) {
        (Err((_, reason)), _) => Verdict::Refused(reason.clone()),
        (Ok(()), Some(_)) => Verdict::InSlots,
        (Ok(()), None) => Verdict::InStream,
    };
    let answered = verdict.write(&mut stream);
    if let Err((fault, reason)) = admitted {
        tracing::warn!(%transfer, %fault, reason, "transfer refused");
        return hub.fail(Failure {
            transfer,
            fault,
            reason,
        });
    }
    let received = answered.map_err(FrameError::from).map_err(Into::into);
    if let Err((fault, reason)) = received.and_then(|()| take_cells(&hello, stream, slots, hub)) {
        hub.fail(Failure {
            transfer,
            fault,
            reason,
        });
    }
}

/// The handshake and the hello, in a time that dribbling bytes do not lengthen.
fn greet(stream: TcpStream, hub: &TransferHub) -> Result<(SharedStream, Hello), FrameError> {
    stream.set_nodelay(true)?;
    let mut stream = hub.peers().shared(stream, Side::Answering, SILENCE_MAX)?;
    let hello = Hello::read(&mut stream.until(Instant::now() + SILENCE_MAX))?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    Ok((stream, hello))
}

type Fault = (TransferFault, String);

impl From<FrameError> for Fault {
    fn from(error: FrameError) -> Self {
        (error.fault(), error.to_string())
    }
}

/// `None` if none are offered, or they cannot be opened here: then cells come through the connection.
fn open_slots(hello: &Hello, stream: &SharedStream, hub: &TransferHub) -> Option<Arc<SlotsIn>> {
    let opened = SlotsIn::open(hello.offer?, hub.cell_bytes(), stream);
    if let Err(error) = &opened {
        let transfer = hello.ticket.transfer;
        tracing::debug!(%transfer, %error, "no shared memory with the source; its cells come through the connection");
    }
    opened.ok()
}

/// Until the source has no more, or the transfer ends.
fn take_cells(
    hello: &Hello,
    stream: SharedStream,
    slots: Option<Arc<SlotsIn>>,
    hub: &TransferHub,
) -> Result<(), Fault> {
    let io = |error| FrameError::Io(error);
    // Between cells it may be silent: the next round comes when the sequence has got on.
    stream.set_read_timeout(None).map_err(io)?;
    let control = stream.clone();
    let mut stream = BufReader::with_capacity(HEADERS_BYTES, stream);
    while let Some(header) = Header::read(&mut stream)? {
        if header.bytes as usize != hub.cell_bytes() {
            let reason = format!("a cell of {} bytes; expected {}", header.bytes, hub.cell_bytes());
            return Err((TransferFault::Cell, reason));
        }
        let content = match (&slots, header.slot) {
            (Some(slots), Some(slot)) => {
                let taken = slots.take(slot).map_err(|reason| (TransferFault::Frame, reason))?;
                CellContent::Slot(taken)
            }
            (None, Some(slot)) => {
                return Err((TransferFault::Frame, format!("slot {slot} where none are shared")));
            }
            (_, None) => {
                control.set_read_timeout(Some(SILENCE_MAX)).map_err(io)?;
                let bytes = read_cell(&header, &mut stream, hub)?;
                control.set_read_timeout(None).map_err(io)?;
                CellContent::Private(bytes)
            }
        };
        let cell = ArrivedCell {
            transfer: hello.ticket.transfer,
            source_rank: hello.source_rank,
            header,
            content,
        };
        if !hub.arrive(cell) {
            break;
        }
    }
    Ok(())
}

/// The bytes behind a header, if they are those that it tells of.
fn read_cell(header: &Header, stream: &mut impl Read, hub: &TransferHub) -> Result<Vec<u8>, Fault> {
    let mut bytes = hub.buffer();
    stream.read_exact(&mut bytes).map_err(FrameError::Io)?;
    header.check(crc32c::crc32c(&bytes))?;
    Ok(bytes)
}
