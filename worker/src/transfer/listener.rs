//! The door through which cells come in: one listener per worker, a thread for each connection that shows a ticket.

use std::{
    io::{self, BufReader, Read},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use kvasir_kv::{TransferFault, TransferId};

use super::{
    frame::{FrameError, Header, Hello, write_verdict},
    hub::{ArrivedCell, Failure, TransferHub},
};

/// Whoever connects has so long to say who it is; then, a sender is silent at most so long in the midst of a cell.
const SILENCE_MAX: Duration = Duration::from_secs(5);
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

fn receive(mut stream: TcpStream, hub: &TransferHub) {
    let timeouts = stream.set_read_timeout(Some(SILENCE_MAX)).and(stream.set_nodelay(true));
    let hello = match timeouts
        .map_err(FrameError::from)
        .and_then(|()| Hello::read(&mut stream))
    {
        Ok(hello) => hello,
        Err(error) => {
            tracing::warn!(%error, "a connection for cells shows no ticket");
            return hub.fail(Failure {
                transfer: TransferId::default(),
                fault: TransferFault::Ticket,
                reason: error.to_string(),
            });
        }
    };
    let transfer = hello.ticket.transfer;
    let admitted = hub.admit(&hello, &stream);
    let refusal = admitted.as_ref().err().map(|(_, reason)| reason.as_str());
    let answered = write_verdict(&mut stream, refusal);
    if let Err((fault, reason)) = admitted {
        tracing::warn!(%transfer, %fault, reason, "transfer refused");
        return hub.fail(Failure {
            transfer,
            fault,
            reason,
        });
    }
    let received = answered.map_err(FrameError::from).map_err(Into::into);
    if let Err((fault, reason)) = received.and_then(|()| take_cells(&hello, stream, hub)) {
        hub.fail(Failure {
            transfer,
            fault,
            reason,
        });
    }
}

impl From<FrameError> for (TransferFault, String) {
    fn from(error: FrameError) -> Self {
        (error.fault(), error.to_string())
    }
}

/// Until the source has no more, or the transfer ends.
fn take_cells(hello: &Hello, stream: TcpStream, hub: &TransferHub) -> Result<(), (TransferFault, String)> {
    let io = |error| FrameError::Io(error);
    // Between cells it may be silent: the next round comes when the sequence has got on.
    stream.set_read_timeout(None).map_err(io)?;
    let control = stream.try_clone().map_err(io)?;
    let mut stream = BufReader::with_capacity(1 << 16, stream);
    while let Some(header) = Header::read(&mut stream)? {
        if header.bytes as usize != hub.cell_bytes() {
            let reason = format!("a cell of {} bytes; expected {}", header.bytes, hub.cell_bytes());
            return Err((TransferFault::Cell, reason));
        }
        control.set_read_timeout(Some(SILENCE_MAX)).map_err(io)?;
        let mut bytes = hub.buffer();
        stream.read_exact(&mut bytes).map_err(io)?;
        control.set_read_timeout(None).map_err(io)?;
        let found = crc32c::crc32c(&bytes);
        if found != header.checksum {
            let reason = format!(
                "block {} of KV head {} has checksum {found:08x}; sent was {:08x}",
                header.copy.source.id, header.head, header.checksum
            );
            return Err((TransferFault::Checksum, reason));
        }
        let cell = ArrivedCell {
            transfer: hello.ticket.transfer,
            source_rank: hello.source_rank,
            header,
            bytes,
        };
        if !hub.arrive(cell) {
            break;
        }
    }
    Ok(())
}
