//! Attention over paged cells at a decode step's shape: 32 query heads of 128 dimensions, f16 cells, and every number of
//! query heads that share a KV head.
//!
//! The bytes of K and V go with the number of KV heads, so that time should go with it too.

use kvasir_kv::{CellLayout, KvDtype};
use kvasir_worker::gpu::{
    device::{DeviceBuffer as _, GpuDevice as _, GpuError, LaunchShape},
    kernel::{Arguments as _, AttendArgs, AttendItem, CellPlaces, Kernel, MergeChunksArgs, RowPlaces},
    test_device::{self, TestBuffer, TestDevice, time_us},
};

use super::{Numbers, Scale, device_data, median_us, roofline::roofline_gb_s};

const NUM_Q_HEADS: usize = 32;
const HEAD_DIM: usize = 128;
const BLOCK_SIZE: usize = 64;
const CHUNK: usize = 256;
const GROUPS: [(usize, Kernel); 6] = [
    (1, Kernel::Attend1),
    (2, Kernel::Attend2),
    (4, Kernel::Attend4),
    (8, Kernel::Attend8),
    (16, Kernel::Attend16),
    (32, Kernel::Attend32),
];
/// Cells that runs rotate among: several times what a GPU's cache holds.
const ROTATED_BYTES: usize = 1 << 30;

pub fn measure(scale: Scale) -> Result<Numbers, GpuError> {
    let mut numbers = Numbers::new();
    let roofline = roofline_gb_s(scale)?;
    let mut device = test_device::open()?;
    let (batch, context) = scale.pick((2, 300), (64, 2048));
    for (group, exact) in GROUPS {
        let case = Case { batch, context, group };
        numbers.insert(format!("group_{group}_kv_bytes"), case.kv_bytes() as f64);
        for (mode, launch) in [("exact", Some(case.exact(exact))), ("fast", case.fast())] {
            let Some((kernel, shape)) = launch else { continue };
            let us = case.time(&mut device, scale, kernel, shape)?;
            let gb_s = case.kv_bytes() as f64 / us / 1e3;
            numbers.insert(format!("{mode}_group_{group}_us"), us);
            numbers.insert(format!("{mode}_group_{group}_roofline_share"), gb_s / roofline);
        }
    }
    Ok(numbers)
}

/// One token each for some sequences of one length.
struct Case {
    batch: usize,
    context: usize,
    group: usize,
}

/// What a launch needs, kept as long as it runs.
struct Inputs {
    columns: TestBuffer,
    items: TestBuffer,
    chunks: TestBuffer,
    out: TestBuffer,
    tables: TestBuffer,
    sequences: TestBuffer,
    positions: TestBuffer,
    /// Of each set that runs rotate among.
    slab_tables: Vec<TestBuffer>,
    slabs: Vec<TestBuffer>,
}

impl Case {
    fn heads(&self) -> usize {
        NUM_Q_HEADS / self.group
    }

    /// Of all K and V that a step reads: each once, whatever the group.
    fn kv_bytes(&self) -> usize {
        self.batch * self.context * self.heads() * 2 * HEAD_DIM * 2
    }

    fn grid(&self) -> [u32; 3] {
        [self.num_chunks(), self.heads(), self.batch].map(|blocks| blocks as u32)
    }

    /// The definition's arithmetic: the kernel of as many readers as share a head.
    fn exact(&self, kernel: Kernel) -> (Kernel, LaunchShape) {
        let floats = CHUNK * 36 + (HEAD_DIM + CHUNK) * self.group;
        (kernel, LaunchShape::new(self.grid(), 256).shared(4 * floats))
    }

    /// On tensor cores, which take up to 16.
    fn fast(&self) -> Option<(Kernel, LaunchShape)> {
        let shape = LaunchShape::new(self.grid(), 128).shared(4 * 16 * (2 * 4 + HEAD_DIM));
        (self.group <= 16).then_some((Kernel::AttendFast128, shape))
    }

    fn num_chunks(&self) -> usize {
        self.context.div_ceil(CHUNK)
    }

    fn blocks_each(&self) -> usize {
        self.context.div_ceil(BLOCK_SIZE)
    }

    fn layout(&self) -> CellLayout {
        let layout = CellLayout::new(1, HEAD_DIM as u32, BLOCK_SIZE as u32, KvDtype::F16);
        layout.expect("a block size that there is")
    }

