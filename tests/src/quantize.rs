//! Weights as files store them: plain quantizers, one for each type.
//!
//! They search for no best scale, as converters do: a test wants valid blocks near the values, the same on every machine.

use half::{bf16, f16};
use kvasir_model::WeightType;

/// The stored form of weights. Panics if `values` do not fill the type's blocks.
pub fn quantize(weight_type: WeightType, values: &[f32]) -> Vec<u8> {
    assert!(
        values.len().is_multiple_of(weight_type.block_len()),
        "{weight_type} of {} weights",
        values.len()
    );
    let blocks = values.chunks(weight_type.block_len());
    match weight_type {
        WeightType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        WeightType::F16 => values
            .iter()
            .flat_map(|value| f16::from_f32(*value).to_le_bytes())
            .collect(),
        WeightType::BF16 => values
            .iter()
            .flat_map(|value| bf16::from_f32(*value).to_le_bytes())
            .collect(),
        WeightType::Q8_0 => blocks.flat_map(q8_0).collect(),
        WeightType::Q4_0 => blocks.flat_map(|values| symmetric(values, 8)).collect(),
        WeightType::Q4_1 => blocks.flat_map(|values| with_minimum(values, 15)).collect(),
        WeightType::Q5_0 => blocks.flat_map(|values| symmetric(values, 16)).collect(),
        WeightType::Q5_1 => blocks.flat_map(|values| with_minimum(values, 31)).collect(),
        WeightType::Q4K => blocks.flat_map(|values| k_with_minimum(values, 15)).collect(),
        WeightType::Q5K => blocks.flat_map(|values| k_with_minimum(values, 31)).collect(),
        WeightType::Q6K => blocks.flat_map(q6_k).collect(),
    }
}

fn inverse(d: f16) -> f32 {
    if d.to_f32() == 0.0 { 0.0 } else { 1.0 / d.to_f32() }
}

fn q8_0(values: &[f32]) -> Vec<u8> {
    let d = f16::from_f32(amax(values) / 127.0);
    let quant = |value: &f32| (value * inverse(d)).round().clamp(-127.0, 127.0) as i8 as u8;
    d.to_le_bytes().into_iter().chain(values.iter().map(quant)).collect()
}

/// Q4_0 and Q5_0: quants of 0 to `2 * zero - 1` around `zero`.
fn symmetric(values: &[f32], zero: u8) -> Vec<u8> {
    let d = f16::from_f32(amax(values) / f32::from(zero - 1));
    let quant = |value: f32| ((value * inverse(d)).round() + f32::from(zero)).clamp(0.0, f32::from(2 * zero - 1)) as u8;
    let quants: Vec<u8> = values.iter().map(|value| quant(*value)).collect();
    [&d.to_le_bytes()[..], &packed(&quants, zero == 16)].concat()
}

/// Q4_1 and Q5_1: quants of 0 to `most`.
fn with_minimum(values: &[f32], most: u8) -> Vec<u8> {
    let (min, max) = bounds(values);
    let (d, m) = (f16::from_f32((max - min) / f32::from(most)), f16::from_f32(min));
    let quant = |value: f32| ((value - m.to_f32()) * inverse(d)).round().clamp(0.0, f32::from(most)) as u8;
    let quants: Vec<u8> = values.iter().map(|value| quant(*value)).collect();
    [&d.to_le_bytes()[..], &m.to_le_bytes(), &packed(&quants, most == 31)].concat()
}

/// The fifth bits, if there are any, then nibbles: byte j has columns j and j + 16.
fn packed(quants: &[u8], five: bool) -> Vec<u8> {
    let fifth = quants
        .iter()
        .rev()
        .fold(0u32, |bits, quant| bits << 1 | u32::from(quant >> 4));
    let mut bytes = if five { fifth.to_le_bytes().to_vec() } else { Vec::new() };
    bytes.extend((0..16).map(|j| quants[j] & 15 | quants[j + 16] << 4));
    bytes
}

