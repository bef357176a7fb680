//! The transfers of a rank, as its own thread sees them: cells to copy out, cells to put in their place, piece by piece
//! between steps.

use std::{
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    ops::Range,
    sync::Arc,
};

use kvasir_kv::{
    BlockId, CellSet, CellsIn, CellsOut, Epoch, FromWorker, Rank, TaggedBlock, Ticket, TransferFault, TransferId,
};
use kvasir_runtime::telemetry;
use opentelemetry::metrics::BoundCounter;

use super::{
    frame::{Header, Hello},
    hub::{ArrivedCell, CellContent, Failure, TransferHub},
    sender::CellSender,
    slots::Buffer,
};
use crate::{backend::Backend, rank_books::RankBooks};

/// An epoch whose cells are sent or taken.
pub(crate) struct Side<'a> {
    pub epoch: Epoch,
    pub rank: Rank,
    /// Local KV heads.
    pub heads: Range<u32>,
    pub books: &'a mut RankBooks,
    /// Checksums of full blocks, for each local KV head; none are known of an epoch that has not begun.
    pub seals: Option<&'a BTreeMap<BlockId, Vec<u32>>>,
}

/// The epoch that works, and the one that gets ready.
pub(crate) struct Sides<'a> {
    pub running: Option<Side<'a>>,
    pub prepared: Option<Side<'a>>,
}

impl<'a> Sides<'a> {
    fn get(&mut self, epoch: Epoch) -> Result<&mut Side<'a>, Fault> {
        let (running, prepared) = (self.running.as_mut(), self.prepared.as_mut());
        let mut sides = running.into_iter().chain(prepared);
        let found = sides.find(|side| side.epoch == epoch);
        found.ok_or_else(|| {
            (
                TransferFault::Epoch,
                format!("a ticket for epoch {epoch}, which is not this rank's"),
            )
        })
    }

    fn any_epoch(&self) -> Epoch {
        let side = self.running.as_ref().or(self.prepared.as_ref());
        side.map(|side| side.epoch).unwrap_or_default()
    }
}

#[derive(Default)]
pub(crate) struct RankTransfers {
    hub: Option<Arc<TransferHub>>,
    /// By target rank.
    outgoing: BTreeMap<(TransferId, Rank), Outgoing>,
    incoming: BTreeMap<TransferId, Incoming>,
    /// Checksums of cells that have come: for which epoch, of which block; by KV head. The epoch keeps what a block held
    /// when it came half full apart from what it holds when it moves on.
    sums: BTreeMap<(Epoch, BlockId, u32), BTreeMap<u32, u32>>,
    meter: Option<CellMeter>,
}

struct CellMeter {
    sent: BoundCounter<u64>,
    received: BoundCounter<u64>,
}

impl CellMeter {
    fn new() -> Self {
        let meter = telemetry::meter();
        let counter = |name, description| {
            let counter = meter.u64_counter(name).with_description(description);
            let counter = counter.build();
            // It is there before the first cell.
            counter.add(0, &[]);
            counter.bind(&[])
        };
        Self {
            sent: counter("kvasir.worker.cells_sent", "KV cells sent to other workers"),
            received: counter("kvasir.worker.cells_received", "KV cells taken from other workers"),
        }
    }
}

struct Outgoing {
    ticket: Ticket,
    sender: CellSender,
    rounds: VecDeque<OutRound>,
}

struct OutRound {
    round: u32,
    urgent: bool,
    cells: CellSet,
    /// Index of the next cell to be copied out.
    next: u32,
}

struct Incoming {
    ticket: Ticket,
    rounds: BTreeMap<(u32, Rank), InRound>,
    /// Blocks that are here, to be looked at while there is time, and those that were found as they were filled.
    unchecked: Vec<TaggedBlock>,
    checked: BTreeMap<BlockId, TaggedBlock>,
    /// Cells of rounds that have not been announced yet.
    early: Vec<ArrivedCell>,
}

