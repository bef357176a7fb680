//! What is said of transfers, to and from the domain types.

use kvasir_kv as kv;

use super::{ConvertError, epoch_id, parse_epoch, parse_span, wrap};
use crate::v1;

/// Numbers by which a block copy is written, and an adopted block.
const COPY_LEN: usize = 5;
const ADOPTED_LEN: usize = 3;
const BLOCK_LEN: usize = 2;

/// # Panics
/// If the message does not speak of a transfer.
pub(super) fn news(message: kv::FromWorker) -> v1::FromWorker {
    use v1::from_worker::Message;
    wrap(match message {
        kv::FromWorker::CellsArrived {
            epoch,
            transfer,
            round,
            source_rank,
            cells,
            bytes,
            shared_bytes,
        } => Message::CellsArrived(v1::CellsArrived {
            epoch: epoch_id(epoch),
            transfer: transfer.0,
            round,
            source_rank: source_rank.0,
            cells,
            bytes,
            shared_bytes,
        }),
        kv::FromWorker::TransferFailed {
            epoch,
            transfer,
            fault,
            reason,
        } => Message::TransferFailed(v1::TransferFailed {
            epoch: epoch_id(epoch),
            transfer: transfer.0,
            fault: self::fault(fault).into(),
            reason,
        }),
        other => unreachable!("{other:?} does not speak of a transfer"),
    })
}

pub(super) fn parse_arrived(arrived: v1::CellsArrived) -> Result<kv::FromWorker, ConvertError> {
    Ok(kv::FromWorker::CellsArrived {
        epoch: parse_epoch(arrived.epoch)?,
        transfer: kv::TransferId(arrived.transfer),
        round: arrived.round,
        source_rank: kv::Rank(arrived.source_rank),
        cells: arrived.cells,
        bytes: arrived.bytes,
        shared_bytes: arrived.shared_bytes,
    })
}

pub(super) fn parse_failed(failed: v1::TransferFailed) -> Result<kv::FromWorker, ConvertError> {
    Ok(kv::FromWorker::TransferFailed {
        epoch: parse_epoch(failed.epoch)?,
        transfer: kv::TransferId(failed.transfer),
        fault: parse_fault(failed.fault())?,
        reason: failed.reason,
    })
}

pub(super) fn cells_out(out: kv::CellsOut) -> v1::SendCells {
    v1::SendCells {
        ticket: Some(ticket(out.ticket)),
        round: out.round,
        source_rank: out.source_rank.0,
        target_rank: out.target_rank.0,
        address: out.address,
        same_host: out.same_host,
        urgent: out.urgent,
        cells: Some(cell_set(&out.cells)),
    }
}

pub(super) fn parse_cells_out(out: v1::SendCells) -> Result<kv::CellsOut, ConvertError> {
    Ok(kv::CellsOut {
        ticket: parse_ticket(out.ticket)?,
        round: out.round,
        source_rank: kv::Rank(out.source_rank),
        target_rank: kv::Rank(out.target_rank),
        address: out.address,
        same_host: out.same_host,
        urgent: out.urgent,
        cells: parse_cell_set(out.cells)?,
    })
}

pub(super) fn cells_in(cells: kv::CellsIn) -> v1::ReceiveCells {
    v1::ReceiveCells {
        ticket: Some(ticket(cells.ticket)),
        round: cells.round,
        source_rank: cells.source_rank.0,
        cells: Some(cell_set(&cells.cells)),
        starts_after: cells
            .starts_after
            .iter()
            .flat_map(|block| [block.id.0, block.tag.0])
            .collect(),
    }
}

pub(super) fn parse_cells_in(cells: v1::ReceiveCells) -> Result<kv::CellsIn, ConvertError> {
    let starts_after = rows::<BLOCK_LEN>(&cells.starts_after, "starts_after", "id and tag by turns")?;
    Ok(kv::CellsIn {
        starts_after: starts_after.iter().map(|[id, tag]| tagged(*id, *tag)).collect(),
        ticket: parse_ticket(cells.ticket)?,
        round: cells.round,
        source_rank: kv::Rank(cells.source_rank),
        cells: parse_cell_set(cells.cells)?,
    })
}

