//! A transfer as data: which cells go from which rank to which, and what a receiver checks before it takes them.
//!
//! A transfer joins two epochs: those of two groups when a sequence migrates, or the present and the next one of a group
//! that reshards. Cells come in rounds. The bytes go from worker to worker; the coordinator hands out the ticket and the
//! lists, and hears what has arrived.

use std::{fmt, ops::Range};

use crate::{Epoch, KvHead, Rank, ShardPlan, TaggedBlock, TransferId, UnitId, UnitKind};

/// What both ends of a transfer are told, and nobody else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    pub transfer: TransferId,
    /// Drawn anew for each transfer.
    pub secret: u64,
    /// In which the source holds the cells.
    pub source: Epoch,
    /// For which the target takes them.
    pub target: Epoch,
}

/// A block to be copied, by its names at both ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockCopy {
    pub source: TaggedBlock,
    pub target: TaggedBlock,
    /// Positions that it holds; the rest of its cells is copied too and means nothing.
    pub written: u32,
}

/// The cells of one round that one rank sends to one other: of each block a cell for each head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CellSet {
    pub heads: Range<u32>,
    pub blocks: Vec<BlockCopy>,
}

impl CellSet {
    pub fn num_cells(&self) -> u32 {
        self.heads.len() as u32 * self.blocks.len() as u32
    }

    /// Block by block, so that blocks are complete one after the other; the index is the cell's name on the wire.
    pub fn get(&self, index: u32) -> Option<(KvHead, BlockCopy)> {
        let num_heads = self.heads.len() as u32;
        let block = self.blocks.get(index.checked_div(num_heads)? as usize)?;
        Some((KvHead(self.heads.start + index % num_heads), *block))
    }
}

/// What a source rank is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CellsOut {
    pub ticket: Ticket,
    pub round: u32,
    pub source_rank: Rank,
    pub target_rank: Rank,
    /// Where the target takes transfers, `host:port`.
    pub address: String,
    /// Both ends can open each other's memory.
    pub same_host: bool,
    /// Somebody waits for these: they go before cells that are copied ahead.
    pub urgent: bool,
    pub cells: CellSet,
}

/// What a target rank is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CellsIn {
    pub ticket: Ticket,
    pub round: u32,
    pub source_rank: Rank,
    pub cells: CellSet,
    /// Full blocks that are here already and that the sequence will start after: they can be looked at meanwhile.
    pub starts_after: Vec<TaggedBlock>,
}

/// A block whose cells have come by a transfer and that a sequence goes on with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AdoptedBlock {
    pub block: TaggedBlock,
    /// Positions that it holds.
    pub written: u32,
}

/// Why a transfer failed, as counted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum TransferFault {
    /// A connection that shows no ticket that is open here, or one that was shown before.
    Ticket,
    /// The ticket is of another epoch than the rank's.
    Epoch,
    /// A block has been given to somebody else since.
    Tag,
    /// A cell that is not on the list, or of another size.
    Cell,
    /// Cells of another model, or computed another way.
    Numerics,
    /// The bytes are not those that were sent, or not those that were computed.
    Checksum,
    /// A frame that ends too early or makes no sense.
    Frame,
    /// The other end cannot be reached, or has gone away.
    Connection,
    /// It took too long.
    Deadline,
}

impl TransferFault {
    pub const ALL: [Self; 9] = [
        Self::Ticket,
        Self::Epoch,
        Self::Tag,
        Self::Cell,
        Self::Numerics,
        Self::Checksum,
        Self::Frame,
        Self::Connection,
        Self::Deadline,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ticket => "ticket",
            Self::Epoch => "epoch",
            Self::Tag => "tag",
            Self::Cell => "cell",
            Self::Numerics => "numerics",
            Self::Checksum => "checksum",
            Self::Frame => "frame",
            Self::Connection => "connection",
            Self::Deadline => "deadline",
        }
    }
}

impl fmt::Display for TransferFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// KV heads that one rank holds and another is to hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    pub source: Rank,
    pub target: Rank,
    pub heads: Range<u32>,
}

