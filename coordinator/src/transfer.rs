//! A transfer as the coordinator follows it: who sends which heads to whom, what was asked for, and what has come.

use std::collections::BTreeSet;

use kvasir_kv::{
    BlockCopy, CellSet, CellsIn, CellsOut, Rank, Route, TaggedBlock, Ticket, ToWorker, TransferId, WorkerInfo,
};

use crate::{Effect, Now, SessionId};

/// One source rank and one target rank, and what goes between them.
#[derive(Clone, Debug)]
pub(crate) struct Lane {
    pub route: Route,
    pub source: SessionId,
    pub target: SessionId,
    address: String,
    same_host: bool,
}

impl Lane {
    pub fn new(
        route: Route,
        (source, from): (SessionId, &WorkerInfo),
        (target, to): (SessionId, &WorkerInfo),
        force_tcp: bool,
    ) -> Self {
        Self {
            route,
            source,
            target,
            address: to.transfer_address.clone(),
            same_host: from.host == to.host && !force_tcp,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Transfer {
    pub ticket: Ticket,
    lanes: Vec<Lane>,
    /// What the target has of it, until its ranks are told with the first round.
    pub starts_after: Vec<TaggedBlock>,
    pub num_rounds: u32,
    /// Round, source and target rank of what has not come yet.
    awaited: BTreeSet<(u32, Rank, Rank)>,
    pub cells_planned: u64,
    pub cells_arrived: u64,
    pub bytes: u64,
    /// Of these, those that came through shared memory.
    pub shared_bytes: u64,
    /// When something came, or was asked for, last.
    pub moved: Now,
}

/// What a target rank says has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrived {
    pub round: u32,
    pub source: Rank,
    pub cells: u32,
    pub bytes: u64,
    pub shared_bytes: u64,
}

impl Transfer {
    pub fn new(ticket: Ticket, lanes: Vec<Lane>, now: Now) -> Self {
        Self {
            ticket,
            lanes,
            starts_after: Vec::new(),
            num_rounds: 0,
            awaited: BTreeSet::new(),
            cells_planned: 0,
            cells_arrived: 0,
            bytes: 0,
            shared_bytes: 0,
            moved: now,
        }
    }

    pub fn id(&self) -> TransferId {
        self.ticket.transfer
    }

    /// All that was asked for has come.
    pub fn is_complete(&self) -> bool {
        self.awaited.is_empty()
    }

    /// Asks for the cells of these blocks, over every lane.
    pub fn ask(&mut self, copies: &[BlockCopy], urgent: bool, now: Now) -> Vec<Effect> {
        self.moved = now;
        if copies.is_empty() {
            return Vec::new();
        }
        let round = self.num_rounds;
        self.num_rounds += 1;
        let mut effects = Vec::new();
        let starts_after = std::mem::take(&mut self.starts_after);
        for lane in &self.lanes {
            let cells = CellSet {
                heads: lane.route.heads.clone(),
                blocks: copies.to_vec(),
            };
            self.cells_planned += u64::from(cells.num_cells());
            self.awaited.insert((round, lane.route.source, lane.route.target));
            let receive = ToWorker::ReceiveCells(CellsIn {
                ticket: self.ticket,
                round,
                source_rank: lane.route.source,
                cells: cells.clone(),
                starts_after: starts_after.clone(),
            });
            let send = ToWorker::SendCells(CellsOut {
                ticket: self.ticket,
                round,
                source_rank: lane.route.source,
                target_rank: lane.route.target,
                address: lane.address.clone(),
                same_host: lane.same_host,
                urgent,
                cells,
            });
            for (session, message) in [(lane.target, receive), (lane.source, send)] {
                effects.push(Effect::Send { session, message });
            }
        }
        effects
    }

    pub fn on_arrived(&mut self, target: Rank, arrived: Arrived, now: Now) {
        if self.awaited.remove(&(arrived.round, arrived.source, target)) {
            self.cells_arrived += u64::from(arrived.cells);
            self.bytes += arrived.bytes;
            self.shared_bytes += arrived.shared_bytes;
            self.moved = now;
        }
    }
}