pub(super) fn adopted(adopted: &[kv::AdoptedBlock]) -> Vec<u32> {
    let numbers = |adopted: &kv::AdoptedBlock| [adopted.block.id.0, adopted.block.tag.0, adopted.written];
    adopted.iter().flat_map(numbers).collect()
}

pub(super) fn parse_adopted(numbers: &[u32]) -> Result<Vec<kv::AdoptedBlock>, ConvertError> {
    let adopted = rows::<ADOPTED_LEN>(numbers, "adopted", "id, tag and positions by turns")?;
    let parse = |[id, tag, written]: &[u32; ADOPTED_LEN]| kv::AdoptedBlock {
        block: tagged(*id, *tag),
        written: *written,
    };
    Ok(adopted.iter().map(parse).collect())
}

fn ticket(ticket: kv::Ticket) -> v1::Ticket {
    v1::Ticket {
        transfer: ticket.transfer.0,
        secret: ticket.secret,
        source: epoch_id(ticket.source),
        target: epoch_id(ticket.target),
    }
}

fn parse_ticket(ticket: Option<v1::Ticket>) -> Result<kv::Ticket, ConvertError> {
    let ticket = ticket.ok_or(ConvertError::Missing { field: "ticket" })?;
    Ok(kv::Ticket {
        transfer: kv::TransferId(ticket.transfer),
        secret: ticket.secret,
        source: parse_epoch(ticket.source)?,
        target: parse_epoch(ticket.target)?,
    })
}

fn cell_set(cells: &kv::CellSet) -> v1::CellSet {
    let numbers = |copy: &kv::BlockCopy| {
        let (source, target) = (copy.source, copy.target);
        [source.id.0, source.tag.0, target.id.0, target.tag.0, copy.written]
    };
    v1::CellSet {
        heads_begin: cells.heads.start,
        heads_end: cells.heads.end,
        blocks: cells.blocks.iter().flat_map(numbers).collect(),
    }
}

fn parse_cell_set(cells: Option<v1::CellSet>) -> Result<kv::CellSet, ConvertError> {
    let cells = cells.ok_or(ConvertError::Missing { field: "cells" })?;
    let (begin, end) = (cells.heads_begin, cells.heads_end);
    let heads = parse_span(Some(v1::UnitSpan { begin, end }), "heads")?;
    let blocks = rows::<COPY_LEN>(
        &cells.blocks,
        "blocks",
        "ids, tags and positions, five numbers for each block",
    )?;
    let parse = |[source, source_tag, target, target_tag, written]: &[u32; COPY_LEN]| kv::BlockCopy {
        source: tagged(*source, *source_tag),
        target: tagged(*target, *target_tag),
        written: *written,
    };
    let blocks: Vec<_> = blocks.iter().map(parse).collect();
    if heads
        .len()
        .checked_mul(blocks.len())
        .is_none_or(|cells| cells > i32::MAX as usize)
    {
        return Err(ConvertError::Bad {
            field: "cells",
            found: format!("{} heads of {} blocks", heads.len(), blocks.len()),
            expected: "fewer than 2^31 cells",
        });
    }
    Ok(kv::CellSet { heads, blocks })
}

fn rows<'a, const N: usize>(
    numbers: &'a [u32],
    field: &'static str,
    expected: &'static str,
) -> Result<&'a [[u32; N]], ConvertError> {
    match numbers.as_chunks() {
        (rows, []) => Ok(rows),
        _ => Err(ConvertError::Bad {
            field,
            found: format!("{} numbers", numbers.len()),
            expected,
        }),
    }
}

fn tagged(id: u32, tag: u32) -> kv::TaggedBlock {
    kv::TaggedBlock {
        id: kv::BlockId(id),
        tag: kv::BlockTag(tag),
    }
}

