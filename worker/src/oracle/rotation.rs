//! Rotary position embedding over interleaved pairs (2i, 2i + 1) of a head's first dimensions.

use candle_core::{Device, Result, Tensor};

/// Cosines and sines of a step's positions. Both: [tokens, 1, pairs, 1]
pub(super) struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    /// Pair i of position p turns by p * theta^(-2i / dim), computed in f64.
    pub(super) fn new(positions: impl Iterator<Item = u32>, theta: f64, dim: usize, device: &Device) -> Result<Self> {
        let pairs = dim / 2;
        let frequency = |pair: usize| theta.powf(-2.0 * pair as f64 / dim as f64);
        let angles: Vec<f64> = positions
            .flat_map(|position| (0..pairs).map(move |pair| f64::from(position) * frequency(pair)))
            .collect();
        let table = |of: fn(f64) -> f64| {
            let values: Vec<f32> = angles.iter().map(|angle| of(*angle) as f32).collect();
            Tensor::from_vec(values, (angles.len() / pairs, 1, pairs, 1), device)
        };
        Ok(Self {
            cos: table(f64::cos)?,
            sin: table(f64::sin)?,
        })
    }

    /// x: [tokens, heads, head_dim]; dimensions beyond the rotated ones stay.
    pub(super) fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, heads, head_dim) = x.dims3()?;
        let pairs = self.cos.dim(2)?;
        let turned = x.narrow(2, 0, 2 * pairs)?.reshape((tokens, heads, pairs, 2))?;
        let (even, odd) = (turned.narrow(3, 0, 1)?, turned.narrow(3, 1, 1)?);
        let turned_even = (even.broadcast_mul(&self.cos)? - odd.broadcast_mul(&self.sin)?)?;
        let turned_odd = (even.broadcast_mul(&self.sin)? + odd.broadcast_mul(&self.cos)?)?;
        let turned = Tensor::cat(&[turned_even, turned_odd], 3)?.reshape((tokens, heads, 2 * pairs))?;
        if head_dim == 2 * pairs {
            return Ok(turned);
        }
        Tensor::cat(&[turned, x.narrow(2, 2 * pairs, head_dim - 2 * pairs)?], 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_turn_by_their_angle_and_the_rest_stays() {
        let rotation = Rotation::new([3, 0].into_iter(), 100.0, 4, &Device::Cpu).unwrap();
        let x = Tensor::new(
            &[[[1.0f32, 0.0, 0.0, 2.0, 5.0]], [[1.0, 2.0, 3.0, 4.0, 5.0]]],
            &Device::Cpu,
        )
        .unwrap();
        let turned = rotation
            .rotate(&x)
            .unwrap()
            .squeeze(1)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap();
        let (fast, slow) = (3.0f32, 0.3f32);
        let expected = [fast.cos(), fast.sin(), -2.0 * slow.sin(), 2.0 * slow.cos(), 5.0];
        for (found, expected) in turned[0].iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{:?}", turned[0]);
        }
        assert_eq!(turned[1], [1.0, 2.0, 3.0, 4.0, 5.0]);
    }
}
