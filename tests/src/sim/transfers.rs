//! Transfers between simulated workers: cells are copied out and put in their place between steps, one block at a time,
//! and may be lost or damaged on their way.

use std::collections::{BTreeMap, BTreeSet};

use kvasir_kv::{
    BlockCopy, CellSet, CellsIn, CellsOut, Epoch, FromWorker, KvHead, Rank, Ticket, ToWorker, TransferFault, TransferId,
};

use super::{
    cells::slot_of,
    plant::Plant,
    rank::{Inside, Part, SimWorker},
    scenario::MS,
    world::World,
};

#[derive(Debug, Default)]
pub(super) struct SimTransfers {
    /// What is still to be sent.
    out: BTreeMap<(TransferId, Rank), Vec<(CellsOut, u32)>>,
    incoming: BTreeMap<(TransferId, Rank), Incoming>,
    ended: BTreeSet<TransferId>,
}

impl SimTransfers {
    /// Another epoch begins; what came for it stays.
    pub fn close(&mut self) {
        let open = self.out.keys().chain(self.incoming.keys()).map(|key| key.0);
        self.ended.extend(open.collect::<Vec<_>>());
        self.out.clear();
        self.incoming.clear();
    }
}

#[derive(Debug)]
struct Incoming {
    ticket: Ticket,
    rounds: BTreeMap<u32, (CellSet, BTreeSet<u32>)>,
    early: Vec<Cell>,
}

/// A cell on its way.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    ticket: Ticket,
    source: Rank,
    round: u32,
    index: u32,
    head: KvHead,
    copy: BlockCopy,
    values: Vec<u64>,
    damaged: bool,
}

#[derive(Clone, Debug)]
pub(super) enum TransferNews {
    /// Time to copy the next cell out.
    CopyOut(TransferId, Rank),
    Arrived(Cell),
    /// The connection of a source rank broke.
    Broken(Ticket, Epoch),
}

impl SimWorker {
    /// Its part in an epoch that works, or gets ready.
    fn part_of(&mut self, epoch: Epoch) -> Option<&mut Part> {
        let mut parts = self.part.iter_mut().chain(&mut self.prepared);
        parts.find(|part| part.spec.epoch == epoch)
    }

    fn cells_of(&mut self, epoch: Epoch, head: u32) -> Option<&mut Vec<u64>> {
        match self.epoch() == Some(epoch) {
            true => self.cells.get_mut(&head),
            false => self.ahead.get_mut(&head),
        }
    }
}

impl World {
    pub(super) fn transfer_order(&mut self, w: usize, message: ToWorker) {
        match message {
            ToWorker::SendCells(out) => self.send_cells(w, out),
            ToWorker::ReceiveCells(cells) => self.receive_cells(w, cells),
            ToWorker::EndTransfer { transfer } => self.end_transfer(w, transfer),
            ToWorker::SwitchEpoch { epoch, .. } => self.switch(w, epoch),
            ToWorker::PrepareEpoch(spec) => self.prepare(w, spec),
            ToWorker::DropEpoch { epoch } => {
                let worker = &mut self.workers[w];
                worker.prepared.take_if(|part| part.spec.epoch <= epoch);
            }
            other => unreachable!("{other:?} is not about a transfer"),
        }
    }

    pub(super) fn transfer_news(&mut self, w: usize, news: TransferNews) {
        match news {
            TransferNews::CopyOut(transfer, target) => self.copy_out(w, transfer, target),
            TransferNews::Arrived(cell) => self.cell_arrives(w, cell),
            TransferNews::Broken(ticket, epoch) => {
                let is_in = |world: &Self| world.workers[w].epoch() == Some(epoch);
                if is_in(self) {
                    self.fail_transfer(w, ticket.transfer, TransferFault::Connection);
                }
            }
        }
    }

