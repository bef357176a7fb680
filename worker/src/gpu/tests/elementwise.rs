//! Norm and residual, int8 activations, the gate.

use half::bf16;

use super::{DeviceInt8, Host, random};
use crate::{
    arith::{
        reference::{self, Int8SubBlock},
        tests::inputs::{Style, assert_same_bits},
    },
    gpu::{
        device::{DeviceBuffer as _, LaunchShape},
        kernel::{Kernel, QuantizeArgs, ResidualNormArgs, SiluGateArgs},
    },
};

/// What the definition makes of rows, and which are poisoned.
struct Quantized {
    quants: Vec<i8>,
    scales: Vec<f32>,
    scaled_sums: Vec<f32>,
    poison: Vec<u32>,
}

impl Quantized {
    fn of(rows: &[f32], cols: usize) -> Self {
        let (mut quants, mut scales, mut scaled_sums, mut poison) = (vec![], vec![], vec![], vec![]);
        for row in rows.chunks_exact(cols) {
            poison.push(0);
            for x in row.as_chunks().0 {
                let sub_block = reference::quantize(x);
                *poison.last_mut().unwrap() |= u32::from(sub_block.is_none());
                let sub_block = sub_block.unwrap_or(Int8SubBlock::ZERO);
                quants.extend(sub_block.quants);
                scales.push(sub_block.scale);
                scaled_sums.push(sub_block.scale * sub_block.sum as f32);
            }
        }
        Self {
            quants,
            scales,
            scaled_sums,
            poison,
        }
    }

    fn check(&self, host: &mut Host, int8: &DeviceInt8, poison: &[u32], context: &str) {
        assert_eq!(host.get::<i8>(&int8.quants), self.quants, "{context}");
        assert_same_bits(&host.get(&int8.scales), &self.scales, context);
        assert_same_bits(&host.get(&int8.scaled_sums), &self.scaled_sums, context);
        assert_eq!(poison, self.poison, "{context}");
    }
}

#[test]
fn activations_become_int8_as_defined() {
    let (mut host, mut random) = (Host::new(), random());
    for style in Style::ALL {
        for (cols, tokens) in [(32, 1), (96, 3), (576, 2), (1024, 1)] {
            let rows = random.floats(style, cols * tokens);
            let x = host.put(&rows);
            let int8 = DeviceInt8::room(&mut host, cols, tokens);
            let poison = host.put(&vec![0u32; tokens]);
            let args = QuantizeArgs {
                x: x.address(),
                int8: int8.rows(),
                poison: poison.address(),
                cols: cols as u32,
                ..QuantizeArgs::default()
            };
            let grid = [cols.div_ceil(256) as u32, tokens as u32, 1];
            host.run(Kernel::Quantize, LaunchShape::new(grid, 256), &args);
            let poison = host.get::<u32>(&poison);
            Quantized::of(&rows, cols).check(&mut host, &int8, &poison, &format!("{style:?} {cols}x{tokens}"));
        }
    }
}

#[test]
fn sub_blocks_below_the_least_amplitude_are_zeros() {
    let mut host = Host::new();
    let least = reference::QUANTIZE_AMAX_MIN;
    let amplitudes = [least, f32::from_bits(least.to_bits() - 1), f32::from_bits(1), 0.0];
    let rows: Vec<f32> = amplitudes.iter().flat_map(|amplitude| [*amplitude; 32]).collect();
    let (x, poison) = (host.put(&rows), host.put(&[0u32]));
    let int8 = DeviceInt8::room(&mut host, 128, 1);
    let args = QuantizeArgs {
        x: x.address(),
        int8: int8.rows(),
        poison: poison.address(),
        cols: 128,
        ..QuantizeArgs::default()
    };
    host.run(Kernel::Quantize, LaunchShape::new([1, 1, 1], 256), &args);
    assert_eq!(host.get::<f32>(&int8.scales), [least / 127.0, 0.0, 0.0, 0.0]);
    Quantized::of(&rows, 128).check(&mut host, &int8, &[0], "small amplitudes");
}

/// Values as bf16, where NaN equals NaN.
fn assert_same_halves(found: &[u16], expected: &[f32], context: &str) {
    let found: Vec<f32> = found.iter().map(|bits| bf16::from_bits(*bits).to_f32()).collect();
    let expected: Vec<f32> = expected.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
    assert_same_bits(&found, &expected, context);
}

/// Where a phase's sums come from.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Sums {
    None,
    Device,
    Sealed,
    Host,
}

