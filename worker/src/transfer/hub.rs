//! Where a rank and the threads of its transfers meet: tickets that are open, and cells that have come.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use kvasir_kv::{NumericsId, Rank, Ticket, TransferFault, TransferId};
use kvasir_runtime::tls::{PeerDoor, SharedStream};

use super::{
    frame::{Header, Hello},
    slots::TakenSlot,
};

/// Bytes of cells that may wait for their rank: what comes beyond waits in the connection.
const WAITING_BYTES_MAX: usize = 32 << 20;
/// How long a connection waits for its ticket to be announced: both are sent at the same time, on different ways.
const TICKET_WAIT: Duration = Duration::from_secs(5);
/// What strangers do is told to the coordinator, and no more of it than this waits to be.
const FAILURES_MAX: usize = 256;
/// Ended transfers that are remembered, to tell a late cell from a stranger.
const ENDED_MAX: usize = 1024;

/// A cell that has come.
#[derive(Debug)]
pub(super) struct ArrivedCell {
    pub transfer: TransferId,
    pub source_rank: Rank,
    pub header: Header,
    pub content: CellContent,
}

/// Where the bytes of a cell are that has come.
#[derive(Debug)]
pub(super) enum CellContent {
    /// Here, with the checksum of their header.
    Private(Vec<u8>),
    /// In memory that others may change: a copy is to be checked.
    Slot(TakenSlot),
}

impl CellContent {
    /// What it takes of this process's memory.
    fn held_bytes(&self) -> usize {
        match self {
            Self::Private(bytes) => bytes.len(),
            Self::Slot(_) => 0,
        }
    }
}

/// A transfer that one of the threads has given up.
#[derive(Debug)]
pub(super) struct Failure {
    pub transfer: TransferId,
    pub fault: TransferFault,
    pub reason: String,
}

#[allow(missing_debug_implementations)] // holds a closure
pub struct TransferHub {
    state: Mutex<State>,
    /// A ticket was announced, or a transfer ended, or there is room.
    changed: Condvar,
    wake: Box<dyn Fn() + Send + Sync>,
    numerics: NumericsId,
    cell_bytes: usize,
    peers: PeerDoor,
}

#[derive(Default)]
struct State {
    /// Announced and not ended, by source rank.
    open: BTreeMap<(TransferId, Rank), Open>,
    ended: VecDeque<TransferId>,
    urgent: VecDeque<ArrivedCell>,
    ahead: VecDeque<ArrivedCell>,
    waiting_bytes: usize,
    failures: VecDeque<Failure>,
    /// Buffers of cells that have been put in their place.
    spare: Vec<Vec<u8>>,
}

struct Open {
    ticket: Ticket,
    target_rank: Rank,
    /// The one connection that showed the ticket.
    stream: Option<SharedStream>,
}

