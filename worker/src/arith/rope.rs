//! Rotary position embedding over interleaved pairs (2i, 2i + 1).

use super::{
    Kernels, LANES,
    panels::{vectors, vectors_mut},
    reference,
    simd::{Kernel, Simd},
};

/// The usual frequencies, `theta^(-2i / dim)` for each pair, divided by its divisor. divisors: one for each pair, or none.
pub fn rope_frequencies(theta: f64, dim: usize, divisors: &[f32]) -> Vec<f64> {
    assert!(divisors.is_empty() || divisors.len() == dim / 2);
    let divisor = |pair: usize| divisors.get(pair).map_or(1.0, |divisor| f64::from(*divisor));
    (0..dim / 2)
        .map(|pair| reference::rope_frequency(theta, dim, pair) / divisor(pair))
        .collect()
}

/// Cosines and sines of a step's positions; computed once a step, used by every head of every layer.
#[derive(Debug)]
pub struct RopeTable {
    frequencies: Vec<f64>,
    /// `[tokens][pairs][2]`: cosine, sine
    cos_sin: Vec<f32>,
}

impl RopeTable {
    /// frequencies: one for each rotated pair of a head, in order; a multiple of 8.
    pub fn new(frequencies: Vec<f64>) -> Self {
        assert!(
            frequencies.len().is_multiple_of(LANES / 2),
            "{} pairs",
            frequencies.len()
        );
        Self {
            frequencies,
            cos_sin: Vec::new(),
        }
    }

    /// Columns of a head that are rotated, from the first.
    pub fn rope_dim(&self) -> usize {
        2 * self.frequencies.len()
    }

    pub fn tokens(&self) -> usize {
        self.cos_sin.len().checked_div(self.rope_dim()).unwrap_or(0)
    }

    /// Replaces the table's tokens by those at the given absolute positions.
    pub fn set_positions(&mut self, positions: impl IntoIterator<Item = u32>) {
        self.cos_sin.clear();
        for position in positions {
            for frequency in &self.frequencies {
                let (cos, sin) = reference::rope_cos_sin(position, *frequency);
                self.cos_sin.extend([cos, sin]);
            }
        }
    }
}

impl Kernels {
    /// Rotates one head of all tokens of the step in place.
    ///
    /// head: `[head_dim / 16][tokens][16]`; the table holds these tokens and rotates at most head_dim columns.
    pub fn rope(&self, head: &mut [f32], table: &RopeTable, tokens: usize) {
        assert_eq!(table.cos_sin.len(), table.rope_dim() * tokens);
        assert!(head.len() >= table.cos_sin.len());
        self.run(Rope { head, table, tokens });
    }
}

struct Rope<'a> {
    head: &'a mut [f32],
    table: &'a RopeTable,
    tokens: usize,
}

impl Kernel for Rope<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let panels = self.table.rope_dim() / LANES;
        let cos_sin = vectors(&self.table.cos_sin);
        for (i, x) in vectors_mut(self.head).iter_mut().take(panels * self.tokens).enumerate() {
            let (panel, token) = (i / self.tokens, i % self.tokens);
            s.store(s.rotate_pairs(s.load(x), s.load(&cos_sin[token * panels + panel])), x);
        }
    }
}