#[test]
fn sums_go_into_the_residual_and_are_normalized_as_defined() {
    let (mut host, mut random) = (Host::new(), random());
    for style in Style::ALL {
        for sums_of in [Sums::None, Sums::Device, Sums::Sealed, Sums::Host] {
            for (cols, tokens, biased) in [(32, 1, false), (96, 3, true), (576, 2, true), (1056, 1, false)] {
                let context = format!("{style:?} {sums_of:?} {cols}x{tokens}");
                let mut x = random.floats(style, cols * tokens);
                let weight = random.floats(Style::Ordinary, cols);
                let bias = random.floats(style, if biased { cols } else { 0 });
                let mut sums: Vec<i64> = (0..cols * tokens)
                    .map(|_| random.next() as i64 >> random.below(50))
                    .collect();
                let counts: Vec<i64> = (0..tokens).map(|_| (random.below(2) as i64) << 30).collect();
                sums.extend(&counts);
                let reduced: Vec<f32> = sums.iter().map(|sum| reference::from_fixed(*sum)).collect();
                let was_poisoned: Vec<u32> = (0..tokens).map(|_| random.below(2) as u32).collect();

                let (on_device, on_host) = (
                    sums_of == Sums::Device || sums_of == Sums::Sealed,
                    sums_of == Sums::Host,
                );
                let buffers = [host.put(&x), host.put(&weight), host.put(&bias), host.put(&reduced)];
                let [d_x, d_weight, d_bias, d_reduced] = &buffers;
                let d_sums = host.put(&sums);
                let d_poison = host.put(&was_poisoned);
                let normed = host.room::<f32>(cols * tokens);
                let halves = host.room::<u16>(cols * tokens);
                let int8 = DeviceInt8::room(&mut host, cols, tokens);
                let args = ResidualNormArgs {
                    x: d_x.address(),
                    sums: if on_device { d_sums.address() } else { 0 },
                    reduced: if on_host { d_reduced.address() } else { 0 },
                    bias: if biased { d_bias.address() } else { 0 },
                    weight: d_weight.address(),
                    normed: normed.address(),
                    halves: halves.address(),
                    int8: int8.rows(),
                    poison: d_poison.address(),
                    cols: cols as u32,
                    eps: 1e-5,
                    sealed: u32::from(sums_of == Sums::Sealed),
                    padding: 0,
                };
                let shape = LaunchShape::new([tokens as u32, 1, 1], 256).shared((cols + 1) * 4);
                host.run(Kernel::ResidualNorm, shape, &args);

                for (at, x) in x.iter_mut().enumerate() {
                    if sums_of != Sums::None {
                        *x += reduced[at];
                    }
                    if biased {
                        *x += bias[at % cols];
                    }
                }
                assert_same_bits(&host.get(d_x), &x, &context);
                let rows = x.chunks_exact(cols);
                let expected: Vec<f32> = rows.flat_map(|row| reference::rms_norm(row, &weight, 1e-5)).collect();
                assert_same_bits(&host.get(&normed), &expected, &context);
                assert_same_halves(&host.get(&halves), &expected, &context);
                let mut quantized = Quantized::of(&expected, cols);
                for (token, poison) in quantized.poison.iter_mut().enumerate() {
                    *poison |= match sums_of {
                        Sums::None | Sums::Device => was_poisoned[token],
                        Sums::Sealed | Sums::Host => u32::from(counts[token] != 0),
                    };
                }
                let poison = host.get::<u32>(&d_poison);
                quantized.check(&mut host, &int8, &poison, &context);
                let left = host.get::<i64>(&d_sums);
                match sums_of {
                    Sums::None | Sums::Host => assert_eq!(left, sums),
                    Sums::Device => assert_eq!(left[..cols * tokens], vec![0; cols * tokens]),
                    Sums::Sealed => assert_eq!(left, vec![0; sums.len()]),
                }
            }
        }
    }
}

#[test]
fn the_gate_is_the_definitions() {
    let (mut host, mut random) = (Host::new(), random());
    for style in Style::ALL {
        for (cols, tokens, biased) in [(32, 1, false), (96, 3, true), (288, 2, true)] {
            let columns = random.floats(style, 2 * cols * tokens);
            let biases = random.floats(style, 2 * cols);
            let (d_columns, d_biases) = (host.put(&columns), host.put(&biases));
            let inner = host.room::<f32>(cols * tokens);
            let halves = host.room::<u16>(cols * tokens);
            let int8 = DeviceInt8::room(&mut host, cols, tokens);
            let poison = host.put(&vec![0u32; tokens]);
            let args = SiluGateArgs {
                columns: d_columns.address(),
                biases: if biased { d_biases.address() } else { 0 },
                inner: inner.address(),
                halves: halves.address(),
                int8: int8.rows(),
                poison: poison.address(),
                cols: cols as u32,
                padding: 0,
            };
            let grid = [cols.div_ceil(256) as u32, tokens as u32, 1];
            host.run(Kernel::SiluGate, LaunchShape::new(grid, 256), &args);
            let bias = |at: usize| if biased { biases[at] } else { 0.0 };
            let expected: Vec<f32> = (0..tokens * cols)
                .map(|at| {
                    let (row, c) = (&columns[at / cols * 2 * cols..], at % cols);
                    let (gate, up) = (row[c], row[cols + c]);
                    match biased {
                        true => reference::silu_mul(gate + bias(c), up + bias(cols + c)),
                        false => reference::silu_mul(gate, up),
                    }
                })
                .collect();
            let context = format!("{style:?} {cols}x{tokens}");
            assert_same_bits(&host.get(&inner), &expected, &context);
            assert_same_halves(&host.get(&halves), &expected, &context);
            let poison = host.get::<u32>(&poison);
            Quantized::of(&expected, cols).check(&mut host, &int8, &poison, &context);
        }
    }
}
