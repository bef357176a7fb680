//! A rank's KV cells on the device: one slab per local KV head, `[block][layer][K|V][position][head_dim]`.
//!
//! K lies row-major here, unlike on the host: a warp reads a few positions' K in whole sectors. Cells leave and come in the
//! order of `kv::CellLayout`, whatever they are here.

use std::ops::Range;

use kvasir_kv::{BlockId, CellLayout, KvDtype};

use super::{
    device::{DeviceBuffer, GpuDevice, GpuError, LaunchShape},
    kernel::{Arguments as _, CellPlaces, Kernel, MoveCellsArgs},
};

#[derive(Debug)]
pub struct DeviceCells<B> {
    layout: CellLayout,
    num_blocks: u32,
    /// One per local head: `[num_blocks][cell_bytes]`
    slabs: Vec<B>,
}

impl<B: DeviceBuffer> DeviceCells<B> {
    pub fn new(layout: CellLayout) -> Self {
        Self {
            layout,
            num_blocks: 0,
            slabs: Vec::new(),
        }
    }

    pub fn layout(&self) -> &CellLayout {
        &self.layout
    }

    /// Makes room for `num_blocks` cells of each of `heads`. What the cells held before is forgotten, not cleared.
    pub fn resize<D: GpuDevice<Buffer = B>>(
        &mut self,
        device: &mut D,
        heads: Range<u32>,
        num_blocks: u32,
    ) -> Result<(), GpuError> {
        if num_blocks != self.num_blocks {
            self.slabs.clear();
        }
        self.num_blocks = num_blocks;
        self.slabs.truncate(heads.len());
        while self.slabs.len() < heads.len() {
            let bytes = self.layout.slab_bytes(num_blocks).max(1);
            self.slabs.push(device.allocate("KV cells", bytes)?);
        }
        Ok(())
    }

    pub fn slab_addresses(&self) -> Vec<u64> {
        self.slabs.iter().map(DeviceBuffer::address).collect()
    }

    /// One layer of them. slabs: the address of [`Self::slab_addresses`] on the device.
    pub fn places(&self, slabs: u64, layer: u32) -> CellPlaces {
        CellPlaces {
            slabs,
            cell_bytes: self.layout.cell_bytes() as u64,
            layer_offset: self.layout.layer_range(layer).start as u64,
            plane_bytes: self.layout.plane_bytes() as u32,
            block_size: self.layout.block_size(),
            head_dim: self.layout.head_dim(),
            dtype: match self.layout.dtype() {
                KvDtype::F32 => 0,
                KvDtype::F16 => 1,
                KvDtype::Q8_0 => 2,
            },
        }
    }

    /// Cells of the local head `head`, in the order of `kv::CellLayout`, one after the other.
    pub fn gather<D: GpuDevice<Buffer = B>>(
        &self,
        device: &mut D,
        head: usize,
        blocks: &[BlockId],
    ) -> Result<Vec<u8>, GpuError> {
        let mut bytes = vec![0; blocks.len() * self.layout.cell_bytes()];
        let packed = device.allocate("cells on their way", bytes.len().max(1))?;
        self.transfer(device, Kernel::GatherCells, head, blocks, &packed)?;
        device.download(&packed, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// The inverse of [`Self::gather`].
    ///
    /// # Panics
    /// If `bytes` are not those of so many cells.
    pub fn scatter<D: GpuDevice<Buffer = B>>(
        &mut self,
        device: &mut D,
        head: usize,
        blocks: &[BlockId],
        bytes: &[u8],
    ) -> Result<(), GpuError> {
        assert_eq!(bytes.len(), blocks.len() * self.layout.cell_bytes());
        let packed = device.allocate("cells on their way", bytes.len().max(1))?;
        device.upload(bytes, &packed, 0)?;
        self.transfer(device, Kernel::ScatterCells, head, blocks, &packed)?;
        device.synchronize()
    }

    fn transfer<D: GpuDevice<Buffer = B>>(
        &self,
        device: &mut D,
        kernel: Kernel,
        head: usize,
        blocks: &[BlockId],
        packed: &B,
    ) -> Result<(), GpuError> {
        if blocks.is_empty() {
            return Ok(());
        }
        let numbers: Vec<u32> = blocks.iter().map(|block| block.0).collect();
        assert!(numbers.iter().all(|block| *block < self.num_blocks));
        let table = device.allocate("block numbers", 8 + 4 * numbers.len())?;
        device.upload(&self.slabs[head].address().to_le_bytes(), &table, 0)?;
        device.upload(bytemuck::cast_slice(&numbers), &table, 8)?;
        let args = MoveCellsArgs {
            blocks: table.address() + 8,
            packed: packed.address(),
            cells: self.places(table.address(), 0),
        };
        let planes = 2 * self.layout.num_layers();
        let shape = LaunchShape::new([planes, numbers.len() as u32, 1], 256);
        args.launch(device, kernel, shape)?;
        // The numbers must live until the kernel has read them.
        device.synchronize()
    }
}
