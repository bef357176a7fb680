//! The launches of attention: chunks for rows that attend alone and for runs of rows, then the merge.

use std::ops::Range;

use kvasir_kv::{CellLayout, KvDtype};

use super::{
    device::{DeviceBuffer, GpuDevice, GpuError, LaunchShape},
    kernel::{Arguments as _, AttendArgs, CellPlaces, Kernel, MergeChunksArgs, RowPlaces},
    step_memory::{StepMemory, address_or_none},
    step_rows::{StepRows, items_in},
};

/// Query rows and heads that a kernel serves at once.
pub const READERS_MAX: u32 = 32;
/// The same on tensor cores: the rows of their product.
const FAST_READERS: u32 = 16;
const FAST_WARPS: usize = 4;

/// Most bytes of chunks that wait for their merge, if one run of rows needs no more.
const CHUNK_BYTES_MAX: usize = 64 << 20;
/// As in `attention.cu`: floats of K or V in shared memory, and positions of a chunk.
const STAGE_FLOATS: usize = 256 * 36;
const CHUNK_POSITIONS: usize = 256;

const KERNELS: [(u32, Kernel); 6] = [
    (1, Kernel::Attend1),
    (2, Kernel::Attend2),
    (4, Kernel::Attend4),
    (8, Kernel::Attend8),
    (16, Kernel::Attend16),
    (READERS_MAX, Kernel::Attend32),
];

/// The smallest kernel for so many readers, at most [`READERS_MAX`].
fn kernel_for(readers: u32) -> (u32, Kernel) {
    let fits = KERNELS.into_iter().find(|(most, _)| *most >= readers);
    fits.expect("a backend refuses larger groups")
}

/// Of a rank's share.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    pub head_dim: usize,
    pub heads: usize,
    /// Query heads per KV head.
    pub group: usize,
    /// On tensor cores.
    pub fast: bool,
}

/// Whether tensor cores can attend to such heads and cells.
pub fn fits_tensor_cores(cell: &CellLayout, group: u32) -> bool {
    cell.dtype() == KvDtype::F16 && [64, 128].contains(&cell.head_dim()) && group <= FAST_READERS
}

impl AttentionShape {
    /// Floats that a row leaves of each chunk.
    pub fn chunk_floats(&self) -> usize {
        self.heads * self.group * (self.head_dim + 2)
    }

    /// Rows whose chunks are kept at once.
    fn slice_rows(&self, num_chunks: u32) -> usize {
        let row_bytes = 4 * self.chunk_floats() * num_chunks as usize;
        (CHUNK_BYTES_MAX / row_bytes.max(1)).max(self.run_rows())
    }

    /// Rows of a sequence that attend together.
    pub fn run_rows(&self) -> usize {
        let readers = if self.fast { FAST_READERS } else { READERS_MAX };
        (readers as usize / self.group).max(1)
    }

    /// Floats of chunks that a step needs.
    pub fn chunk_room(&self, rows: &StepRows) -> usize {
        let at_once = self.slice_rows(rows.num_chunks).min(rows.len());
        at_once * rows.num_chunks as usize * self.chunk_floats()
    }

    /// From q and the cells to `inner`.
    pub fn launch<D: GpuDevice>(
        &self,
        device: &mut D,
        memory: &StepMemory<D::Buffer>,
        rows: &StepRows,
        cells: CellPlaces,
    ) -> Result<(), GpuError> {
        for slice in rows.slices(self.slice_rows(rows.num_chunks)) {
            let args = AttendArgs {
                columns: memory.columns.address(),
                items: 0,
                chunks: memory.chunks.address(),
                cells,
                rows: row_places(memory, rows),
                group: self.group as u32,
                heads: self.heads as u32,
                num_chunks: rows.num_chunks,
                first_row: slice.start,
            };
            let kinds = [
                (&memory.singles, items_in(&rows.singles, &slice), 1),
                (&memory.runs, items_in(&rows.runs, &slice), self.run_rows()),
            ];
            for (items, range, rows) in kinds {
                self.launch_chunks(device, items.address(), range, (rows * self.group) as u32, args)?;
            }
            self.launch_merge(device, memory, rows.num_chunks, &slice)?;
        }
        Ok(())
    }

    fn launch_chunks<D: GpuDevice>(
        &self,
        device: &mut D,
        items: u64,
        range: Range<usize>,
        readers: u32,
        args: AttendArgs,
    ) -> Result<(), GpuError> {
        if range.is_empty() {
            return Ok(());
        }
        let args = AttendArgs {
            items: items + 8 * range.start as u64,
            ..args
        };
        let grid = [args.num_chunks, self.heads as u32, range.len() as u32];
        if self.fast {
            let floats = FAST_READERS as usize * (2 * FAST_WARPS + self.head_dim);
            let shape = LaunchShape::new(grid, 32 * FAST_WARPS as u32).shared(4 * floats);
            let kernel = if self.head_dim == 64 {
                Kernel::AttendFast64
            } else {
                Kernel::AttendFast128
            };
            return args.launch(device, kernel, shape);
        }
        let (readers, kernel) = kernel_for(readers);
        let floats = STAGE_FLOATS + (self.head_dim + CHUNK_POSITIONS) * readers as usize;
        args.launch(device, kernel, LaunchShape::new(grid, 256).shared(4 * floats))
    }

    fn launch_merge<D: GpuDevice>(
        &self,
        device: &mut D,
        memory: &StepMemory<D::Buffer>,
        num_chunks: u32,
        slice: &Range<u32>,
    ) -> Result<(), GpuError> {
        let num_heads = (self.heads * self.group) as u32;
        let args = MergeChunksArgs {
            chunks: memory.chunks.address(),
            out: memory.inner.address(),
            halves: address_or_none(&memory.inner_halves),
            positions: memory.positions.address(),
            head_dim: self.head_dim as u32,
            num_heads,
            num_chunks,
            first_row: slice.start,
        };
        let threads = self.head_dim.next_multiple_of(32) as u32;
        let grid = [num_heads, slice.len() as u32, 1];
        args.launch(device, Kernel::MergeChunks, LaunchShape::new(grid, threads))
    }
}

pub fn row_places<B: DeviceBuffer>(memory: &StepMemory<B>, rows: &StepRows) -> RowPlaces {
    RowPlaces {
        tables: memory.tables.address(),
        sequences: memory.sequences.address(),
        positions: memory.positions.address(),
        table_stride: rows.table_stride,
        padding: 0,
    }
}
