//! The shard plan: every unit on exactly one rank, in contiguous ranges, for any number of ranks.
//!
//! Each kind of unit is dealt by capacity alone, since ranks wait for each other after every phase; where memory is too
//! small for that, FFN and vocab units make up for uneven KV heads. What does not fit either way is refused with the numbers.
//! It never splits a unit.

use std::ops::Range;

use crate::{Rank, UnitId, UnitKind, UnitLayout};

/// What a rank can take.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct RankCapacity {
    /// Relative speed: a rank of weight 2 gets twice the bytes of a rank of weight 1. Finite and above 0.
    pub weight: f64,
    /// Memory for weights and KV cells, bytes; `None` means no limit is known.
    pub memory_bytes: Option<u64>,
}

impl Default for RankCapacity {
    fn default() -> Self {
        Self {
            weight: 1.0,
            memory_bytes: None,
        }
    }
}

/// The units of one rank.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RankShare {
    pub attention: Range<u32>,
    pub ffn: Range<u32>,
    pub vocab: Range<u32>,
}

impl RankShare {
    pub fn units(&self, kind: UnitKind) -> Range<u32> {
        match kind {
            UnitKind::Attention => self.attention.clone(),
            UnitKind::Ffn => self.ffn.clone(),
            UnitKind::Vocab => self.vocab.clone(),
        }
    }

    fn units_mut(&mut self, kind: UnitKind) -> &mut Range<u32> {
        match kind {
            UnitKind::Attention => &mut self.attention,
            UnitKind::Ffn => &mut self.ffn,
            UnitKind::Vocab => &mut self.vocab,
        }
    }

    pub fn num_kv_heads(&self) -> u32 {
        self.attention.end - self.attention.start
    }

    /// Bytes read per token from the units of this share, replicated parts left out.
    pub fn bytes(&self, layout: &UnitLayout) -> u64 {
        UnitKind::ALL.into_iter().map(|kind| self.bytes_of(kind, layout)).sum()
    }

    fn bytes_of(&self, kind: UnitKind, layout: &UnitLayout) -> u64 {
        self.units(kind).map(|unit| layout.unit_bytes(kind, UnitId(unit))).sum()
    }

    /// Bytes of weights held: what is read per token, the replicated parts, and embedding rows of an untied head.
    pub fn weight_bytes(&self, layout: &UnitLayout) -> u64 {
        let rows = self
            .vocab
            .clone()
            .map(|unit| layout.extent(UnitKind::Vocab, UnitId(unit)))
            .map(|r| u64::from(r.end - r.start));
        self.bytes(layout) + layout.bytes().replicated + rows.sum::<u64>() * layout.bytes().embedding_per_row
    }
}

/// Who holds which unit. Made by [`ShardPlan::balance`] or read from the wire by [`ShardPlan::from_shares`], so a plan
/// that exists covers every unit once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardPlan {
    shares: Vec<RankShare>,
}

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum PlanError {
    #[error("a plan needs at least one rank")]
    NoRanks,
    #[error("{ranks} ranks, but the model has {units} units; at most one rank per unit is useful")]
    TooManyRanks { ranks: usize, units: u32 },
    #[error("rank {rank} has capacity {weight}; it must be finite and above 0")]
    BadCapacity { rank: usize, weight: f64 },
    #[error(
        "rank {rank} needs {needed_bytes} bytes ({weight_bytes} of weights, {cell_bytes} of KV cells), but has {memory_bytes}"
    )]
    TooLittleMemory {
        rank: usize,
        needed_bytes: u64,
        weight_bytes: u64,
        cell_bytes: u64,
        memory_bytes: u64,
    },
    #[error("{kind} units are not covered once: rank {rank} begins at {found}, expected {expected}")]
    NotCovered {
        kind: UnitKind,
        rank: usize,
        found: u32,
        expected: u32,
    },
}