impl TransferHub {
    /// `wake` is called, from any thread, when there is something for the rank to do.
    pub fn new(numerics: NumericsId, cell_bytes: usize, wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            wake: Box::new(wake),
            numerics,
            cell_bytes,
            peers: PeerDoor::default(),
        }
    }

    /// How other workers are met; in the open if nothing is said.
    pub fn with_peers(mut self, peers: PeerDoor) -> Self {
        self.peers = peers;
        self
    }

    pub(super) fn peers(&self) -> &PeerDoor {
        &self.peers
    }

    pub(super) fn numerics(&self) -> NumericsId {
        self.numerics
    }

    pub(super) fn cell_bytes(&self) -> usize {
        self.cell_bytes
    }

    pub(super) fn wake(&self) {
        (self.wake)();
    }

    /// A source rank may come with this ticket, once.
    pub(super) fn announce(&self, ticket: Ticket, source_rank: Rank, target_rank: Rank) {
        let key = (ticket.transfer, source_rank);
        let fresh = || Open {
            ticket,
            target_rank,
            stream: None,
        };
        self.lock().open.entry(key).or_insert_with(fresh);
        self.changed.notify_all();
    }

    /// Closes all that belongs to a transfer. What has come of it and not been taken is forgotten.
    pub(super) fn end(&self, transfer: TransferId) {
        let mut state = self.lock();
        let ranks: Vec<Rank> = state
            .open
            .keys()
            .filter(|key| key.0 == transfer)
            .map(|key| key.1)
            .collect();
        for rank in ranks {
            if let Some(stream) = state.open.remove(&(transfer, rank)).and_then(|open| open.stream) {
                stream.cut();
            }
        }
        state.forget(transfer);
        if state.ended.len() == ENDED_MAX {
            state.ended.pop_front();
        }
        state.ended.push_back(transfer);
        drop(state);
        self.changed.notify_all();
    }

    /// Admits a connection that shows its ticket, or says why not.
    pub(super) fn admit(&self, hello: &Hello, stream: &SharedStream) -> Result<(), (TransferFault, String)> {
        let key = (hello.ticket.transfer, hello.source_rank);
        let deadline = Instant::now() + TICKET_WAIT;
        let mut state = self.lock();
        loop {
            if state.open.contains_key(&key) || state.ended.contains(&hello.ticket.transfer) {
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.ended.contains(&hello.ticket.transfer) {
            let reason = format!("transfer {} has ended", hello.ticket.transfer);
            return Err((TransferFault::Connection, reason));
        }
        let unknown = || {
            let (transfer, rank) = (hello.ticket.transfer, hello.source_rank);
            (
                TransferFault::Ticket,
                format!("no ticket of transfer {transfer} for source rank {rank} is open"),
            )
        };
        let open = state.open.get_mut(&key).ok_or_else(unknown)?;
        if open.ticket.secret != hello.ticket.secret || open.target_rank != hello.target_rank {
            return Err((TransferFault::Ticket, "the ticket is forged".to_owned()));
        }
        if (open.ticket.source, open.ticket.target) != (hello.ticket.source, hello.ticket.target) {
            let (found, expected) = (hello.ticket, open.ticket);
            let reason = format!(
                "the ticket is from epoch {} to {}; expected {} to {}",
                found.source, found.target, expected.source, expected.target
            );
            return Err((TransferFault::Epoch, reason));
        }
        if hello.numerics != self.numerics {
            let reason = format!("cells of numerics {}; expected {}", hello.numerics, self.numerics);
            return Err((TransferFault::Numerics, reason));
        }
        if open.stream.is_some() {
            return Err((TransferFault::Ticket, "the ticket was shown before".to_owned()));
        }
        open.stream = Some(stream.clone());
        Ok(())
    }

    /// Hands a cell to the rank; waits while too many wait there. False if the transfer has ended.
    pub(super) fn arrive(&self, cell: ArrivedCell) -> bool {
        let key = (cell.transfer, cell.source_rank);
        let mut state = self.lock();
        while state.open.contains_key(&key) && state.waiting_bytes >= WAITING_BYTES_MAX {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if !state.open.contains_key(&key) {
            return false;
        }
        state.waiting_bytes += cell.content.held_bytes();
        match cell.header.urgent {
            true => state.urgent.push_back(cell),
            false => state.ahead.push_back(cell),
        }
        drop(state);
        self.wake();
        true
    }

    pub(super) fn fail(&self, failure: Failure) {
        let mut state = self.lock();
        // Whoever ended it cuts its connections, and knows.
        let is_news = !state.ended.contains(&failure.transfer) || failure.fault == TransferFault::Ticket;
        if is_news && state.failures.len() < FAILURES_MAX {
            state.failures.push_back(failure);
            drop(state);
            self.wake();
        }
    }

    /// The next cell to be put in its place: one that somebody waits for, or `any`.
    pub(super) fn take(&self, any: bool) -> Option<ArrivedCell> {
        let mut state = self.lock();
        let cell = state.urgent.pop_front();
        let cell = cell.or_else(|| any.then(|| state.ahead.pop_front()).flatten())?;
        state.waiting_bytes -= cell.content.held_bytes();
        drop(state);
        self.changed.notify_all();
        Some(cell)
    }

    pub(super) fn take_failure(&self) -> Option<Failure> {
        self.lock().failures.pop_front()
    }

    /// A buffer of the size of a cell, its content of no meaning.
    pub(super) fn buffer(&self) -> Vec<u8> {
        let spare = self.lock().spare.pop();
        spare.unwrap_or_else(|| vec![0; self.cell_bytes])
    }

    pub(super) fn give_back(&self, buffer: Vec<u8>) {
        let mut state = self.lock();
        if buffer.len() == self.cell_bytes && (state.spare.len() + 1) * self.cell_bytes <= WAITING_BYTES_MAX {
            state.spare.push(buffer);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget(&mut self, transfer: TransferId) {
        self.urgent.retain(|cell| cell.transfer != transfer);
        self.ahead.retain(|cell| cell.transfer != transfer);
        let left = self.urgent.iter().chain(&self.ahead);
        self.waiting_bytes = left.map(|cell| cell.content.held_bytes()).sum();
    }
}