struct InRound {
    cells: CellSet,
    taken: Vec<bool>,
    left: u32,
    bytes: u64,
    /// Of these, those that came through shared memory.
    shared_bytes: u64,
}

type Fault = (TransferFault, String);

impl RankTransfers {
    pub fn new(hub: Arc<TransferHub>) -> Self {
        Self {
            hub: Some(hub),
            meter: Some(CellMeter::new()),
            ..Self::default()
        }
    }

    /// Begins to send, or goes on with one more round.
    pub fn send(&mut self, at: &mut Sides<'_>, out: CellsOut) -> Option<FromWorker> {
        let Ticket { transfer, source, .. } = out.ticket;
        self.try_send(at, out)
            .err()
            .map(|fault| failed(source, transfer, fault))
    }

    fn try_send(&mut self, at: &mut Sides<'_>, out: CellsOut) -> Result<(), Fault> {
        let side = at.get(out.ticket.source)?;
        let hub = self.hub.as_ref().ok_or_else(no_transfers)?;
        check_heads(&out.cells, &side.heads)?;
        let key = (out.ticket.transfer, out.target_rank);
        let outgoing = match self.outgoing.entry(key) {
            Entry::Occupied(outgoing) => outgoing.into_mut(),
            Entry::Vacant(place) => {
                let hello = Hello {
                    ticket: out.ticket,
                    source_rank: out.source_rank,
                    target_rank: out.target_rank,
                    numerics: hub.numerics(),
                    offer: None,
                };
                let cells = out.cells.num_cells();
                let started = CellSender::start(hello, out.address, out.same_host, cells, Arc::clone(hub));
                let sender = started.map_err(|error| (TransferFault::Connection, error.to_string()))?;
                let (ticket, rounds) = (out.ticket, VecDeque::new());
                place.insert(Outgoing { ticket, sender, rounds })
            }
        };
        outgoing.rounds.push_back(OutRound {
            round: out.round,
            urgent: out.urgent,
            cells: out.cells,
            next: 0,
        });
        Ok(())
    }

    /// Takes what comes with a ticket from now on.
    pub fn receive(&mut self, at: &mut Sides<'_>, cells: CellsIn) -> Option<FromWorker> {
        let Ticket { transfer, target, .. } = cells.ticket;
        let received = self.try_receive(at, cells);
        received.err().map(|fault| failed(target, transfer, fault))
    }

    fn try_receive(&mut self, at: &mut Sides<'_>, cells: CellsIn) -> Result<(), Fault> {
        let side = at.get(cells.ticket.target)?;
        let hub = self.hub.as_ref().ok_or_else(no_transfers)?;
        check_heads(&cells.cells, &side.heads)?;
        hub.announce(cells.ticket, cells.source_rank, side.rank);
        let incoming = self.incoming.entry(cells.ticket.transfer).or_insert_with(|| Incoming {
            ticket: cells.ticket,
            rounds: BTreeMap::new(),
            unchecked: cells.starts_after,
            checked: BTreeMap::new(),
            early: Vec::new(),
        });
        let num_cells = cells.cells.num_cells();
        let round = InRound {
            cells: cells.cells,
            taken: vec![false; num_cells as usize],
            left: num_cells,
            bytes: 0,
            shared_bytes: 0,
        };
        incoming.rounds.insert((cells.round, cells.source_rank), round);
        Ok(())
    }

    /// Closes a transfer in both directions; what has come of it and belongs to no sequence is forgotten.
    pub fn end(&mut self, transfer: TransferId, at: &mut Sides<'_>) {
        if let Some(hub) = &self.hub {
            hub.end(transfer);
        }
        self.outgoing.retain(|key, _| key.0 != transfer);
        let Some(incoming) = self.incoming.remove(&transfer) else {
            return;
        };
        let blocks = incoming.rounds.values().flat_map(|round| &round.cells.blocks);
        let blocks: Vec<TaggedBlock> = blocks.map(|copy| copy.target).collect();
        if let Ok(side) = at.get(incoming.ticket.target) {
            blocks.iter().for_each(|block| side.books.forget_arrived(*block));
        }
        for block in blocks {
            self.sums.remove(&(incoming.ticket.target, block.id, block.tag.0));
        }
    }