impl ShardPlan {
    /// Balances the model over `capacities`, one rank each: units of each kind by capacity or, if that is more than a
    /// rank has memory for, so that the bytes of all kinds together are. A rank may end up without heads.
    /// `cell_bytes_per_head` is what each KV head must be able to hold on its rank.
    pub fn balance(
        layout: &UnitLayout,
        capacities: &[RankCapacity],
        cell_bytes_per_head: u64,
    ) -> Result<Self, PlanError> {
        let units: u32 = UnitKind::ALL.into_iter().map(|kind| layout.count(kind)).sum();
        if capacities.is_empty() {
            return Err(PlanError::NoRanks);
        }
        if capacities.len() > units as usize {
            return Err(PlanError::TooManyRanks {
                ranks: capacities.len(),
                units,
            });
        }
        for (rank, capacity) in capacities.iter().enumerate() {
            if !(capacity.weight.is_finite() && capacity.weight > 0.0) {
                return Err(PlanError::BadCapacity {
                    rank,
                    weight: capacity.weight,
                });
            }
        }
        let by_phase = Self::deal_phases(layout, capacities);
        if by_phase.check_memory(layout, capacities, cell_bytes_per_head).is_ok() {
            return Ok(by_phase);
        }
        let by_bytes = Self::deal_bytes(layout, capacities);
        by_bytes.check_memory(layout, capacities, cell_bytes_per_head)?;
        Ok(by_bytes)
    }

    /// Units of each kind by capacity: a phase, which all ranks end together, takes each rank as long as any other, but for
    /// part of a unit.
    fn deal_phases(layout: &UnitLayout, capacities: &[RankCapacity]) -> Self {
        let weights: Vec<f64> = capacities.iter().map(|capacity| capacity.weight).collect();
        Self::deal_each(capacities.len(), |kind, _| deal(layout.count(kind), &weights))
    }

    /// Bytes of all kinds by capacity: FFN and vocab units even out what uneven heads left.
    fn deal_bytes(layout: &UnitLayout, capacities: &[RankCapacity]) -> Self {
        let total_weight: f64 = capacities.iter().map(|capacity| capacity.weight).sum();
        let total_bytes = (layout.total_bytes() - layout.bytes().replicated) as f64;
        Self::deal_each(capacities.len(), |kind, shares| {
            let goals = capacities
                .iter()
                .map(|capacity| total_bytes * capacity.weight / total_weight);
            let left = shares
                .iter()
                .zip(goals)
                .map(|(share, goal)| (goal - share.bytes(layout) as f64).max(0.0));
            deal(layout.count(kind), &left.collect::<Vec<_>>())
        })
    }

    /// Kind after kind; `deal` sees what was dealt before.
    fn deal_each(ranks: usize, deal: impl Fn(UnitKind, &[RankShare]) -> Vec<Range<u32>>) -> Self {
        let mut shares = vec![RankShare::default(); ranks];
        for kind in UnitKind::ALL {
            let ranges = deal(kind, &shares);
            for (share, range) in shares.iter_mut().zip(ranges) {
                *share.units_mut(kind) = range;
            }
        }
        Self { shares }
    }

    fn check_memory(
        &self,
        layout: &UnitLayout,
        capacities: &[RankCapacity],
        cell_bytes_per_head: u64,
    ) -> Result<(), PlanError> {
        for (rank, (share, capacity)) in self.shares.iter().zip(capacities).enumerate() {
            let Some(memory_bytes) = capacity.memory_bytes else {
                continue;
            };
            let weight_bytes = share.weight_bytes(layout);
            let cell_bytes = u64::from(share.num_kv_heads()) * cell_bytes_per_head;
            let needed_bytes = weight_bytes + cell_bytes;
            if needed_bytes > memory_bytes {
                return Err(PlanError::TooLittleMemory {
                    rank,
                    needed_bytes,
                    weight_bytes,
                    cell_bytes,
                    memory_bytes,
                });
            }
        }
        Ok(())
    }

    /// Takes shares made elsewhere. Errors unless they cover every unit exactly once, in rank order.
    pub fn from_shares(layout: &UnitLayout, shares: Vec<RankShare>) -> Result<Self, PlanError> {
        if shares.is_empty() {
            return Err(PlanError::NoRanks);
        }
        for kind in UnitKind::ALL {
            let mut expected = 0;
            for (rank, share) in shares.iter().enumerate() {
                let range = share.units(kind);
                if range.start != expected || range.end < range.start {
                    return Err(PlanError::NotCovered {
                        kind,
                        rank,
                        found: range.start,
                        expected,
                    });
                }
                expected = range.end;
            }
            if expected != layout.count(kind) {
                return Err(PlanError::NotCovered {
                    kind,
                    rank: shares.len(),
                    found: expected,
                    expected: layout.count(kind),
                });
            }
        }
        Ok(Self { shares })
    }