/// Which heads go from which rank to which, so that `target` can go on where `source` stopped: each head has one source
/// and one target. `stays` says whether a source rank and a target rank are the same memory: nothing is copied then.
pub fn transfer_routes(source: &ShardPlan, target: &ShardPlan, stays: impl Fn(Rank, Rank) -> bool) -> Vec<Route> {
    let num_heads = source
        .shares()
        .iter()
        .map(|share| share.attention.end)
        .max()
        .unwrap_or(0);
    let owner = |plan: &ShardPlan, head| {
        plan.owner(UnitKind::Attention, UnitId(head))
            .expect("a plan covers every head")
    };
    let mut routes: Vec<Route> = Vec::new();
    for head in 0..num_heads {
        let (from, to) = (owner(source, head), owner(target, head));
        if stays(from, to) {
            continue;
        }
        match routes.last_mut() {
            Some(last) if (last.source, last.target, last.heads.end) == (from, to, head) => last.heads.end += 1,
            _ => routes.push(Route {
                source: from,
                target: to,
                heads: head..head + 1,
            }),
        }
    }
    routes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{BlockId, BlockTag, HeadLayout, ModelShape, RankCapacity, UnitBytes, UnitLayout};

    fn plan(kv_heads: u32, ranks: usize) -> ShardPlan {
        let heads = HeadLayout::new(kv_heads, kv_heads, 64).unwrap();
        let shape = ModelShape {
            num_layers: 1,
            hidden_size: 64,
            heads,
            intermediate_size: 640,
            vocab_size: 640,
            context_len: 64,
        };
        let bytes = UnitBytes {
            attention: 10,
            ffn_per_column: 1,
            vocab_per_row: 1,
            embedding_per_row: 0,
            replicated: 0,
        };
        ShardPlan::balance(&UnitLayout::new(shape, bytes), &vec![RankCapacity::default(); ranks], 0).unwrap()
    }

    proptest! {
        #[test]
        fn every_head_has_one_owner_before_and_after_and_none_is_copied_in_place(
            kv_heads in 1u32..12, from in 1usize..6, to in 1usize..6, shift in 0u32..3,
        ) {
            let (source, target) = (plan(kv_heads, from), plan(kv_heads, to));
            // Rank r before is the same worker as rank r + shift after.
            let stays = |a: Rank, b: Rank| a.0 + shift == b.0;
            let routes = transfer_routes(&source, &target, stays);
            for head in 0..kv_heads {
                let from = source.owner(UnitKind::Attention, UnitId(head)).unwrap();
                let to = target.owner(UnitKind::Attention, UnitId(head)).unwrap();
                let of_head: Vec<_> = routes.iter().filter(|route| route.heads.contains(&head)).collect();
                if stays(from, to) {
                    prop_assert!(of_head.is_empty());
                } else {
                    prop_assert_eq!(of_head.len(), 1);
                    prop_assert_eq!((of_head[0].source, of_head[0].target), (from, to));
                }
            }
            let routed: usize = routes.iter().map(|route| route.heads.len()).sum();
            prop_assert!(routed <= kv_heads as usize);
        }

        #[test]
        fn a_set_names_each_cell_of_each_block_once(begin in 0u32..5, heads in 0u32..4, blocks in 0u32..6) {
            let block = |id| TaggedBlock { id: BlockId(id), tag: BlockTag(id + 1) };
            let copies = (0..blocks).map(|id| BlockCopy { source: block(id), target: block(id + 100), written: 16 });
            let set = CellSet { heads: begin..begin + heads, blocks: copies.collect() };
            let cells: Vec<_> = (0..set.num_cells()).map(|index| set.get(index).unwrap()).collect();
            prop_assert_eq!(set.get(set.num_cells()), None);
            let mut expected = Vec::new();
            for copy in &set.blocks {
                expected.extend(set.heads.clone().map(|head| (KvHead(head), *copy)));
            }
            prop_assert_eq!(cells, expected);
        }
    }
}
