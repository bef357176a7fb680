//! The fixed cut of a model into units: the same units whatever the plan, so that the grouping of additions cannot
//! depend on how many ranks there are.
//!
//! A unit spans all layers. It has a row or column range and a number of bytes; where it lies is the plan's matter.

use std::{fmt, ops::Range};

use crate::{HeadLayout, UnitId};

/// What kinds of units a model has. Open: experts come later.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum UnitKind {
    /// KV head j with its query heads: rows of Wq, Wk, Wv and columns of Wo.
    Attention,
    /// A slice of the intermediate dimension: rows of gate and up, columns of down.
    Ffn,
    /// A slice of the rows of the output head and of the token embedding.
    Vocab,
}

impl UnitKind {
    pub const ALL: [Self; 3] = [Self::Attention, Self::Ffn, Self::Vocab];
}

impl fmt::Display for UnitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Attention => "attention",
            Self::Ffn => "ffn",
            Self::Vocab => "vocab",
        })
    }
}

/// The shape of a model, as far as its cut into units depends on it. All counts are at least 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ModelShape {
    pub num_layers: u32,
    pub hidden_size: u32,
    pub heads: HeadLayout,
    pub intermediate_size: u32,
    pub vocab_size: u32,
    /// Longest sequence, in tokens, that the model was trained for.
    pub context_len: u32,
}

/// Intermediate columns per FFN unit: two 32-column sub-blocks. Smaller units balance better, larger ones round less
/// often; at 64 columns the rounding costs below 1% of a step.
pub const FFN_UNIT_COLUMNS: u32 = 64;
/// Bounds for the rows of a vocab unit.
const VOCAB_UNIT_ROWS_MIN: u32 = 64;
const VOCAB_UNIT_ROWS_MAX: u32 = 2048;
/// Wanted number of vocab units: fine enough to balance 8 ranks within 2%.
const VOCAB_UNITS_WANTED: u32 = 64;

/// Bytes read per token from one unit, all layers together, and what stays replicated on every rank.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnitBytes {
    pub attention: u64,
    /// Per intermediate column, so that a short last unit weighs less.
    pub ffn_per_column: u64,
    pub vocab_per_row: u64,
    /// Bytes of embedding rows held, but not streamed, for each vocab row (0 with a tied head).
    pub embedding_per_row: u64,
    /// Norms and small biases, on every rank.
    pub replicated: u64,
}

/// A model cut into units.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnitLayout {
    shape: ModelShape,
    bytes: UnitBytes,
}

impl UnitLayout {
    pub fn new(shape: ModelShape, bytes: UnitBytes) -> Self {
        Self { shape, bytes }
    }

    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    pub fn bytes(&self) -> &UnitBytes {
        &self.bytes
    }

    /// Number of units of one kind.
    pub fn count(&self, kind: UnitKind) -> u32 {
        match kind {
            UnitKind::Attention => self.shape.heads.num_kv_heads(),
            UnitKind::Ffn => self.shape.intermediate_size.div_ceil(FFN_UNIT_COLUMNS),
            UnitKind::Vocab => self.shape.vocab_size.div_ceil(self.vocab_unit_rows()),
        }
    }

    /// Rows of all vocab units but the last, a multiple of 64.
    pub fn vocab_unit_rows(&self) -> u32 {
        let even = self.shape.vocab_size.div_ceil(VOCAB_UNITS_WANTED);
        even.next_multiple_of(64)
            .clamp(VOCAB_UNIT_ROWS_MIN, VOCAB_UNIT_ROWS_MAX)
    }

    /// The KV heads, intermediate columns or vocabulary rows of one unit.
    pub fn extent(&self, kind: UnitKind, unit: UnitId) -> Range<u32> {
        let (size, end) = match kind {
            UnitKind::Attention => (1, self.shape.heads.num_kv_heads()),
            UnitKind::Ffn => (FFN_UNIT_COLUMNS, self.shape.intermediate_size),
            UnitKind::Vocab => (self.vocab_unit_rows(), self.shape.vocab_size),
        };
        assert!(unit.0 < self.count(kind), "{kind} unit {unit} of {}", self.count(kind));
        unit.0 * size..((unit.0 + 1) * size).min(end)
    }

    /// Bytes that one unit makes a rank read per token.
    pub fn unit_bytes(&self, kind: UnitKind, unit: UnitId) -> u64 {
        let extent = self.extent(kind, unit);
        let width = u64::from(extent.end - extent.start);
        match kind {
            UnitKind::Attention => self.bytes.attention,
            UnitKind::Ffn => self.bytes.ffn_per_column * width,
            UnitKind::Vocab => self.bytes.vocab_per_row * width,
        }
    }

    /// Bytes read per token over all ranks, replicated parts counted once.
    pub fn total_bytes(&self) -> u64 {
        let units = UnitKind::ALL
            .into_iter()
            .flat_map(|kind| (0..self.count(kind)).map(move |unit| (kind, unit)));
        units
            .map(|(kind, unit)| self.unit_bytes(kind, UnitId(unit)))
            .sum::<u64>()
            + self.bytes.replicated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(intermediate_size: u32, vocab_size: u32) -> UnitLayout {
        let heads = HeadLayout::new(9, 3, 64).unwrap();
        let shape = ModelShape {
            num_layers: 2,
            hidden_size: 576,
            heads,
            intermediate_size,
            vocab_size,
            context_len: 128,
        };
        let bytes = UnitBytes {
            attention: 100,
            ffn_per_column: 3,
            vocab_per_row: 2,
            embedding_per_row: 0,
            replicated: 7,
        };
        UnitLayout::new(shape, bytes)
    }

    #[test]
    fn units_cover_every_column_and_row_once() {
        for (intermediate, vocab) in [(1536, 49152), (96, 320), (32, 50257), (160, 128_256), (64, 1)] {
            let layout = layout(intermediate, vocab);
            for (kind, end) in [
                (UnitKind::Attention, 3),
                (UnitKind::Ffn, intermediate),
                (UnitKind::Vocab, vocab),
            ] {
                let mut next = 0;
                for unit in 0..layout.count(kind) {
                    let extent = layout.extent(kind, UnitId(unit));
                    assert_eq!(extent.start, next);
                    assert!(extent.end > extent.start);
                    next = extent.end;
                }
                assert_eq!(next, end, "{kind}");
            }
        }
    }

    #[test]
    fn total_bytes_is_the_sum_over_units() {
        assert_eq!(layout(1536, 49152).total_bytes(), 3 * 100 + 1536 * 3 + 49152 * 2 + 7);
    }
}
