//! One connection of a source rank to a target rank: a thread that sends what the rank has copied out.

use std::{
    io::{BufWriter, Write},
    net::{Shutdown, TcpStream, ToSocketAddrs},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread,
    time::Duration,
};

use kvasir_kv::{TransferFault, TransferId};

use super::{
    frame::{FrameError, Header, Hello, read_verdict},
    hub::{Failure, TransferHub},
};

const CONNECT_MAX: Duration = Duration::from_secs(5);
/// The answer to a hello includes the wait for the ticket.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// A target that takes nothing for so long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Cells between the rank and the connection.
const BUFFERS: usize = 8;

/// A cell on its way.
struct Outgoing {
    header: Header,
    bytes: Vec<u8>,
    /// What the cell's checksum was when its block was filled.
    sealed: Option<u32>,
}

/// The rank's end.
#[derive(Debug)]
pub(super) struct CellSender {
    out: SyncSender<Outgoing>,
    spare: Receiver<Vec<u8>>,
    stream: Arc<Mutex<Option<TcpStream>>>,
}

impl CellSender {
    /// Connects in the background. What goes wrong is told to the hub.
    ///
    /// Errors if the system gives no thread.
    pub fn start(hello: Hello, address: String, hub: Arc<TransferHub>) -> std::io::Result<Self> {
        let (out, cells) = sync_channel(BUFFERS);
        let (give_back, spare) = channel();
        for _ in 0..BUFFERS {
            // The receiver is at hand.
            let _ = give_back.send(vec![0; hub.cell_bytes()]);
        }
        let stream = Arc::new(Mutex::new(None));
        let shared = Arc::clone(&stream);
        let send = move || {
            let transfer = hello.ticket.transfer;
            if let Err((fault, reason)) = send_all(&hello, &address, &shared, &cells, &give_back, &hub) {
                hub.fail(Failure {
                    transfer,
                    fault,
                    reason,
                });
            }
        };
        thread::Builder::new().name("kvasir-cells-out".to_owned()).spawn(send)?;
        Ok(Self { out, spare, stream })
    }

    /// A buffer to copy a cell into, unless all are on their way.
    pub fn buffer(&self) -> Option<Vec<u8>> {
        self.spare.try_recv().ok()
    }

    /// `bytes` is a buffer of this sender. Does not wait: there are no more buffers than places.
    pub fn send(&self, header: Header, bytes: Vec<u8>, sealed: Option<u32>) {
        // A thread that is gone has told why.
        let _ = self.out.try_send(Outgoing { header, bytes, sealed });
    }
}

impl Drop for CellSender {
    fn drop(&mut self) {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(stream) = stream {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

type Fault = (TransferFault, String);

fn send_all(
    hello: &Hello,
    address: &str,
    shared: &Mutex<Option<TcpStream>>,
    cells: &Receiver<Outgoing>,
    give_back: &Sender<Vec<u8>>,
    hub: &TransferHub,
) -> Result<(), Fault> {
    let io = |error| FrameError::Io(error);
    let mut stream = connect(address)?;
    *shared.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream.try_clone().map_err(io)?);
    hello.write(&mut stream).map_err(io)?;
    if let Some(reason) = read_verdict(&mut stream)? {
        return Err((
            TransferFault::Connection,
            format!("the target at {address} refused: {reason}"),
        ));
    }
    let mut stream = BufWriter::with_capacity(1 << 16, stream);
    for mut cell in cells {
        cell.header.checksum = crc32c::crc32c(&cell.bytes);
        check_seal(hello.ticket.transfer, &cell)?;
        cell.header.write(&mut stream).map_err(io)?;
        stream.write_all(&cell.bytes).map_err(io)?;
        stream.flush().map_err(io)?;
        // Fails when the rank has let go of the transfer.
        let _ = give_back.send(cell.bytes);
        hub.wake();
    }
    Ok(())
}

fn connect(address: &str) -> Result<TcpStream, Fault> {
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
    Ok(stream)
}

/// A cell that has changed since its block was filled is sent nowhere.
fn check_seal(transfer: TransferId, cell: &Outgoing) -> Result<(), Fault> {
    let Header {
        checksum, copy, head, ..
    } = cell.header;
    match cell.sealed {
        Some(sealed) if sealed != checksum => {
            let block = copy.source.id;
            tracing::warn!(%transfer, %block, %head, "a cell has changed since it was filled");
            let reason = format!("block {block} of KV head {head} has changed since it was filled");
            Err((TransferFault::Checksum, reason))
        }
        _ => Ok(()),
    }
}
