//! Cell memory of one KV head and one layer: reading it by position, writing one position.
//!
//! `kvasir_kv::CellLayout` has the strides of cells, `cell_element` what a plane of K or V holds.

use std::marker::PhantomData;

use kvasir_kv::{CellLayout, KvDtype};

use super::{
    Kernels,
    cell_element::{CellElement, PlaneShape, Q8_0},
    element::{F16, F32},
    simd::{Kernel, Simd},
};

/// One layer of all cells of a KV head.
#[derive(Clone, Copy, Debug)]
pub struct KvView<'a> {
    slab: &'a [u8],
    layout: CellLayout,
    layer_offset: usize,
}

impl<'a> KvView<'a> {
    /// slab: whole cells of one KV head, one after the other.
    pub fn new(slab: &'a [u8], layout: CellLayout, layer: u32) -> Self {
        assert!(
            slab.len().is_multiple_of(layout.cell_bytes()),
            "a slab holds whole cells"
        );
        Self {
            slab,
            layout,
            layer_offset: layout.layer_range(layer).start,
        }
    }

    pub fn layout(&self) -> &CellLayout {
        &self.layout
    }

    /// K of a block.
    #[inline(always)]
    pub(super) fn keys(&self, block: u32) -> &'a [u8] {
        &self.slab[block as usize * self.layout.cell_bytes() + self.layer_offset..][..self.layout.plane_bytes()]
    }

    /// V of a block.
    #[inline(always)]
    pub(super) fn values(&self, block: u32) -> &'a [u8] {
        let plane_bytes = self.layout.plane_bytes();
        &self.slab[block as usize * self.layout.cell_bytes() + self.layer_offset + plane_bytes..][..plane_bytes]
    }
}

impl Kernels {
    /// Writes K and V of one token of one KV head, rounded to the cell's dtype.
    ///
    /// k, v: `[head_dim]`; layer_cell: the layer's range of a cell (`layout.layer_range`); offset: position in the block.
    /// Returns false if what was written is not finite: the token is poisoned.
    #[must_use]
    pub fn write_kv(&self, k: &[f32], v: &[f32], layer_cell: &mut [u8], layout: &CellLayout, offset: usize) -> bool {
        assert_eq!(k.len(), layout.head_dim() as usize);
        assert_eq!(v.len(), layout.head_dim() as usize);
        assert_eq!(layer_cell.len(), 2 * layout.plane_bytes());
        assert!(offset < layout.block_size() as usize);
        let shape = PlaneShape {
            head_dim: k.len(),
            block_size: layout.block_size() as usize,
        };
        let (keys, values) = layer_cell.split_at_mut(layout.plane_bytes());
        let write = WriteKv {
            row: [k, v],
            planes: [keys, values],
            shape,
            offset,
            element: PhantomData,
        };
        match layout.dtype() {
            KvDtype::F32 => self.run::<WriteKv<'_, F32>>(write),
            KvDtype::F16 => self.run::<WriteKv<'_, F16>>(write.of()),
            KvDtype::Q8_0 => self.run::<WriteKv<'_, Q8_0>>(write.of()),
        }
    }
}

/// K and V of one position.
struct WriteKv<'a, E> {
    row: [&'a [f32]; 2],
    planes: [&'a mut [u8]; 2],
    shape: PlaneShape,
    offset: usize,
    element: PhantomData<E>,
}

impl<'a> WriteKv<'a, F32> {
    /// The same for another element.
    fn of<E>(self) -> WriteKv<'a, E> {
        WriteKv {
            row: self.row,
            planes: self.planes,
            shape: self.shape,
            offset: self.offset,
            element: PhantomData,
        }
    }
}

impl<E: CellElement> Kernel for WriteKv<'_, E> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let [k, v] = self.row;
        let [keys, values] = self.planes;
        E::write_key(s, k, keys, self.shape, self.offset) & E::write_value(s, v, values, self.shape, self.offset)
    }
}