    /// The epoch that was prepared begins: what came for it stays, and nothing more is sent or taken.
    pub fn close_all(&mut self, epoch: Epoch) {
        self.sums.retain(|key, _| key.0 == epoch);
        let outgoing = self.outgoing.keys().map(|key| key.0);
        let all: Vec<TransferId> = outgoing.chain(self.incoming.keys().copied()).collect();
        if let Some(hub) = &self.hub {
            all.into_iter().for_each(|transfer| hub.end(transfer));
        }
        self.outgoing.clear();
        self.incoming.clear();
    }

    /// The epoch is over: nothing is sent or taken for it any more.
    pub fn end_all(&mut self) {
        let outgoing = self.outgoing.keys().map(|key| key.0);
        let all: Vec<TransferId> = outgoing.chain(self.incoming.keys().copied()).collect();
        let mut nobody = Sides {
            running: None,
            prepared: None,
        };
        all.into_iter().for_each(|transfer| self.end(transfer, &mut nobody));
        self.sums.clear();
    }

    /// The checksums of a block that has come, by KV head.
    pub fn take_sums(&mut self, epoch: Epoch, block: TaggedBlock) -> BTreeMap<u32, u32> {
        self.sums.remove(&(epoch, block.id, block.tag.0)).unwrap_or_default()
    }

    /// Does one thing that is to be done; of those that nobody waits for only if `any`. False if there is none.
    pub fn work(
        &mut self,
        at: &mut Sides<'_>,
        backend: &mut dyn Backend,
        any: bool,
        report: &mut Vec<FromWorker>,
    ) -> bool {
        let Some(hub) = self.hub.clone() else {
            return false;
        };
        if let Some(Failure {
            transfer,
            fault,
            reason,
        }) = hub.take_failure()
        {
            let epoch = self.epoch_of(transfer).unwrap_or_else(|| at.any_epoch());
            report.push(failed(epoch, transfer, (fault, reason)));
            return true;
        }
        if self.put_early(at, backend, report) || self.copy_out(at, backend, false, report) {
            return true;
        }
        if let Some(cell) = hub.take(any) {
            self.put(at, backend, cell, report);
            return true;
        }
        any && (self.copy_out(at, backend, true, report) || self.check_one(at, backend))
    }

    /// Looks at a block that a sequence will start after, which its first step would do while somebody waits. False if
    /// there is none.
    fn check_one(&mut self, at: &mut Sides<'_>, backend: &mut dyn Backend) -> bool {
        for incoming in self.incoming.values_mut() {
            let Some(block) = incoming.unchecked.pop() else {
                continue;
            };
            if let Ok(side) = at.get(incoming.ticket.target)
                && side.books.is_whole(block)
                && let Some(seal) = side.seals.and_then(|seals| seals.get(&block.id))
                && backend.checksums(block.id) == *seal
            {
                incoming.checked.insert(block.id, block);
            }
            return true;
        }
        false
    }

    /// Whether a block was found to be as it was filled, in a transfer that goes on: that was a moment ago.
    pub fn has_checked(&self, epoch: Epoch, block: BlockId, books: &RankBooks) -> bool {
        let mut incoming = self
            .incoming
            .values()
            .filter(|incoming| incoming.ticket.target == epoch);
        let is_it = |checked: &TaggedBlock| books.is_whole(*checked);
        incoming.any(|incoming| incoming.checked.get(&block).is_some_and(is_it))
    }

