//! Where the cache has as many tokens as are asked for: which blocks they lie in, and a rank's measurement there.

use std::time::Instant;

use anyhow::Result;
use kvasir_kv::{BlockId, BlockPool, BlockTable, CellLayout, Sampling, SequenceId, TokenId};
use kvasir_worker::{backend::BackendError, rank_books::WorkInput, rank_threads::RankThread};

use super::measured::RankTold;
use crate::lab::cell_filler;

/// Before those that are timed.
const WARMUP_TOKENS: u32 = 2;
/// A token of the model's; which one changes nothing about the time.
const TOKEN: TokenId = TokenId(7);

/// How tokens are fed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Feed {
    /// Sequences, one token each in turn.
    pub batch: u32,
    /// Timed at each point.
    pub tokens: u32,
    /// From the first one on, instead of only those before a point.
    pub every_token: bool,
}

#[derive(Debug)]
pub struct Point {
    /// Tokens of each sequence.
    pub context: u32,
    /// Positions from here on are fed, one at a time.
    first: u32,
    /// Positions from here on are timed.
    timed: u32,
    block_size: u32,
    /// Of each sequence, in token order.
    blocks: Vec<Vec<BlockId>>,
    /// Of positions that nobody feeds.
    filled: Vec<BlockId>,
    /// What the pool has given out, of all sequences.
    held: Vec<BlockId>,
}

impl Point {
    /// contexts: ascending. The pool gives out blocks as the sequences grow. Errors if it has too few.
    pub fn all(contexts: &[u32], feed: &Feed, cell: &CellLayout, pool: &mut BlockPool) -> Result<Vec<Self>> {
        let block_size = cell.block_size();
        let mut tables: Vec<BlockTable> = (0..feed.batch).map(|_| BlockTable::default()).collect();
        let (mut points, mut fed) = (Vec::new(), 0);
        for context in contexts.iter().copied() {
            let timed = context.saturating_sub(feed.tokens).max(fed);
            let first = match feed.every_token {
                true => fed,
                false => timed.saturating_sub(WARMUP_TOKENS).max(fed),
            };
            for _ in (fed..context).filter(|position| position.is_multiple_of(block_size)) {
                tables
                    .iter_mut()
                    .try_for_each(|table| pool.allocate(1, table).map(drop))?;
            }
            let of_table = |table: &BlockTable| table.tagged().map(|block| block.id).collect();
            let blocks: Vec<Vec<BlockId>> = tables.iter().map(of_table).collect();
            let skipped = (fed / block_size) as usize..cell.blocks_for(first) as usize;
            let filled = blocks
                .iter()
                .filter(|_| first > fed)
                .flat_map(|blocks| &blocks[skipped.clone()]);
            points.push(Self {
                context,
                first,
                timed,
                block_size,
                filled: filled.copied().collect(),
                held: pool.held_ids().collect(),
                blocks,
            });
            fed = context;
        }
        let blocks = tables.iter_mut().flat_map(BlockTable::take).collect();
        pool.release(blocks, None);
        Ok(points)
    }

    /// fills: for the first time; cached: measure attention also over one block's cells, which caches hold.
    pub fn measure(
        &self,
        rank: &mut RankThread,
        cell: &CellLayout,
        fills: bool,
        cached: bool,
    ) -> Result<RankTold, BackendError> {
        if fills {
            cell_filler::fill(rank, cell, &self.filled)?;
        }
        let mut told = RankTold::default();
        for position in self.first..self.context {
            let work = self.work(position, |blocks| blocks[..=self.block_of(position)].to_vec());
            let begun = Instant::now();
            let attend_ns = rank.step(&work)?.attend_ns;
            if position >= self.timed {
                told.step_ns.push(begun.elapsed().as_nanos() as u64);
                told.attend_ns.push(attend_ns);
            }
        }
        for position in (self.timed..self.context).filter(|_| cached) {
            let work = self.work(position, |blocks| vec![blocks[0]; self.block_of(position) + 1]);
            told.cached_attend_ns.push(rank.step(&work)?.attend_ns);
        }
        told.held_bytes = rank.backend.held_bytes(&self.held);
        Ok(told)
    }

    fn block_of(&self, position: u32) -> usize {
        (position / self.block_size) as usize
    }

    /// One token of each sequence.
    fn work(&self, position: u32, blocks: impl Fn(&[BlockId]) -> Vec<BlockId>) -> Vec<WorkInput> {
        let of_sequence = |(sequence, held): (u64, &Vec<BlockId>)| WorkInput {
            sequence: SequenceId(sequence),
            tokens: vec![TOKEN],
            start: position,
            blocks: blocks(held),
            // The head is no part of a block.
            samples: false,
            sampling: Sampling::default(),
            prompt_len: position + 1,
            ..WorkInput::default()
        };
        (0..).zip(&self.blocks).map(of_sequence).collect()
    }
}

#[cfg(test)]
mod tests {
    use kvasir_kv::KvDtype;

    use super::*;

    fn points(contexts: &[u32], every_token: bool) -> Vec<Point> {
        let cell = CellLayout::new(1, 32, 16, KvDtype::F16).unwrap();
        let feed = Feed {
            batch: 2,
            tokens: 4,
            every_token,
        };
        let mut pool = BlockPool::new(2 * cell.blocks_for(contexts[contexts.len() - 1]));
        Point::all(contexts, &feed, &cell, &mut pool).unwrap()
    }

    #[test]
    fn every_position_before_a_point_is_fed_or_filled() {
        for every_token in [false, true] {
            let mut known = [false; 100];
            for point in points(&[3, 20, 50, 100], every_token) {
                let of_first = &point.blocks[0];
                for block in &point.filled {
                    let at = of_first.iter().position(|id| id == block).map(|at| at * 16);
                    at.into_iter().for_each(|at| known[at..(at + 16).min(100)].fill(true));
                }
                known[point.first as usize..point.context as usize].fill(true);
                assert!(known[..point.context as usize].iter().all(|known| *known), "{point:?}");
                assert_eq!(point.filled.is_empty(), every_token || point.context == 3);
                assert!(point.first <= point.timed && point.context - point.timed <= 4);
            }
        }
    }

    #[test]
    fn the_pool_has_given_out_what_the_sequences_need() {
        let held: Vec<usize> = points(&[3, 16, 17, 100], false)
            .iter()
            .map(|point| point.held.len())
            .collect();
        assert_eq!(held, [2, 2, 4, 14]);
    }
}
