//! The head layout of grouped-query attention: which query heads read which KV head.
//!
//! A `HeadLayout` exists only if the heads divide evenly, so that `group_size` cannot fail.

use std::ops::Range;

use crate::KvHead;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeadLayout {
    num_q_heads: u32,
    num_kv_heads: u32,
    head_dim: u32,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeadLayoutError {
    #[error("a head count is zero: {num_q_heads} query heads, {num_kv_heads} KV heads, head_dim {head_dim}")]
    Zero {
        num_q_heads: u32,
        num_kv_heads: u32,
        head_dim: u32,
    },
    #[error("{num_q_heads} query heads do not divide among {num_kv_heads} KV heads")]
    Uneven { num_q_heads: u32, num_kv_heads: u32 },
    #[error("head_dim {head_dim} is not a multiple of 16")]
    HeadDim { head_dim: u32 },
    #[error("{columns} output-projection columns of one KV head's group are not a multiple of 32")]
    GroupColumns { columns: u32 },
}

impl HeadLayout {
    /// Errors if a count is zero, query heads do not divide by KV heads, or the widths do not fit the kernels'
    /// 16-lane panels (`head_dim`) and 32-column sub-blocks (`group_size * head_dim`).
    pub fn new(num_q_heads: u32, num_kv_heads: u32, head_dim: u32) -> Result<Self, HeadLayoutError> {
        if num_q_heads == 0 || num_kv_heads == 0 || head_dim == 0 {
            return Err(HeadLayoutError::Zero {
                num_q_heads,
                num_kv_heads,
                head_dim,
            });
        }
        if !num_q_heads.is_multiple_of(num_kv_heads) {
            return Err(HeadLayoutError::Uneven {
                num_q_heads,
                num_kv_heads,
            });
        }
        if !head_dim.is_multiple_of(16) {
            return Err(HeadLayoutError::HeadDim { head_dim });
        }
        let layout = Self {
            num_q_heads,
            num_kv_heads,
            head_dim,
        };
        if !layout.group_columns().is_multiple_of(32) {
            return Err(HeadLayoutError::GroupColumns {
                columns: layout.group_columns(),
            });
        }
        Ok(layout)
    }

    pub fn num_q_heads(&self) -> u32 {
        self.num_q_heads
    }

    pub fn num_kv_heads(&self) -> u32 {
        self.num_kv_heads
    }

    pub fn head_dim(&self) -> u32 {
        self.head_dim
    }

    /// Query heads per KV head (G).
    pub fn group_size(&self) -> u32 {
        self.num_q_heads / self.num_kv_heads
    }

    /// Columns of the output projection that belong to one KV head's query heads.
    pub fn group_columns(&self) -> u32 {
        self.group_size() * self.head_dim
    }

    pub fn q_heads_of(&self, head: KvHead) -> Range<u32> {
        head.0 * self.group_size()..(head.0 + 1) * self.group_size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uneven_heads_are_refused_with_both_counts() {
        assert_eq!(
            HeadLayout::new(9, 2, 64),
            Err(HeadLayoutError::Uneven {
                num_q_heads: 9,
                num_kv_heads: 2
            })
        );
        assert!(HeadLayout::new(9, 0, 64).is_err());
        assert!(
            HeadLayout::new(3, 3, 16).is_err(),
            "16 columns a unit do not fill a sub-block"
        );
    }

    #[test]
    fn every_query_head_reads_exactly_one_kv_head() {
        let layout = HeadLayout::new(14, 2, 64).unwrap();
        let heads: Vec<u32> = (0..2).flat_map(|j| layout.q_heads_of(KvHead(j))).collect();
        assert_eq!(heads, (0..14).collect::<Vec<_>>());
    }
}