    /// In which this rank takes part in a transfer.
    fn epoch_of(&self, transfer: TransferId) -> Option<Epoch> {
        let incoming = self.incoming.get(&transfer).map(|incoming| incoming.ticket.target);
        let mut outgoing = self.outgoing.iter().filter(|(key, _)| key.0 == transfer);
        incoming.or_else(|| outgoing.next().map(|(_, outgoing)| outgoing.ticket.source))
    }

    /// A cell that came before its round was announced.
    fn put_early(&mut self, at: &mut Sides<'_>, backend: &mut dyn Backend, report: &mut Vec<FromWorker>) -> bool {
        let ready = self.incoming.values_mut().find_map(|incoming| {
            let known = |cell: &ArrivedCell| incoming.rounds.contains_key(&(cell.header.round, cell.source_rank));
            let index = incoming.early.iter().position(known)?;
            Some(incoming.early.swap_remove(index))
        });
        let found = ready.is_some();
        if let Some(cell) = ready {
            self.put(at, backend, cell, report);
        }
        found
    }

    /// Puts a cell in its place and reports when that was the last of its round and rank.
    fn put(&mut self, at: &mut Sides<'_>, backend: &mut dyn Backend, cell: ArrivedCell, report: &mut Vec<FromWorker>) {
        let transfer = cell.transfer;
        let Some(incoming) = self.incoming.get_mut(&transfer) else {
            return;
        };
        if !incoming.rounds.contains_key(&(cell.header.round, cell.source_rank)) {
            incoming.early.push(cell);
            return;
        }
        let target = incoming.ticket.target;
        match self.try_put(at, backend, cell) {
            Ok(news) => {
                report.extend(news);
                if let Some(meter) = &self.meter {
                    meter.received.add(1);
                }
            }
            Err(fault) => report.push(failed(target, transfer, fault)),
        }
    }

    fn try_put(
        &mut self,
        at: &mut Sides<'_>,
        backend: &mut dyn Backend,
        cell: ArrivedCell,
    ) -> Result<Option<FromWorker>, Fault> {
        let Header {
            round,
            index,
            head,
            copy,
            checksum,
            ..
        } = cell.header;
        let incoming = self.incoming.get_mut(&cell.transfer).expect("seen a moment ago");
        let side = at.get(incoming.ticket.target)?;
        let of_round = incoming
            .rounds
            .get_mut(&(round, cell.source_rank))
            .expect("seen a moment ago");
        let listed = of_round.cells.get(index) == Some((head, copy)) && !of_round.taken[index as usize];
        if !listed {
            let block = copy.target.id;
            let reason = format!("cell {index} of round {round}, block {block} of KV head {head}, is not on the list");
            return Err((TransferFault::Cell, reason));
        }
        if !side.books.may_take(copy.target) {
            let (block, tag) = (copy.target.id, copy.target.tag);
            let reason = format!("block {block} with tag {tag} has been given to somebody else");
            return Err((TransferFault::Tag, reason));
        }
        import(backend, &cell)?;
        side.books.note_arrived(copy.target, copy.written);
        let block = (side.epoch, copy.target.id, copy.target.tag.0);
        self.sums.entry(block).or_default().insert(head.0, checksum);
        of_round.taken[index as usize] = true;
        of_round.left -= 1;
        let bytes = u64::from(cell.header.bytes);
        of_round.bytes += bytes;
        if matches!(cell.content, CellContent::Slot(_)) {
            of_round.shared_bytes += bytes;
        }
        let news = (of_round.left == 0).then(|| FromWorker::CellsArrived {
            epoch: side.epoch,
            transfer: cell.transfer,
            round,
            source_rank: cell.source_rank,
            cells: of_round.cells.num_cells(),
            bytes: of_round.bytes,
            shared_bytes: of_round.shared_bytes,
        });
        if let (Some(hub), CellContent::Private(buffer)) = (&self.hub, cell.content) {
            hub.give_back(buffer);
        }
        Ok(news)
    }

