//! Rotary position embedding over pairs of a head's first dimensions, as the checkpoint pairs them.

use candle_core::{Device, Result, Tensor};
use kvasir_model::RotatedPairs;

/// Cosines and sines of a step's positions. Both: [tokens, 1, pairs, 1]
pub(super) struct Rotation {
    pairs: RotatedPairs,
    cos: Tensor,
    sin: Tensor,
}

/// The constants of a model's rotation.
#[derive(Clone, Debug)]
pub(super) struct RotationSpec {
    pub theta: f64,
    /// Dimensions that are rotated.
    pub dim: usize,
    pub pairs: RotatedPairs,
    /// What each pair's frequency is divided by; empty where it is not.
    pub divisors: Vec<f32>,
}

impl Rotation {
    /// Pair i of position p turns by p * theta^(-2i / dim) / divisor i, computed in f64.
    pub(super) fn new(positions: impl Iterator<Item = u32>, spec: &RotationSpec, device: &Device) -> Result<Self> {
        let pairs = spec.dim / 2;
        let divisor = |pair: usize| spec.divisors.get(pair).map_or(1.0, |divisor| f64::from(*divisor));
        let frequency = |pair: usize| spec.theta.powf(-2.0 * pair as f64 / spec.dim as f64) / divisor(pair);
        let angles: Vec<f64> = positions
            .flat_map(|position| (0..pairs).map(move |pair| f64::from(position) * frequency(pair)))
            .collect();
        let table = |of: fn(f64) -> f64| {
            let values: Vec<f32> = angles.iter().map(|angle| of(*angle) as f32).collect();
            Tensor::from_vec(values, (angles.len() / pairs, 1, pairs, 1), device)
        };
        Ok(Self {
            pairs: spec.pairs,
            cos: table(f64::cos)?,
            sin: table(f64::sin)?,
        })
    }

    /// x: [tokens, heads, head_dim]; dimensions beyond the rotated ones stay. Pairs come out side by side, as cells hold them:
    /// q8_0 rounds dimensions together that lie together.
    pub(super) fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, heads, head_dim) = x.dims3()?;
        let pairs = self.cos.dim(2)?;
        let rotated = x.narrow(2, 0, 2 * pairs)?;
        let (first, second) = match self.pairs {
            RotatedPairs::Adjacent => {
                let side_by_side = rotated.reshape((tokens, heads, pairs, 2))?;
                (side_by_side.narrow(3, 0, 1)?, side_by_side.narrow(3, 1, 1)?)
            }
            RotatedPairs::Halves => {
                let half = |start| rotated.narrow(2, start, pairs)?.unsqueeze(3);
                (half(0)?, half(pairs)?)
            }
        };
        let turned_first = (first.broadcast_mul(&self.cos)? - second.broadcast_mul(&self.sin)?)?;
        let turned_second = (first.broadcast_mul(&self.sin)? + second.broadcast_mul(&self.cos)?)?;
        let turned = Tensor::cat(&[turned_first, turned_second], 3)?.reshape((tokens, heads, 2 * pairs))?;
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
        let spec = RotationSpec {
            theta: 100.0,
            dim: 4,
            pairs: RotatedPairs::Adjacent,
            divisors: Vec::new(),
        };
        let rotation = Rotation::new([3, 0].into_iter(), &spec, &Device::Cpu).unwrap();
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
