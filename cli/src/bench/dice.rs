//! The one source of chance of a benchmark: equal seeds and streams give equal draws, whatever else is drawn meanwhile.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};

#[derive(Debug)]
pub struct Dice(ChaCha8Rng);

impl Dice {
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut chance = ChaCha8Rng::seed_from_u64(seed);
        chance.set_stream(stream);
        Self(chance)
    }

    /// Uniform in `low..=high`; the bias of the remainder does not matter here.
    pub fn between(&mut self, low: u32, high: u32) -> u32 {
        let values = u64::from(high - low) + 1;
        low + (self.0.next_u64() % values) as u32
    }

    /// Uniform in [0, 1).
    pub fn fraction(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}
