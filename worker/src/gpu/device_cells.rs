//! A rank's KV cells on the device: one slab per local KV head, `[block][layer][K|V][position][head_dim]`.
//!
//! K lies row-major here, unlike on the host: a warp reads a few positions' K in whole sectors. Cells leave and come in the
//! order of `kv::CellLayout`, whatever they are here.

use std::{collections::BTreeMap, ops::Range};

use kvasir_kv::{BlockId, CellLayout, KvDtype, KvHead};

use super::{
    device::{DeviceBuffer, GpuDevice, GpuError, LaunchShape},
    kernel::{Arguments as _, CellPlaces, Kernel, MoveCellsArgs},
};

#[derive(Debug)]
pub struct DeviceCells<B> {
    layout: CellLayout,
    num_blocks: u32,
    heads: Range<u32>,
    /// One per local head: `[num_blocks][cell_bytes]`
    slabs: Vec<B>,
    /// Of heads that the next epoch will have, and their number of blocks.
    ahead: BTreeMap<u32, B>,
    blocks_ahead: u32,
}

impl<B: DeviceBuffer> DeviceCells<B> {
    pub fn new(layout: CellLayout) -> Self {
        Self {
            layout,
            num_blocks: 0,
            heads: 0..0,
            slabs: Vec::new(),
            ahead: BTreeMap::new(),
            blocks_ahead: 0,
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
        self.ahead.clear();
        self.heads = heads.clone();
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

    /// Makes room for cells of those of `heads` that are not here yet, beside all that is.
    pub fn prepare<D: GpuDevice<Buffer = B>>(
        &mut self,
        device: &mut D,
        heads: Range<u32>,
        num_blocks: u32,
    ) -> Result<(), GpuError> {
        self.ahead.clear();
        self.blocks_ahead = num_blocks;
        for head in heads.filter(|head| !self.heads.contains(head)) {
            let slab = device.allocate("KV cells", self.layout.slab_bytes(num_blocks).max(1))?;
            self.ahead.insert(head, slab);
        }
        Ok(())
    }

    /// Goes on with `heads`: those that were here keep their cells, the others have what was prepared.
    pub fn switch<D: GpuDevice<Buffer = B>>(
        &mut self,
        device: &mut D,
        heads: Range<u32>,
        num_blocks: u32,
    ) -> Result<(), GpuError> {
        let (before, bytes) = (self.num_blocks, self.layout.slab_bytes(num_blocks).max(1));
        let kept_bytes = self.layout.slab_bytes(before.min(num_blocks));
        let mut kept: BTreeMap<u32, B> = self.heads.clone().zip(std::mem::take(&mut self.slabs)).collect();
        for head in heads.clone() {
            let slab = match (kept.remove(&head), self.ahead.remove(&head)) {
                (Some(slab), _) if before == num_blocks => slab,
                (Some(slab), _) => {
                    let other = device.allocate("KV cells", bytes)?;
                    device.copy(&slab, 0, &other, 0, kept_bytes)?;
                    device.synchronize()?;
                    other
                }
                (None, Some(slab)) => slab,
                (None, None) => device.allocate("KV cells", bytes)?,
            };
            self.slabs.push(slab);
        }
        self.ahead.clear();
        self.num_blocks = num_blocks;
        self.heads = heads;
        Ok(())
    }

    /// A block's cell of a head of this epoch, or of the next, in the order of `kv::CellLayout`. `None` if there is none.
    pub fn export<D: GpuDevice<Buffer = B>>(
        &self,
        device: &mut D,
        head: KvHead,
        block: BlockId,
        bytes: &mut [u8],
    ) -> Result<Option<()>, GpuError> {
        let Some(slab) = self
            .slab_with(head, block)
            .filter(|_| bytes.len() == self.layout.cell_bytes())
        else {
            return Ok(None);
        };
        let packed = device.allocate("cells on their way", bytes.len().max(1))?;
        self.move_cells(device, Kernel::GatherCells, slab, &[block], &packed)?;
        device.download(&packed, 0, bytes)?;
        Ok(Some(()))
    }

    /// The inverse of [`Self::export`].
    pub fn import<D: GpuDevice<Buffer = B>>(
        &mut self,
        device: &mut D,
        head: KvHead,
        block: BlockId,
        bytes: &[u8],
    ) -> Result<Option<()>, GpuError> {
        let Some(slab) = self
            .slab_with(head, block)
            .filter(|_| bytes.len() == self.layout.cell_bytes())
        else {
            return Ok(None);
        };
        let packed = device.allocate("cells on their way", bytes.len().max(1))?;
        device.upload(bytes, &packed, 0)?;
        self.move_cells(device, Kernel::ScatterCells, slab, &[block], &packed)?;
        device.synchronize()?;
        Ok(Some(()))
    }

    /// Of the cells of these blocks of each local head: their part of what was allocated.
    pub fn held_bytes(&self, blocks: &[BlockId]) -> u64 {
        let held = blocks.iter().filter(|block| block.0 < self.num_blocks).count() as u64;
        let slabs = self.slabs.iter().map(|slab| slab.bytes() as u64);
        slabs
            .map(|bytes| bytes / u64::from(self.num_blocks.max(1)) * held)
            .sum()
    }

    /// The slab of a head that has such a block.
    fn slab_with(&self, head: KvHead, block: BlockId) -> Option<&B> {
        match self.heads.contains(&head.0) {
            true if block.0 < self.num_blocks => self.slabs.get((head.0 - self.heads.start) as usize),
            false if block.0 < self.blocks_ahead => self.ahead.get(&head.0),
            _ => None,
        }
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
        assert!(blocks.iter().all(|block| block.0 < self.num_blocks));
        self.move_cells(device, kernel, &self.slabs[head], blocks, packed)
    }

    fn move_cells<D: GpuDevice<Buffer = B>>(
        &self,
        device: &mut D,
        kernel: Kernel,
        slab: &B,
        blocks: &[BlockId],
        packed: &B,
    ) -> Result<(), GpuError> {
        if blocks.is_empty() {
            return Ok(());
        }
        let numbers: Vec<u32> = blocks.iter().map(|block| block.0).collect();
        let table = device.allocate("block numbers", 8 + 4 * numbers.len())?;
        device.upload(&slab.address().to_le_bytes(), &table, 0)?;
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
