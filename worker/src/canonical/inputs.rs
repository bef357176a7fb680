//! What products take: activations in the forms that the matrices want.

use super::products;
use crate::{
    arith::{ActivationsRef, Int8Rows, Kernels, LANES, PackedMatrix, PanelSource},
    threads::ThreadTeam,
};

/// Where inputs are made; kept from step to step.
#[derive(Debug, Default)]
pub(super) struct InputBuffers {
    cols: usize,
    tokens: usize,
    /// Grows, never shrinks.
    panels: Vec<f32>,
    /// Of `panels` those of the inputs; 0 where no matrix wants them.
    panels_len: usize,
    int8: Int8Rows,
}

impl InputBuffers {
    /// Makes from a source's panels what `readers` want.
    ///
    /// poison: of each token; see [`Kernels::quantize`]
    pub fn make<'a>(
        &mut self,
        team: &mut ThreadTeam,
        kernels: &Kernels,
        source: impl PanelSource,
        readers: impl Iterator<Item = &'a PackedMatrix>,
        poison: &mut [bool],
    ) {
        (self.cols, self.tokens) = (source.num_panels() * LANES, source.tokens());
        let (mut some_want_int8, mut some_want_f32) = (false, false);
        for reader in readers {
            some_want_int8 |= reader.wants_int8();
            some_want_f32 |= !reader.wants_int8();
        }
        if some_want_int8 {
            products::quantize(team, kernels, source, &mut self.int8, poison);
        }
        self.panels_len = if some_want_f32 { self.cols * self.tokens } else { 0 };
        if some_want_f32 {
            let panels = products::room(&mut self.panels, self.panels_len);
            products::store(team, kernels, source, panels);
        }
    }

    pub fn get(&self) -> Inputs<'_> {
        Inputs {
            panels: &self.panels[..self.panels_len],
            int8: &self.int8,
            cols: self.cols,
            tokens: self.tokens,
        }
    }
}

/// Activations in both forms; a matrix takes the one it wants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a> {
    panels: &'a [f32],
    int8: &'a Int8Rows,
    pub cols: usize,
    pub tokens: usize,
}

impl<'a> Inputs<'a> {
    pub fn for_matrix(&self, matrix: &PackedMatrix) -> ActivationsRef<'a> {
        if matrix.wants_int8() {
            ActivationsRef::Int8(self.int8)
        } else {
            ActivationsRef::F32 {
                panels: self.panels,
                cols: self.cols,
                tokens: self.tokens,
            }
        }
    }
}
