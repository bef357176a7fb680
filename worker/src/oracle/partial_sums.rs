//! The row-parallel sums of a phase: units' partials on a fixed grid, joined over ranks by the exact reduce.
//!
//! A partial that is not finite, or too large for the grid, poisons its token and adds nothing. Poison travels as one
//! more element per token at the end of each reduce, and stays for the rest of the step.

use std::{ops::Range, time::Instant};

use candle_core::{Device, Tensor};

use crate::{backend::BackendError, collective::Collective};

/// Partials are rounded to multiples of 2^-30.
const GRID_ONE: f64 = (1u64 << 30) as f64;
/// Partials of this size or more do not fit.
const PARTIAL_MAX: f32 = (1u32 << 20) as f32;

pub(super) struct PartialSums {
    hidden: usize,
    /// [tokens, hidden], then [tokens] of poison
    sums: Vec<i64>,
    poison: Vec<bool>,
    reduce_us: u32,
}

impl PartialSums {
    pub(super) fn new(tokens: usize, hidden: usize) -> Self {
        Self {
            hidden,
            sums: vec![0; tokens * hidden + tokens],
            poison: vec![false; tokens],
            reduce_us: 0,
        }
    }

    /// partial: [tokens, hidden], one unit's
    pub(super) fn add(&mut self, partial: &Tensor) -> candle_core::Result<()> {
        let partial = partial.to_vec2::<f32>()?;
        for (row, values) in partial.iter().enumerate() {
            self.add_row(row, values);
        }
        Ok(())
    }

    /// values: [hidden]
    pub(super) fn add_row(&mut self, row: usize, values: &[f32]) {
        let sums = &mut self.sums[row * self.hidden..][..self.hidden];
        for (sum, value) in sums.iter_mut().zip(values) {
            match on_grid(*value) {
                Some(value) => *sum = sum.wrapping_add(value),
                None => self.poison[row] = true,
            }
        }
    }

    /// Sums over ranks, as [tokens, hidden], and begins anew. Every rank learns which tokens are poisoned.
    pub(super) fn reduce(&mut self, collective: &mut dyn Collective, device: &Device) -> Result<Tensor, BackendError> {
        let tokens = self.poison.len();
        for (sum, poison) in self.sums[tokens * self.hidden..].iter_mut().zip(&self.poison) {
            *sum = if *poison { GRID_ONE as i64 } else { 0 };
        }
        let mut reduced = vec![0.0; self.sums.len()];
        let begun = Instant::now();
        collective.all_reduce(&self.sums, &mut reduced)?;
        self.reduce_us = self.reduce_us.saturating_add(begun.elapsed().as_micros() as u32);
        self.sums.fill(0);
        let poison = reduced.split_off(tokens * self.hidden);
        self.poison = poison.iter().map(|count| *count != 0.0).collect();
        Ok(Tensor::from_vec(reduced, (tokens, self.hidden), device)?)
    }

    /// Whether any of these tokens is, as of the last reduce.
    pub(super) fn is_poisoned(&self, rows: &Range<usize>) -> bool {
        self.poison[rows.clone()].contains(&true)
    }

    /// Microseconds inside the collective so far.
    pub(super) fn reduce_us(&self) -> u32 {
        self.reduce_us
    }
}

fn on_grid(value: f32) -> Option<i64> {
    (value.is_finite() && value.abs() < PARTIAL_MAX).then(|| (f64::from(value) * GRID_ONE).round_ties_even() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_do_not_fit_poison_their_token_alone() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, PARTIAL_MAX, -PARTIAL_MAX] {
            let mut sums = PartialSums::new(3, 2);
            let partial = Tensor::new(&[[1.0f32, 2.0], [3.0, bad], [4.0, 5.0]], &Device::Cpu).unwrap();
            sums.add(&partial).unwrap();
            assert_eq!(sums.poison, [false, true, false], "{bad}");
            assert_eq!(sums.sums[3], 0, "{bad}");
        }
    }

    #[test]
    fn partials_are_rounded_half_to_even() {
        let unit = 2f32.powi(-30);
        let rounded = [0.25, 0.5, 0.75, 1.5, 2.5, -0.5, -1.5].map(|units| on_grid(units * unit));
        assert_eq!(rounded, [0, 0, 1, 2, 2, 0, -2].map(Some));
    }
}
