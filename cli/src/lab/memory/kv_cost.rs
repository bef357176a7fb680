//! What the KV cache of an attention takes: per token, per request in whole blocks, and on the rank that holds most.
//!
//! Of grouped heads, bytes are those of `CellLayout`. Of a latent and of factors they are as if there were a cell of just
//! the cached rows, so that both are rounded alike.

use kvasir_kv::{CellLayout, CellLayoutError, KvDtype};

use super::attention::Attention;

#[derive(Clone, Copy, Debug)]
pub struct KvCost {
    attention: Attention,
    /// Of one KV head, where there are heads; else its block size, layers and dtype alone count.
    cell: CellLayout,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KvCostError {
    #[error(transparent)]
    Cell(#[from] CellLayoutError),
    #[error("KV dtype {dtype} stores 32 elements together, and a row of this attention has {len}: use f16 or f32")]
    Row { dtype: KvDtype, len: u32 },
}

impl KvCost {
    /// Errors if the block size is none, or the dtype cannot store rows of this attention.
    pub fn new(attention: Attention, num_layers: u32, block_size: u32, dtype: KvDtype) -> Result<Self, KvCostError> {
        let analytic_rows = match attention {
            Attention::Grouped(heads) => {
                let cell = CellLayout::new(num_layers, heads.head_dim(), block_size, dtype)?;
                return Ok(Self { attention, cell });
            }
            Attention::Latent {
                latent_dim, rope_dim, ..
            } => [latent_dim, rope_dim],
            Attention::TensorProduct {
                num_q_heads, head_dim, ..
            } => [num_q_heads, head_dim],
        };
        if let Some(len) = analytic_rows.into_iter().find(|&len| !dtype.fits(len as usize)) {
            return Err(KvCostError::Row { dtype, len });
        }
        let cell = CellLayout::new(num_layers, analytic_rows[0], block_size, dtype)?;
        Ok(Self { attention, cell })
    }

    /// Bytes of a token, all layers and heads.
    pub fn token_bytes(&self) -> u64 {
        self.share_bytes(1)
    }

    /// Positions that are allocated for a request of this length.
    pub fn allocated_tokens(&self, context: u32) -> u64 {
        u64::from(self.cell.blocks_for(context)) * u64::from(self.cell.block_size())
    }

    /// Bytes of a request, all layers and heads, in whole blocks.
    pub fn request_bytes(&self, context: u32) -> u64 {
        self.allocated_tokens(context) * self.token_bytes()
    }

    /// Bytes of a token on the rank that holds most. KV heads are dealt one by one, so of 8 heads on 3 ranks it holds 3, and
    /// beyond 8 ranks some hold none. A latent is of all heads, and so on every rank; so are factors over dimensions, while
    /// those over heads are dealt.
    pub fn largest_rank_token_bytes(&self, ranks: u32) -> u64 {
        self.share_bytes(ranks)
    }

    /// The same where every rank must have equally many heads, or a copy of one, as vLLM and SGLang have it. `None` where
    /// such an engine does not start: query heads that do not divide among the ranks, KV heads that neither divide among
    /// them nor into them, and factors.
    pub fn replicating_token_bytes(&self, ranks: u32) -> Option<u64> {
        if !self.attention.num_q_heads().is_multiple_of(ranks) {
            return None;
        }
        match self.attention {
            Attention::Grouped(heads) => {
                let num_kv_heads = heads.num_kv_heads();
                let even = num_kv_heads.is_multiple_of(ranks) || ranks.is_multiple_of(num_kv_heads);
                even.then(|| self.heads_bytes((num_kv_heads / ranks).max(1)))
            }
            Attention::Latent { .. } => Some(self.token_bytes()),
            Attention::TensorProduct { .. } => None,
        }
    }

    fn share_bytes(&self, ranks: u32) -> u64 {
        let per_layer = match self.attention {
            Attention::Grouped(heads) => return self.heads_bytes(heads.num_kv_heads().div_ceil(ranks)),
            Attention::Latent {
                latent_dim, rope_dim, ..
            } => self.row_bytes(latent_dim) + self.row_bytes(rope_dim),
            Attention::TensorProduct {
                num_q_heads,
                head_dim,
                k_rank,
                v_rank,
            } => {
                let factors = self.row_bytes(num_q_heads.div_ceil(ranks)) + self.row_bytes(head_dim);
                (u64::from(k_rank) + u64::from(v_rank)) * factors
            }
        };
        u64::from(self.cell.num_layers()) * per_layer
    }

    fn heads_bytes(&self, num_kv_heads: u32) -> u64 {
        u64::from(num_kv_heads) * self.cell.token_bytes() as u64
    }

    /// A part of a row is as long as a row that the dtype can store.
    fn row_bytes(&self, len: u32) -> u64 {
        let dtype = self.cell.dtype();
        let len = match dtype.fits(len as usize) {
            true => len as usize,
            false => (len as usize).next_multiple_of(kvasir_kv::Q8_0_LEN),
        };
        dtype.row_bytes(len) as u64
    }
}

#[cfg(test)]
mod tests {
    use kvasir_kv::HeadLayout;

    use super::*;

    const RANKS: [u32; 8] = [1, 2, 3, 4, 5, 8, 16, 64];
    const CONTEXTS: [u32; 6] = [1, 63, 64, 65, 8192, 100_001];

    /// Bytes of a row of `len` elements, said again: 34 bytes for 32 in q8_0.
    fn row(dtype: KvDtype, len: u64) -> u64 {
        match dtype {
            KvDtype::F32 => 4 * len,
            KvDtype::F16 => 2 * len,
            KvDtype::Q8_0 => len / 32 * 34,
        }
    }

    #[test]
    fn bytes_of_heads_are_the_formula_in_whole_blocks_for_every_group_size_dtype_and_rank_count() {
        for group_size in [1, 2, 4, 8, 16, 32] {
            for dtype in KvDtype::ALL {
                for block_size in [16u32, 64, 256] {
                    let num_kv_heads = 32 / group_size;
                    let heads = Attention::Grouped(HeadLayout::new(32, num_kv_heads, 128).unwrap());
                    let cost = KvCost::new(heads, 80, block_size, dtype).unwrap();
                    let head_bytes = 2 * 80 * row(dtype, 128);
                    assert_eq!(cost.token_bytes(), u64::from(num_kv_heads) * head_bytes);
                    for context in CONTEXTS {
                        let allocated = u64::from(context.div_ceil(block_size) * block_size);
                        let expected = allocated * u64::from(num_kv_heads) * head_bytes;
                        assert_eq!(
                            cost.request_bytes(context),
                            expected,
                            "G={group_size} {dtype} {context}"
                        );
                        assert!(
                            expected - u64::from(context) * cost.token_bytes()
                                < u64::from(block_size) * cost.token_bytes()
                        );
                    }
                    for ranks in RANKS {
                        // The heads dealt one by one: whoever is first has most.
                        let most = (0..num_kv_heads).filter(|head| head % ranks == 0).count() as u64;
                        assert_eq!(cost.largest_rank_token_bytes(ranks), most * head_bytes, "{ranks} ranks");
                    }
                }
            }
        }
    }

    #[test]
    fn the_largest_share_is_what_the_shard_plan_deals() {
        use kvasir_kv::{ModelShape, RankCapacity, ShardPlan, UnitBytes, UnitLayout};
        for num_kv_heads in [1, 3, 4, 8, 32] {
            let heads = HeadLayout::new(3 * num_kv_heads, num_kv_heads, 128).unwrap();
            let shape = ModelShape {
                num_layers: 2,
                hidden_size: 4096,
                heads,
                intermediate_size: 14_336,
                vocab_size: 32_000,
                context_len: 8192,
            };
            let bytes = UnitBytes {
                attention: 1 << 20,
                ffn_per_column: 4096,
                vocab_per_row: 8192,
                embedding_per_row: 8192,
                replicated: 0,
            };
            let cost = KvCost::new(Attention::Grouped(heads), 2, 64, KvDtype::F16).unwrap();
            for ranks in RANKS {
                let capacities = vec![RankCapacity::default(); ranks as usize];
                let plan = ShardPlan::balance(&UnitLayout::new(shape, bytes.clone()), &capacities, 0).unwrap();
                let most = plan.shares().iter().map(|share| share.num_kv_heads()).max().unwrap();
                let expected = u64::from(most) * 2 * 2 * 256;
                assert_eq!(
                    cost.largest_rank_token_bytes(ranks),
                    expected,
                    "{num_kv_heads} on {ranks}"
                );
            }
        }
    }

    #[test]
    fn a_latent_is_whole_on_every_rank() {
        let latent = Attention::Latent {
            num_q_heads: 128,
            head_dim: 128,
            latent_dim: 512,
            rope_dim: 64,
        };
        for dtype in KvDtype::ALL {
            let cost = KvCost::new(latent, 61, 64, dtype).unwrap();
            for ranks in RANKS {
                assert_eq!(
                    cost.largest_rank_token_bytes(ranks),
                    61 * (row(dtype, 512) + row(dtype, 64))
                );
            }
            assert_eq!(cost.replicating_token_bytes(8), Some(cost.token_bytes()));
            assert_eq!(cost.replicating_token_bytes(3), None);
        }
    }

    #[test]
    fn factors_over_heads_are_dealt_and_those_over_dimensions_are_not() {
        let factors = Attention::TensorProduct {
            num_q_heads: 78,
            head_dim: 64,
            k_rank: 2,
            v_rank: 2,
        };
        let cost = KvCost::new(factors, 48, 64, KvDtype::F16).unwrap();
        assert_eq!(cost.token_bytes(), 48 * 4 * (78 + 64) * 2);
        assert_eq!(cost.largest_rank_token_bytes(4), 48 * 4 * (20 + 64) * 2);
        assert_eq!(cost.request_bytes(65), 128 * cost.token_bytes());
        assert!(
            KvCost::new(factors, 48, 64, KvDtype::Q8_0).is_err(),
            "78 is no multiple of 32"
        );
    }

    #[test]
    fn an_engine_that_replicates_refuses_what_does_not_divide_and_copies_the_last_head() {
        let eight = Attention::Grouped(HeadLayout::new(32, 8, 128).unwrap());
        let cost = KvCost::new(eight, 32, 64, KvDtype::F16).unwrap();
        let head_bytes = 2 * 32 * 256;
        for (ranks, heads) in [
            (1, Some(8)),
            (2, Some(4)),
            (3, None),
            (8, Some(1)),
            (16, Some(1)),
            (12, None),
        ] {
            let expected = heads.map(|heads: u64| heads * head_bytes);
            assert_eq!(cost.replicating_token_bytes(ranks), expected, "{ranks} ranks");
        }
    }

    #[test]
    fn block_sizes_that_kvasir_has_not_are_refused() {
        let eight = Attention::Grouped(HeadLayout::new(32, 8, 128).unwrap());
        assert!(KvCost::new(eight, 32, 48, KvDtype::F16).is_err());
    }
}
