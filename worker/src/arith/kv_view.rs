//! Cell memory of one KV head and one layer: reading it by position, writing one position.
//!
//! Of a layer of a cell, K is `[head_dim][block_size]` and V `[block_size][head_dim]`; `kvasir_kv::CellLayout` has the strides.

use std::marker::PhantomData;

use kvasir_kv::{CellLayout, KvDtype};

use super::{
    Kernels, LANES,
    element::{Element, F16, F32},
    panels::vectors,
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

    /// K of a block: `[head_dim][block_size]`
    #[inline(always)]
    pub(super) fn keys(&self, block: u32) -> &'a [u8] {
        &self.slab[block as usize * self.layout.cell_bytes() + self.layer_offset..][..self.layout.plane_bytes()]
    }

    /// V of a block: `[block_size][head_dim]`
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
        let block_size = layout.block_size() as usize;
        let (keys, values) = layer_cell.split_at_mut(layout.plane_bytes());
        match layout.dtype() {
            KvDtype::F32 => self.run(WriteKv::<F32> {
                k,
                v,
                keys,
                values,
                block_size,
                offset,
                element: PhantomData,
            }),
            KvDtype::F16 => self.run(WriteKv::<F16> {
                k,
                v,
                keys,
                values,
                block_size,
                offset,
                element: PhantomData,
            }),
        }
    }
}

struct WriteKv<'a, E> {
    k: &'a [f32],
    v: &'a [f32],
    keys: &'a mut [u8],
    values: &'a mut [u8],
    block_size: usize,
    offset: usize,
    element: PhantomData<E>,
}

impl<E: Element> Kernel for WriteKv<'_, E> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let mut finite = true;
        let mut encoded = [0; 4 * LANES];
        for (panel, k) in vectors(self.k).iter().enumerate() {
            finite &= E::store(s, s.load(k), &mut encoded, 0);
            for (lane, k) in encoded.chunks_exact(E::BYTES).take(LANES).enumerate() {
                let at = (panel * LANES + lane) * self.block_size + self.offset;
                self.keys[at * E::BYTES..][..E::BYTES].copy_from_slice(k);
            }
        }
        for (panel, v) in vectors(self.v).iter().enumerate() {
            let at = self.offset * self.v.len() + panel * LANES;
            finite &= E::store(s, s.load(v), self.values, at * E::BYTES);
        }
        finite
    }
}
