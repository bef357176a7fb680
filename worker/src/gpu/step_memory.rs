//! What a step computes in, on the device. Kept from step to step, and grown when a step is larger than any before.

use super::{
    device::{DeviceBuffer, GpuDevice, GpuError},
    kernel::{Int8Rows, Summary},
};
use crate::backend::HEAD_ROWS_MAX;

/// Widths of a rank's share, in values per row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Widths {
    pub hidden: usize,
    /// Of the widest column-parallel output in the layers.
    pub columns: usize,
    /// Of the widest row-parallel input.
    pub inner: usize,
    /// Rows of the local vocab units, and their number.
    pub vocab: usize,
    pub vocab_units: usize,
    pub rope_pairs: usize,
    /// Whether products take bf16: the fast mode.
    pub halves: bool,
}

/// How large a step may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capacity {
    pub rows: usize,
    /// Blocks of a sequence.
    pub blocks: usize,
    /// Floats of attention chunks.
    pub chunk_floats: usize,
}

impl Capacity {
    /// Powers of two, so that a growing sequence makes few of them.
    fn rounded(self) -> Self {
        let Self {
            rows,
            blocks,
            chunk_floats,
        } = self;
        Self {
            rows: rows.next_power_of_two(),
            blocks: blocks.next_power_of_two(),
            chunk_floats,
        }
    }

    fn holds(self, other: Self) -> bool {
        self.rows >= other.rows && self.blocks >= other.blocks && self.chunk_floats >= other.chunk_floats
    }

    fn max(self, other: Self) -> Self {
        Self {
            rows: self.rows.max(other.rows),
            blocks: self.blocks.max(other.blocks),
            chunk_floats: self.chunk_floats.max(other.chunk_floats),
        }
    }
}

/// Activations as int8.
#[derive(Debug)]
pub struct Int8Memory<B> {
    quants: B,
    scales: B,
    scaled_sums: B,
}

impl<B: DeviceBuffer> Int8Memory<B> {
    fn new<D: GpuDevice<Buffer = B>>(device: &mut D, rows: usize, cols: usize) -> Result<Self, GpuError> {
        Ok(Self {
            quants: allocate::<i8, D>(device, rows * cols)?,
            scales: allocate::<f32, D>(device, rows * cols.div_ceil(32))?,
            scaled_sums: allocate::<f32, D>(device, rows * cols.div_ceil(32))?,
        })
    }

    /// To be filled, or read, if anybody wants them.
    pub fn rows_if(&self, wanted: bool) -> Int8Rows {
        if !wanted {
            return Int8Rows::default();
        }
        Int8Rows {
            quants: self.quants.address(),
            scales: self.scales.address(),
            scaled_sums: self.scaled_sums.address(),
        }
    }
}

/// Shapes are in rows of the step.
#[derive(Debug)]
pub struct StepMemory<B> {
    pub capacity: Capacity,
    /// f32 `[rows][hidden]`: embeddings from the host
    pub embedded: B,
    /// `StepRows`, on the device.
    pub positions: B,
    pub sequences: B,
    pub rotations: B,
    pub tables: B,
    pub singles: B,
    pub runs: B,
    /// The residual, f32 `[rows][hidden]`.
    pub x: B,
    pub normed: B,
    pub normed_int8: Int8Memory<B>,
    pub normed_halves: Option<B>,
    pub columns: B,
    pub inner: B,
    pub inner_int8: Int8Memory<B>,
    pub inner_halves: Option<B>,
    pub chunks: B,
    /// i64 `[rows][hidden]`, then `[rows]` of poison
    pub sums: B,
    /// The same as f32, reduced by the host.
    pub reduced: B,
    pub poison: B,
    pub head: HeadMemory<B>,
}

/// Of the rows that the head looks at, some at a time.
#[derive(Debug)]
pub struct HeadMemory<B> {
    pub rows: B,
    pub x: B,
    pub normed: B,
    pub normed_int8: Int8Memory<B>,
    pub normed_halves: Option<B>,
    pub poison: B,
    /// f32 `[rows][vocab]`
    pub logits: B,
    pub summaries: B,
}

