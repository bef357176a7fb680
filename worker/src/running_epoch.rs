//! The epoch that a rank works in, and what it took over from the one before.

use std::{collections::BTreeMap, ops::Range};

use kvasir_kv::{BlockId, EpochSpec, LoadReport};

use crate::{
    collective::{Collective, Listening, Terms},
    rank_books::RankBooks,
    transfer::Side,
};

/// An epoch that has begun; without a collective it waits for its peers' endpoints.
pub struct RunningEpoch {
    pub spec: EpochSpec,
    pub listening: Option<Listening>,
    pub terms: Terms,
    pub collective: Option<Box<dyn Collective>>,
    pub books: RankBooks,
    /// Checksums of full blocks, taken when they were filled.
    pub seals: BTreeMap<BlockId, Vec<u32>>,
    pub inherited: Option<Inherited>,
    pub load: LoadReport,
}

/// Of the epoch before, whose cells live on.
pub struct Inherited {
    pub heads: Range<u32>,
    pub seals: BTreeMap<BlockId, Vec<u32>>,
}

impl Inherited {
    pub fn seal(&self, block: BlockId, head: u32) -> Option<u32> {
        let index = head.checked_sub(self.heads.start)?;
        self.seals.get(&block)?.get(index as usize).copied()
    }
}

impl RunningEpoch {
    pub fn heads(&self) -> Range<u32> {
        self.spec.shares[self.spec.rank.0 as usize].attention.clone()
    }

    pub fn side(&mut self) -> Side<'_> {
        Side {
            epoch: self.spec.epoch,
            rank: self.spec.rank,
            heads: self.heads(),
            books: &mut self.books,
            seals: Some(&self.seals),
        }
    }
}

pub fn intersection(a: &Range<u32>, b: &Range<u32>) -> Range<u32> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}
