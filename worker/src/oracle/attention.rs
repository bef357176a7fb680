//! Attention of one KV head's query heads, sequence by sequence.

use std::ops::Range;

use candle_core::{D, DType, Device, Result, Tensor};
use kvasir_kv::BlockId;

use super::cell_tensors::HeadCells;
use crate::rank_books::WorkInput;

/// One sequence's rows of a step.
pub(super) struct SequenceRows<'a> {
    pub rows: Range<usize>,
    /// Position of the first row.
    start: usize,
    blocks: &'a [BlockId],
    /// `[rows, positions]`: 0 up to a row's own position, then -infinity.
    mask: Tensor,
}

impl<'a> SequenceRows<'a> {
    pub(super) fn of(work: &'a [WorkInput], device: &Device) -> Result<Vec<Self>> {
        let mut first = 0;
        let mut sequences = Vec::with_capacity(work.len());
        for work in work {
            let rows = first..first + work.tokens.len();
            first = rows.end;
            sequences.push(Self {
                rows,
                start: work.start as usize,
                blocks: &work.blocks,
                mask: causal_mask(work.start..work.end(), device)?,
            });
        }
        Ok(sequences)
    }
}

fn causal_mask(rows: Range<u32>, device: &Device) -> Result<Tensor> {
    let shape = (rows.len(), rows.end as usize);
    let positions = 0..rows.end;
    let mask = rows.flat_map(|row| {
        positions
            .clone()
            .map(move |p| if p <= row { 0.0f32 } else { f32::NEG_INFINITY })
    });
    Tensor::from_vec(mask.collect(), shape, device)
}

/// q: `[tokens, group_size, head_dim]`, k and v: `[tokens, head_dim]` -> `[tokens, group_size * head_dim]`
///
/// K and V go through the cells: a row sees what a later step would see.
pub(super) fn attend(
    sequences: &[SequenceRows<'_>],
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cells: &mut HeadCells<'_>,
) -> Result<Tensor> {
    let mut attended = Vec::with_capacity(sequences.len());
    for sequence in sequences {
        let own = |all: &Tensor| all.narrow(0, sequence.rows.start, sequence.rows.len());
        cells.write(sequence.blocks, sequence.start, &own(k)?, &own(v)?)?;
        let end = sequence.start + sequence.rows.len();
        let (keys, values) = cells.read(sequence.blocks, end)?;
        let doubt = (doubt(&keys)? + doubt(&values)?)?.narrow(0, sequence.start, sequence.rows.len())?;
        let rows = attend_sequence(&own(q)?, &keys, &values, &sequence.mask)?;
        attended.push(rows.broadcast_add(&doubt)?);
    }
    Tensor::cat(&attended, 0)
}

/// q: `[rows, group_size, head_dim]`, keys and values: `[positions, head_dim]`, mask: `[rows, positions]`
fn attend_sequence(q: &Tensor, keys: &Tensor, values: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let (rows, group_size, head_dim) = q.dims3()?;
    let positions = keys.dim(0)?;
    let q = q.transpose(0, 1)?.reshape((group_size * rows, head_dim))?;
    let scores = (q.matmul(&keys.t()?)? / (head_dim as f64).sqrt())?;
    let scores = scores.reshape((group_size, rows, positions))?.broadcast_add(mask)?;
    let exp = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
    let attended = weights.reshape((group_size * rows, positions))?.matmul(values)?;
    let attended = attended.reshape((group_size, rows, head_dim))?.transpose(0, 1)?;
    attended.reshape((rows, group_size * head_dim))
}

/// `[rows, columns]` -> `[rows, 1]`: 0, or NaN for a row that left the cells' range. A key of -infinity would otherwise
/// get no weight and pass unnoticed; NaN makes the reduce poison the token.
fn doubt(rows: &Tensor) -> Result<Tensor> {
    (rows.to_dtype(DType::F32)? * 0.0)?.sum_keepdim(1)
}

#[cfg(test)]
mod tests {
    use kvasir_kv::{CellLayout, KvDtype, TokenId};

    use super::*;
    use crate::oracle::cell_tensors::CellTensors;

    fn work(blocks: &[u32], num_tokens: u32) -> WorkInput {
        WorkInput {
            tokens: (0..num_tokens).map(TokenId).collect(),
            blocks: blocks.iter().copied().map(BlockId).collect(),
            samples: true,
            prompt_len: num_tokens,
            ..WorkInput::default()
        }
    }

    /// One query head of dimension 2 in f16 cells; all queries point against the keys.
    fn attended<const ROWS: usize>(k: [[f32; 2]; ROWS], v: [[f32; 2]; ROWS], work: &[WorkInput]) -> Vec<Vec<f32>> {
        let device = Device::Cpu;
        let mut cells = CellTensors::new(CellLayout::new(1, 2, 16, KvDtype::F16).unwrap(), device.clone());
        let sequences = SequenceRows::of(work, &device).unwrap();
        let tensor = |values: [[f32; 2]; ROWS]| Tensor::new(&values, &device).unwrap();
        let (q, k, v) = (tensor([[-1.0, 0.0]; ROWS]).unsqueeze(1).unwrap(), tensor(k), tensor(v));
        let out = attend(&sequences, &q, &k, &v, &mut cells.of_head(0, 0));
        out.unwrap().to_vec2().unwrap()
    }

    #[test]
    fn rows_see_their_own_past_alone() {
        let k = [[0.0; 2]; 5];
        let v = [[2.0, 0.0], [4.0, 0.0], [6.0, 0.0], [10.0, 1.0], [20.0, 1.0]];
        let rows = attended(k, v, &[work(&[1], 3), work(&[0], 2)]);
        assert_eq!(rows, [[2.0, 0.0], [3.0, 0.0], [4.0, 0.0], [10.0, 1.0], [15.0, 1.0]]);
    }

    #[test]
    fn a_key_beyond_the_cells_range_is_not_passed_over() {
        let (sound, beyond) = ([0.0, 0.0], [1e6, 0.0]);
        let rows = attended([sound, beyond, sound], [[1.0; 2]; 3], &[work(&[0], 2), work(&[1], 1)]);
        assert_eq!(rows[0], [1.0; 2]);
        assert!(rows[1].iter().all(|value| value.is_nan()), "{rows:?}");
        assert_eq!(rows[2], [1.0; 2]);
    }
}