impl<B: DeviceBuffer> StepMemory<B> {
    /// `memory` is made or made anew if it does not hold such a step. Whether it was.
    pub fn reserve<D: GpuDevice<Buffer = B>>(
        memory: &mut Option<Self>,
        device: &mut D,
        widths: &Widths,
        needed: Capacity,
    ) -> Result<bool, GpuError> {
        let before = memory.as_ref().map(|memory| memory.capacity).unwrap_or_default();
        if memory.is_some() && before.holds(needed) {
            return Ok(false);
        }
        // Graphs hold addresses, and kernels may still be reading: both end before the memory does.
        device.forget_graphs();
        device.synchronize()?;
        *memory = None;
        *memory = Some(Self::new(device, widths, before.max(needed.rounded()))?);
        Ok(true)
    }

    fn new<D: GpuDevice<Buffer = B>>(device: &mut D, widths: &Widths, capacity: Capacity) -> Result<Self, GpuError> {
        let rows = capacity.rows;
        let hidden = rows * widths.hidden;
        Ok(Self {
            capacity,
            embedded: allocate::<f32, D>(device, hidden)?,
            positions: allocate::<u32, D>(device, rows)?,
            sequences: allocate::<u32, D>(device, rows)?,
            rotations: allocate::<f32, D>(device, rows * 2 * widths.rope_pairs)?,
            tables: allocate::<u32, D>(device, rows * capacity.blocks)?,
            singles: allocate::<[u32; 2], D>(device, rows)?,
            runs: allocate::<[u32; 2], D>(device, rows)?,
            x: allocate::<f32, D>(device, hidden)?,
            normed: allocate::<f32, D>(device, hidden)?,
            normed_int8: Int8Memory::new(device, rows, widths.hidden)?,
            normed_halves: allocate_halves(device, widths, hidden)?,
            columns: allocate::<f32, D>(device, rows * widths.columns)?,
            inner: allocate::<f32, D>(device, rows * widths.inner)?,
            inner_int8: Int8Memory::new(device, rows, widths.inner)?,
            inner_halves: allocate_halves(device, widths, rows * widths.inner)?,
            chunks: allocate::<f32, D>(device, capacity.chunk_floats)?,
            sums: allocate::<i64, D>(device, hidden + rows)?,
            reduced: allocate::<f32, D>(device, hidden + rows)?,
            poison: allocate::<u32, D>(device, rows)?,
            head: HeadMemory::new(device, widths)?,
        })
    }
}

impl<B: DeviceBuffer> HeadMemory<B> {
    fn new<D: GpuDevice<Buffer = B>>(device: &mut D, widths: &Widths) -> Result<Self, GpuError> {
        let rows = HEAD_ROWS_MAX;
        Ok(Self {
            rows: allocate::<u32, D>(device, rows)?,
            x: allocate::<f32, D>(device, rows * widths.hidden)?,
            normed: allocate::<f32, D>(device, rows * widths.hidden)?,
            normed_int8: Int8Memory::new(device, rows, widths.hidden)?,
            normed_halves: allocate_halves(device, widths, rows * widths.hidden)?,
            poison: allocate::<u32, D>(device, rows)?,
            logits: allocate::<f32, D>(device, rows * widths.vocab)?,
            summaries: allocate::<Summary, D>(device, rows * widths.vocab_units)?,
        })
    }
}

fn allocate_halves<D: GpuDevice>(device: &mut D, widths: &Widths, len: usize) -> Result<Option<D::Buffer>, GpuError> {
    widths.halves.then(|| allocate::<u16, D>(device, len)).transpose()
}

/// 0 where there is none: what kernels take for absence.
pub fn address_or_none<B: DeviceBuffer>(buffer: &Option<B>) -> u64 {
    buffer.as_ref().map_or(0, DeviceBuffer::address)
}

/// At least one value, so that every buffer has an address.
fn allocate<T, D: GpuDevice>(device: &mut D, len: usize) -> Result<D::Buffer, GpuError> {
    device.allocate("a step", len.max(1) * size_of::<T>())
}