    pub fn world_size(&self) -> usize {
        self.shares.len()
    }

    pub fn shares(&self) -> &[RankShare] {
        &self.shares
    }

    pub fn share(&self, rank: Rank) -> &RankShare {
        &self.shares[rank.0 as usize]
    }

    pub fn owner(&self, kind: UnitKind, unit: UnitId) -> Option<Rank> {
        let rank = self
            .shares
            .iter()
            .position(|share| share.units(kind).contains(&unit.0))?;
        Some(Rank(rank as u32))
    }

    /// What ranks wait for each other: the largest share of each kind, in bytes read per token, all kinds added up, over an
    /// even share of everything. 1.0 when every phase is even.
    pub fn imbalance(&self, layout: &UnitLayout) -> f64 {
        let largest = |kind| self.shares.iter().map(|share| share.bytes_of(kind, layout)).max();
        let waited: u64 = UnitKind::ALL.into_iter().filter_map(largest).sum();
        let total: u64 = self.shares.iter().map(|share| share.bytes(layout)).sum();
        waited as f64 * self.shares.len() as f64 / total as f64
    }
}

/// Deals `count` units in contiguous ranges, in proportion to `wanted`, by rounding the running totals: each rank is
/// within one unit of its due, and the ranges cover everything.
fn deal(count: u32, wanted: &[f64]) -> Vec<Range<u32>> {
    let total: f64 = wanted.iter().sum();
    let mut running = 0.0;
    let mut start = 0;
    let mut ranges = Vec::with_capacity(wanted.len());
    for (rank, want) in wanted.iter().enumerate() {
        running += want;
        let last = rank + 1 == wanted.len();
        // Half a unit rounds up: of 3 heads on 2 equal ranks the first gets 2.
        let due = if total > 0.0 {
            (f64::from(count) * running / total + 0.5).floor() as u32
        } else {
            count
        };
        let end = if last { count } else { due.clamp(start, count) };
        ranges.push(start..end);
        start = end;
    }
    ranges
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{HeadLayout, ModelShape, UnitBytes};

    fn layout(kv_heads: u32, intermediate_size: u32, vocab_size: u32) -> UnitLayout {
        let heads = HeadLayout::new(kv_heads * 3, kv_heads, 64).unwrap();
        let shape = ModelShape {
            num_layers: 30,
            hidden_size: 576,
            heads,
            intermediate_size,
            vocab_size,
            context_len: 8192,
        };
        let bytes = UnitBytes {
            attention: 5_529_600,
            ffn_per_column: 32_400,
            vocab_per_row: 612,
            embedding_per_row: 0,
            replicated: 140_544,
        };
        UnitLayout::new(shape, bytes)
    }

    fn units_of(plan: &ShardPlan, kind: UnitKind) -> Vec<usize> {
        plan.shares().iter().map(|share| share.units(kind).len()).collect()
    }

    #[test]
    fn three_heads_on_two_ranks_are_two_and_one_and_the_other_phases_are_even() {
        let layout = layout(3, 1536, 49152);
        let plan = ShardPlan::balance(&layout, &[RankCapacity::default(); 2], 0).unwrap();
        assert_eq!(units_of(&plan, UnitKind::Attention), [2, 1]);
        assert_eq!(units_of(&plan, UnitKind::Ffn), [12, 12]);
        let vocab = layout.count(UnitKind::Vocab) as usize;
        assert_eq!(units_of(&plan, UnitKind::Vocab), [vocab / 2; 2]);
    }

    #[test]
    fn units_follow_capacity() {
        let capacities = [1.0, 2.0].map(|weight| RankCapacity {
            weight,
            memory_bytes: None,
        });
        let plan = ShardPlan::balance(&layout(3, 1536, 49152), &capacities, 0).unwrap();
        assert_eq!(units_of(&plan, UnitKind::Attention), [1, 2]);
        assert_eq!(units_of(&plan, UnitKind::Ffn), [8, 16]);
    }

    #[test]
    fn where_memory_is_short_the_bytes_are_even() {
        let layout = layout(3, 1536, 49152);
        let even = ShardPlan::balance(&layout, &[RankCapacity::default(); 2], 0).unwrap();
        let needed = even.shares()[0].weight_bytes(&layout);
        let capacities = |memory_bytes| {
            [RankCapacity {
                weight: 1.0,
                memory_bytes: Some(memory_bytes),
            }; 2]
        };
        assert_eq!(ShardPlan::balance(&layout, &capacities(needed), 0), Ok(even.clone()));
        let plan = ShardPlan::balance(&layout, &capacities(needed - 1), 0).unwrap();
        assert_eq!(units_of(&plan, UnitKind::Attention), [2, 1]);
        assert!(plan.shares()[1].ffn.len() > plan.shares()[0].ffn.len());
        let bytes = [0, 1].map(|rank| plan.shares()[rank].bytes(&layout) as f64);
        assert!((0.98..1.02).contains(&(bytes[0] / bytes[1])), "{bytes:?}");
        assert!(plan.imbalance(&layout) > even.imbalance(&layout));
    }

    #[test]
    fn ranks_beyond_the_heads_hold_ffn_and_vocab_units_only() {
        let layout = layout(3, 1536, 49152);
        let plan = ShardPlan::balance(&layout, &[RankCapacity::default(); 5], 0).unwrap();
        let heads = units_of(&plan, UnitKind::Attention);
        assert_eq!(heads.iter().filter(|heads| **heads == 0).count(), 2);
        let ffn = units_of(&plan, UnitKind::Ffn);
        assert!(ffn.iter().all(|units| (4..=5).contains(units)), "{ffn:?}");
    }

    #[test]
    fn too_little_memory_is_refused_with_the_numbers() {
        let capacity = RankCapacity {
            weight: 1.0,
            memory_bytes: Some(1000),
        };
        let error = ShardPlan::balance(&layout(3, 1536, 49152), &[capacity], 10).unwrap_err();
        assert!(matches!(
            error,
            PlanError::TooLittleMemory {
                rank: 0,
                cell_bytes: 30,
                memory_bytes: 1000,
                ..
            }
        ));
    }

    #[test]
    fn shares_with_a_hole_or_an_overlap_are_refused() {
        let layout = layout(3, 1536, 49152);
        let good = ShardPlan::balance(&layout, &[RankCapacity::default(); 2], 0).unwrap();
        let mut shares = good.shares().to_vec();
        shares[1].ffn.start += 1;
        assert!(ShardPlan::from_shares(&layout, shares.clone()).is_err());
        shares[1].ffn.start -= 2;
        assert!(ShardPlan::from_shares(&layout, shares).is_err());
        assert_eq!(ShardPlan::from_shares(&layout, good.shares().to_vec()), Ok(good));
    }

    proptest! {
        #[test]
        fn any_rank_count_covers_every_unit_once(
            kv_heads in 1u32..12, ffn in 1u32..60, vocab in 1u32..60_000,
            weights in prop::collection::vec(0.2f64..5.0, 1..9),
        ) {
            let layout = layout(kv_heads, ffn * 32, vocab);
            let capacities: Vec<_> =
                weights.iter().map(|&weight| RankCapacity { weight, memory_bytes: None }).collect();
            let units: u32 = UnitKind::ALL.into_iter().map(|kind| layout.count(kind)).sum();
            match ShardPlan::balance(&layout, &capacities, 0) {
                Ok(plan) => {
                    prop_assert_eq!(ShardPlan::from_shares(&layout, plan.shares().to_vec()), Ok(plan.clone()));
                    for kind in UnitKind::ALL {
                        for unit in 0..layout.count(kind) {
                            let owners = plan.shares().iter().filter(|s| s.units(kind).contains(&unit)).count();
                            prop_assert_eq!(owners, 1);
                        }
                    }
                    let held: u32 = plan.shares().iter().map(RankShare::num_kv_heads).sum();
                    prop_assert_eq!(held, kv_heads);
                }
                Err(error) => prop_assert!(weights.len() > units as usize, "{}", error),
            }
        }
    }
}