fn fault(fault: kv::TransferFault) -> v1::TransferFault {
    match fault {
        kv::TransferFault::Ticket => v1::TransferFault::Ticket,
        kv::TransferFault::Epoch => v1::TransferFault::Epoch,
        kv::TransferFault::Tag => v1::TransferFault::Tag,
        kv::TransferFault::Cell => v1::TransferFault::Cell,
        kv::TransferFault::Numerics => v1::TransferFault::Numerics,
        kv::TransferFault::Checksum => v1::TransferFault::Checksum,
        kv::TransferFault::Frame => v1::TransferFault::Frame,
        kv::TransferFault::Connection => v1::TransferFault::Connection,
        kv::TransferFault::Deadline => v1::TransferFault::Deadline,
    }
}

fn parse_fault(fault: v1::TransferFault) -> Result<kv::TransferFault, ConvertError> {
    let all = kv::TransferFault::ALL;
    all.into_iter()
        .find(|known| self::fault(*known) == fault)
        .ok_or(ConvertError::Missing { field: "fault" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::{Arrival, from_worker, parse_from_worker, parse_to_worker, to_worker};

    fn epoch(number: u64) -> kv::Epoch {
        kv::Epoch { term: 3, number }
    }

    fn some_ticket() -> kv::Ticket {
        kv::Ticket {
            transfer: kv::TransferId(5),
            secret: u64::MAX - 1,
            source: epoch(8),
            target: epoch(9),
        }
    }

    fn cells() -> kv::CellSet {
        let copy = |id| kv::BlockCopy {
            source: tagged(id, 2),
            target: tagged(id + 10, 7),
            written: 64 - id,
        };
        kv::CellSet {
            heads: 1..3,
            blocks: (0..3).map(copy).collect(),
        }
    }

    #[test]
    fn what_is_said_of_transfers_survives_the_wire() {
        let out = kv::CellsOut {
            ticket: some_ticket(),
            round: 2,
            source_rank: kv::Rank(1),
            target_rank: kv::Rank(3),
            address: "[::1]:4000".to_owned(),
            same_host: true,
            urgent: true,
            cells: cells(),
        };
        let taken = kv::CellsIn {
            ticket: some_ticket(),
            round: 2,
            source_rank: kv::Rank(1),
            cells: cells(),
            starts_after: vec![tagged(3, 4), tagged(5, 6)],
        };
        let transfer = kv::TransferId(5);
        for message in [
            kv::ToWorker::SendCells(out),
            kv::ToWorker::ReceiveCells(taken),
            kv::ToWorker::EndTransfer { transfer },
        ] {
            assert_eq!(parse_to_worker(to_worker(message.clone())), Ok(message));
        }
        let arrived = kv::FromWorker::CellsArrived {
            epoch: epoch(9),
            transfer,
            round: 2,
            source_rank: kv::Rank(1),
            cells: 6,
            bytes: 1 << 40,
            shared_bytes: 1 << 39,
        };
        let failed = |fault| kv::FromWorker::TransferFailed {
            epoch: epoch(9),
            transfer,
            fault,
            reason: "why".to_owned(),
        };
        let faults = kv::TransferFault::ALL.map(failed);
        for message in faults.into_iter().chain([arrived]) {
            let parsed = parse_from_worker(from_worker(message.clone()));
            assert_eq!(parsed, Ok(Arrival::Message(message)));
        }
    }

    #[test]
    fn torn_lists_and_absurd_numbers_of_cells_are_refused_by_field() {
        let torn = |blocks: Vec<u32>, heads_end| v1::CellSet {
            heads_begin: 0,
            heads_end,
            blocks,
        };
        let field_of = |cells| match parse_cell_set(Some(cells)) {
            Err(ConvertError::Bad { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field_of(torn(vec![1, 2, 3, 4], 1)), "blocks");
        assert_eq!(field_of(torn(vec![0; 10], u32::MAX)), "cells");
        assert!(matches!(
            parse_adopted(&[1, 2]),
            Err(ConvertError::Bad { field: "adopted", .. })
        ));
    }
}