/// Q4_K and Q5_K: quants of 0 to `most`, scales and minima of 6 bits.
fn k_with_minimum(values: &[f32], most: u8) -> Vec<u8> {
    let sub_blocks: Vec<(f32, f32)> = values.chunks(32).map(bounds).collect();
    let scale_of = |(min, max): &(f32, f32)| (max - min.min(0.0)) / f32::from(most);
    let d = f16::from_f32(sub_blocks.iter().map(scale_of).fold(0.0, f32::max) / 63.0);
    let dmin = f16::from_f32(sub_blocks.iter().map(|(min, _)| -min).fold(0.0, f32::max) / 63.0);
    let six_bits = |value: f32, unit: f16| (value * inverse(unit)).round().clamp(0.0, 63.0) as u8;
    let scales: Vec<u8> = sub_blocks.iter().map(|bounds| six_bits(scale_of(bounds), d)).collect();
    let minima: Vec<u8> = sub_blocks.iter().map(|(min, _)| six_bits(-min, dmin)).collect();
    let quant = |(i, value): (usize, &f32)| {
        let (scale, min) = (
            d.to_f32() * f32::from(scales[i / 32]),
            dmin.to_f32() * f32::from(minima[i / 32]),
        );
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        ((value + min) * inverse).round().clamp(0.0, f32::from(most)) as u8
    };
    let quants: Vec<u8> = values.iter().enumerate().map(quant).collect();
    let mut block = [d.to_le_bytes(), dmin.to_le_bytes()].concat();
    block.extend(packed_scales(&scales, &minima));
    if most == 31 {
        block.extend((0..32).map(|i| (0..8).fold(0, |bits, index| bits | (quants[32 * index + i] >> 4) << index)));
    }
    for pair in quants.chunks(64) {
        block.extend((0..32).map(|i| pair[i] & 15 | pair[i + 32] << 4));
    }
    block
}

/// Eight scales and eight minima of 6 bits in 12 bytes: of the last four, the high two bits fill up the first eight.
fn packed_scales(scales: &[u8], minima: &[u8]) -> [u8; 12] {
    std::array::from_fn(|byte| match byte {
        0..4 => scales[byte] | scales[byte + 4] >> 4 << 6,
        4..8 => minima[byte - 4] | minima[byte] >> 4 << 6,
        _ => scales[byte - 4] & 15 | minima[byte - 4] << 4,
    })
}

fn q6_k(values: &[f32]) -> Vec<u8> {
    let largest: Vec<f32> = values.chunks(16).map(|values| amax(values) / 31.0).collect();
    let d = f16::from_f32(largest.iter().copied().fold(0.0, f32::max) / 127.0);
    let scales: Vec<i8> = largest
        .iter()
        .map(|scale| (scale * inverse(d)).round().clamp(-127.0, 127.0) as i8)
        .collect();
    let quant = |(i, value): (usize, &f32)| {
        let scale = d.to_f32() * f32::from(scales[i / 16]);
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        ((value * inverse).round().clamp(-32.0, 31.0) + 32.0) as u8
    };
    let quants: Vec<u8> = values.iter().enumerate().map(quant).collect();
    let mut block = Vec::with_capacity(210);
    for half in quants.chunks(128) {
        block.extend((0..64).map(|i| half[i] & 15 | half[i + 64] << 4));
    }
    for half in quants.chunks(128) {
        block.extend(
            (0..32).map(|i| (0..4).fold(0, |bits, quarter| bits | half[32 * quarter + i] >> 4 << (2 * quarter))),
        );
    }
    block.extend(scales.iter().map(|scale| *scale as u8));
    block.extend(d.to_le_bytes());
    block
}

fn amax(values: &[f32]) -> f32 {
    values.iter().fold(0.0f32, |amax, value| amax.max(value.abs()))
}

fn bounds(values: &[f32]) -> (f32, f32) {
    let min = values.iter().copied().fold(f32::INFINITY, f32::min);
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (min, max)
}
