//! The transfer plan: which cells go from which rank to which when the owners of KV heads change.
//!
//! Pure: source and target shard plans and a list of blocks in, a list of cells out. A cell whose owner does not change
//! is never copied. Serves resharding (one group, blocks keep their ids) and migration (blocks get the target's ids).

use crate::{BlockId, CellId, KvHead, LayerClass, Rank, ShardPlan, UnitId, UnitKind};

/// Copy one cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CellTransfer {
    pub source: Rank,
    pub target: Rank,
    pub source_cell: CellId,
    pub target_cell: CellId,
}

/// Cells to copy so that `target` can go on where `source` stopped. `blocks` pairs source and target blocks in token
/// order. `same_rank` says whether a source rank and a target rank are the same worker, holding the same cells.
pub fn transfer_plan(
    source: &ShardPlan,
    target: &ShardPlan,
    num_kv_heads: u32,
    blocks: &[(BlockId, BlockId)],
    same_rank: impl Fn(Rank, Rank) -> bool,
) -> Vec<CellTransfer> {
    let owner = |plan: &ShardPlan, head| {
        plan.owner(UnitKind::Attention, UnitId(head))
            .expect("a plan covers every head")
    };
    let mut cells = Vec::new();
    for head in 0..num_kv_heads {
        let (from, to) = (owner(source, head), owner(target, head));
        let cell = |block| CellId {
            block,
            head: KvHead(head),
            class: LayerClass::default(),
        };
        for &(source_block, target_block) in blocks {
            if source_block == target_block && same_rank(from, to) {
                continue;
            }
            cells.push(CellTransfer {
                source: from,
                target: to,
                source_cell: cell(source_block),
                target_cell: cell(target_block),
            });
        }
    }
    cells
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{HeadLayout, ModelShape, RankCapacity, UnitBytes, UnitLayout};

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
        fn after_a_reshard_every_cell_has_its_new_owner_and_none_was_copied_in_place(
            kv_heads in 1u32..10, from in 1usize..6, to in 1usize..6, num_blocks in 0u32..5,
        ) {
            let (source, target) = (plan(kv_heads, from), plan(kv_heads, to));
            let blocks: Vec<_> = (0..num_blocks).map(|b| (BlockId(b), BlockId(b))).collect();
            let cells = transfer_plan(&source, &target, kv_heads, &blocks, |a, b| a == b);
            for head in 0..kv_heads {
                let from = source.owner(UnitKind::Attention, UnitId(head));
                let to = target.owner(UnitKind::Attention, UnitId(head));
                let copies: Vec<_> = cells.iter().filter(|c| c.target_cell.head.0 == head).collect();
                prop_assert_eq!(copies.len() as u32, if from == to { 0 } else { num_blocks });
                prop_assert!(copies.iter().all(|c| Some(c.source) == from && Some(c.target) == to));
            }
        }
    }
}