    /// Copies one cell out, if a connection has room for it.
    fn copy_out(
        &mut self,
        at: &mut Sides<'_>,
        backend: &mut dyn Backend,
        any: bool,
        report: &mut Vec<FromWorker>,
    ) -> bool {
        for (key, outgoing) in &mut self.outgoing {
            let Some(round) = outgoing.rounds.front_mut().filter(|round| any || round.urgent) else {
                continue;
            };
            let Some(buffer) = outgoing.sender.buffer() else {
                continue;
            };
            let copied = copy_cell(at, backend, outgoing.ticket, &outgoing.sender, round, buffer);
            if round.next == round.cells.num_cells() {
                outgoing.rounds.pop_front();
            }
            match copied {
                Ok(()) => {
                    if let Some(meter) = &self.meter {
                        meter.sent.add(1);
                    }
                }
                Err(fault) => {
                    outgoing.rounds.clear();
                    report.push(failed(outgoing.ticket.source, key.0, fault));
                }
            }
            return true;
        }
        false
    }
}

/// What lies in shared memory is checked as it is here: its source could change it until then.
pub(super) fn import(backend: &mut dyn Backend, cell: &ArrivedCell) -> Result<(), Fault> {
    let Header { head, copy, .. } = cell.header;
    let mut checked = Ok(());
    let imported = match &cell.content {
        CellContent::Private(bytes) => backend.import_cell(head, copy.target.id, bytes),
        CellContent::Slot(slot) => backend.fill_cell(head, copy.target.id, cell.header.bytes as usize, &mut |bytes| {
            checked = cell.header.check(slot.copy(bytes));
            checked.is_ok()
        }),
    };
    imported.map_err(|error| (TransferFault::Cell, error.to_string()))?;
    checked
}

fn copy_cell(
    at: &mut Sides<'_>,
    backend: &mut dyn Backend,
    ticket: Ticket,
    sender: &CellSender,
    round: &mut OutRound,
    mut buffer: Buffer,
) -> Result<(), Fault> {
    let side = at.get(ticket.source)?;
    let index = round.next;
    let (head, copy) = round.cells.get(index).expect("rounds end with their last cell");
    round.next += 1;
    if !side.books.holds(copy.source, copy.written) {
        let (block, tag) = (copy.source.id, copy.source.tag);
        let reason = format!("block {block} with tag {tag} is not held any more, or not so far");
        return Err((TransferFault::Tag, reason));
    }
    let exported = backend.export_cell(head, copy.source.id, buffer.bytes_mut());
    exported.map_err(|error| (TransferFault::Cell, error.to_string()))?;
    let local = (head.0 - side.heads.start) as usize;
    // A block that is not full has the seal of what it held before, if any.
    let sums = side.seals.filter(|_| side.books.is_full(copy.written));
    let sums = sums.and_then(|seals| seals.get(&copy.source.id));
    let sealed = sums.and_then(|sums| sums.get(local)).copied();
    let header = Header {
        round: round.round,
        index,
        head,
        copy,
        bytes: buffer.bytes().len() as u32,
        checksum: 0,
        urgent: round.urgent,
        slot: None,
    };
    sender.send(header, buffer, sealed);
    Ok(())
}

fn check_heads(cells: &CellSet, local: &Range<u32>) -> Result<(), Fault> {
    let heads = &cells.heads;
    if heads.start >= local.start && heads.end <= local.end {
        return Ok(());
    }
    let reason = format!(
        "KV heads {} to {} where {} to {} are held",
        heads.start, heads.end, local.start, local.end
    );
    Err((TransferFault::Cell, reason))
}

fn no_transfers() -> Fault {
    (
        TransferFault::Connection,
        "this worker takes part in no transfers".to_owned(),
    )
}

fn failed(epoch: Epoch, transfer: TransferId, (fault, reason): Fault) -> FromWorker {
    FromWorker::TransferFailed {
        epoch,
        transfer,
        fault,
        reason,
    }
}