    fn send_cells(&mut self, w: usize, out: CellsOut) {
        let (transfer, target) = (out.ticket.transfer, out.target_rank);
        if self.workers[w].epoch() != Some(out.ticket.source) {
            return;
        }
        let rounds = self.workers[w].transfers.out.entry((transfer, target)).or_default();
        rounds.push((out, 0));
        if rounds.len() == 1 {
            self.copy_soon(w, transfer, target);
        }
    }

    fn copy_soon(&mut self, w: usize, transfer: TransferId, target: Rank) {
        let wait = self.dice.between(20, 2 * MS);
        self.inside(w, wait, Inside::Transfer(TransferNews::CopyOut(transfer, target)));
    }

    fn copy_out(&mut self, w: usize, transfer: TransferId, target: Rank) {
        let key = (transfer, target);
        let computes = self.workers[w].part.as_ref().is_some_and(|part| part.run.is_some());
        let late = self.dice.chance(70);
        let Some(rounds) = self.workers[w].transfers.out.get_mut(&key) else {
            return;
        };
        let Some((out, next)) = rounds.first_mut() else {
            return;
        };
        if computes && late && !out.urgent {
            // Between steps only; those that somebody waits for are asked for behind the last step.
            return self.copy_soon(w, transfer, target);
        }
        let Some((head, copy)) = out.cells.get(*next) else {
            rounds.remove(0);
            return self.copy_out(w, transfer, target);
        };
        let (index, out) = (*next, out.clone());
        *next += 1;
        let Some(part) = self.workers[w]
            .part
            .as_ref()
            .filter(|part| part.spec.epoch == out.ticket.source)
        else {
            return;
        };
        if !part.books.holds(copy.source, copy.written) {
            return self.fail_transfer(w, transfer, TransferFault::Tag);
        }
        let block_size = part.spec.block_size;
        let cells = &self.workers[w].cells[&head.0];
        let values = (0..block_size).map(|offset| cells[slot_of(copy.source.id, offset, block_size)]);
        let mut cell = Cell {
            ticket: out.ticket,
            source: out.source_rank,
            round: out.round,
            index,
            head,
            copy,
            values: values.collect(),
            damaged: false,
        };
        if self.plant == Some(Plant::CellDamaged) && self.take_plant(10) {
            cell.values[0] ^= 1;
        }
        self.send_cell(w, &out, cell);
        self.copy_soon(w, transfer, target);
    }

    fn send_cell(&mut self, w: usize, out: &CellsOut, mut cell: Cell) {
        let bad = self.scenario.bad_cells > 0 && self.dice.chance(self.scenario.bad_cells);
        if bad && self.dice.chance(50) {
            let broken = TransferNews::Broken(out.ticket, out.ticket.source);
            let wait = self.dice.between(100, 50 * MS);
            return self.inside(w, wait, Inside::Transfer(broken));
        }
        cell.damaged = bad;
        let address = out
            .address
            .strip_prefix("worker-")
            .and_then(|rest| rest.strip_suffix(":1"));
        let target: usize = address
            .and_then(|index| index.parse().ok())
            .expect("simulated workers have such addresses");
        if self.workers[target].alive {
            let late = self.plant == Some(Plant::LateCell) && self.dice.chance(30);
            let wait = self
                .dice
                .between(20, if late { 500 * MS } else { self.scenario.delay_max });
            self.inside(target, wait, Inside::Transfer(TransferNews::Arrived(cell)));
        }
    }

    fn receive_cells(&mut self, w: usize, cells: CellsIn) {
        if self.workers[w].part_of(cells.ticket.target).is_none() {
            return;
        }
        let key = (cells.ticket.transfer, cells.source_rank);
        let incoming = self.workers[w]
            .transfers
            .incoming
            .entry(key)
            .or_insert_with(|| Incoming {
                ticket: cells.ticket,
                rounds: BTreeMap::new(),
                early: Vec::new(),
            });
        incoming.ticket = cells.ticket;
        incoming.rounds.insert(cells.round, (cells.cells, BTreeSet::new()));
        for cell in std::mem::take(&mut incoming.early) {
            self.cell_arrives(w, cell);
        }
    }