    fn inputs(&self, device: &mut TestDevice, scale: Scale) -> Result<Inputs, GpuError> {
        let (batch, heads) = (self.batch, self.heads());
        let num_blocks = batch * self.blocks_each();
        let num_sets = scale.pick(1, (ROTATED_BYTES / self.kv_bytes()).clamp(1, 8));
        let slab_bytes = self.layout().slab_bytes(num_blocks as u32);
        let (mut slabs, mut slab_tables) = (Vec::new(), Vec::new());
        for _ in 0..num_sets {
            let first = slabs.len();
            for _ in 0..heads {
                slabs.push(device_data::halves(device, slab_bytes)?);
            }
            let addresses: Vec<u64> = slabs[first..].iter().map(|slab| slab.address()).collect();
            slab_tables.push(device_data::put(device, &addresses)?);
        }
        // The blocks of the sequences alternate, as they come to after a while of decoding together.
        let block = |at: usize| (at % self.blocks_each() * batch + at / self.blocks_each()) as u32;
        let items: Vec<AttendItem> = (0..batch as u32).map(|row| AttendItem { row, rows: 1 }).collect();
        let floats = batch * heads * self.group * self.num_chunks() * (HEAD_DIM + 2);
        Ok(Inputs {
            columns: device_data::floats(device, batch * heads * (self.group + 2) * HEAD_DIM)?,
            items: device_data::put(device, &items)?,
            chunks: device.allocate("chunks", 4 * floats)?,
            out: device.allocate("outputs", 4 * batch * NUM_Q_HEADS * HEAD_DIM)?,
            tables: device_data::put(device, &(0..num_blocks).map(block).collect::<Vec<_>>())?,
            sequences: device_data::put(device, &(0..batch as u32).collect::<Vec<_>>())?,
            positions: device_data::put(device, &vec![self.context as u32 - 1; batch])?,
            slab_tables,
            slabs,
        })
    }

    /// The chunks and their merge, in microseconds.
    fn time(&self, device: &mut TestDevice, scale: Scale, kernel: Kernel, shape: LaunchShape) -> Result<f64, GpuError> {
        let inputs = self.inputs(device, scale)?;
        assert_eq!(inputs.slabs.len(), inputs.slab_tables.len() * self.heads());
        // The one kernel's gap to the next is shorter than it; many in a row hide what starting one takes.
        let in_a_row = scale.pick(1, 8);
        let total_us = median_us(scale.repeats(), |run| {
            time_us(device, |device| {
                (0..in_a_row).try_for_each(|one| self.launch(device, (kernel, shape), &inputs, run * in_a_row + one))
            })
        })?;
        Ok(total_us / in_a_row as f64)
    }

    fn launch(
        &self,
        device: &mut TestDevice,
        (kernel, shape): (Kernel, LaunchShape),
        inputs: &Inputs,
        run: usize,
    ) -> Result<(), GpuError> {
        let layout = self.layout();
        let attend = AttendArgs {
            columns: inputs.columns.address(),
            items: inputs.items.address(),
            chunks: inputs.chunks.address(),
            cells: CellPlaces {
                slabs: inputs.slab_tables[run % inputs.slab_tables.len()].address(),
                cell_bytes: layout.cell_bytes() as u64,
                layer_offset: 0,
                plane_bytes: layout.plane_bytes() as u32,
                block_size: BLOCK_SIZE as u32,
                head_dim: HEAD_DIM as u32,
                dtype: KvDtype::F16 as u32,
            },
            rows: RowPlaces {
                tables: inputs.tables.address(),
                sequences: inputs.sequences.address(),
                positions: inputs.positions.address(),
                table_stride: self.blocks_each() as u32,
                padding: 0,
            },
            group: self.group as u32,
            heads: self.heads() as u32,
            num_chunks: self.num_chunks() as u32,
            first_row: 0,
        };
        attend.launch(device, kernel, shape)?;
        let merge = MergeChunksArgs {
            chunks: inputs.chunks.address(),
            out: inputs.out.address(),
            halves: 0,
            positions: inputs.positions.address(),
            head_dim: HEAD_DIM as u32,
            num_heads: NUM_Q_HEADS as u32,
            num_chunks: self.num_chunks() as u32,
            first_row: 0,
        };
        let grid = [NUM_Q_HEADS as u32, self.batch as u32, 1];
        merge.launch(device, Kernel::MergeChunks, LaunchShape::new(grid, HEAD_DIM as u32))
    }
}