    fn cell_arrives(&mut self, w: usize, cell: Cell) {
        let transfer = cell.ticket.transfer;
        let careless = self.plant == Some(Plant::LateCell);
        let worker = &mut self.workers[w];
        if worker.transfers.ended.contains(&transfer) || worker.part_of(cell.ticket.target).is_none() {
            return;
        }
        let incoming = worker
            .transfers
            .incoming
            .entry((transfer, cell.source))
            .or_insert_with(|| Incoming {
                ticket: cell.ticket,
                rounds: BTreeMap::new(),
                early: Vec::new(),
            });
        if incoming.ticket != cell.ticket {
            return self.fail_transfer(w, transfer, TransferFault::Ticket);
        }
        let Some((set, taken)) = incoming.rounds.get_mut(&cell.round) else {
            incoming.early.push(cell);
            return;
        };
        if cell.damaged {
            return self.fail_transfer(w, transfer, TransferFault::Checksum);
        }
        if set.get(cell.index) != Some((cell.head, cell.copy)) || !taken.insert(cell.index) {
            return self.fail_transfer(w, transfer, TransferFault::Cell);
        }
        let (num_cells, is_last) = (set.num_cells(), taken.len() as u32 == set.num_cells());
        let target = cell.ticket.target;
        let part = worker.part_of(target).expect("just seen");
        if !careless && !part.books.may_take(cell.copy.target) {
            return self.fail_transfer(w, transfer, TransferFault::Tag);
        }
        part.books.note_arrived(cell.copy.target, cell.copy.written);
        let block_size = part.spec.block_size;
        let cells = worker.cells_of(target, cell.head.0).expect("the head is its own");
        for (offset, value) in (0..block_size).zip(&cell.values) {
            cells[slot_of(cell.copy.target.id, offset, block_size)] = *value;
        }
        self.report.cells_moved += 1;
        if is_last {
            let arrived = FromWorker::CellsArrived {
                epoch: cell.ticket.target,
                transfer,
                round: cell.round,
                source_rank: cell.source,
                cells: num_cells,
                bytes: u64::from(num_cells),
                shared_bytes: 0,
            };
            self.report(self.workers[w].session, arrived);
        }
    }

    fn end_transfer(&mut self, w: usize, transfer: TransferId) {
        if self.plant == Some(Plant::LateCell) {
            return;
        }
        let worker = &mut self.workers[w];
        worker.transfers.ended.insert(transfer);
        worker.transfers.out.retain(|key, _| key.0 != transfer);
        let mut blocks = Vec::new();
        worker.transfers.incoming.retain(|key, incoming| {
            if key.0 == transfer {
                let sets = incoming.rounds.values().map(|(set, _)| set);
                let named = sets.flat_map(|set| set.blocks.iter().map(|copy| copy.target));
                blocks.extend(named.map(|block| (incoming.ticket.target, block)));
            }
            key.0 != transfer
        });
        for (epoch, block) in blocks {
            if let Some(part) = worker.part_of(epoch) {
                part.books.forget_arrived(block);
            }
        }
    }

    fn fail_transfer(&mut self, w: usize, transfer: TransferId, fault: TransferFault) {
        let worker = &self.workers[w];
        let mut incoming = worker.transfers.incoming.iter();
        let incoming = incoming.find(|(key, _)| key.0 == transfer);
        let epoch = incoming.map(|(_, incoming)| incoming.ticket.target).or(worker.epoch());
        if let Some(epoch) = epoch {
            let reason = format!("{} says so", worker.id);
            let failed = FromWorker::TransferFailed {
                epoch,
                transfer,
                fault,
                reason,
            };
            self.report(worker.session, failed);
        }
    }
}
