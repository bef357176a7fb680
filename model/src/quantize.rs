//! Weights made smaller at load.

use half::f16;

use crate::WeightType;

/// Appends the stored form of a row. Panics unless `weight_type` is one that weights are converted to at load, F32 or
/// Q8_0, and the values fill its blocks.
pub fn quantize(weight_type: WeightType, values: &[f32], stored: &mut Vec<u8>) {
    match weight_type {
        WeightType::F32 => stored.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        WeightType::Q8_0 => {
            let (blocks, rest) = values.as_chunks::<32>();
            assert!(rest.is_empty(), "{} values are not whole blocks", values.len());
            blocks.iter().for_each(|block| quantize_q8_0(block, stored));
        }
        other => panic!("no weights are converted to {other}"),
    }
}

/// As ggml does (`quantize_row_q8_0_ref`): the scale is rounded to f16 only after it was used.
fn quantize_q8_0(values: &[f32; 32], stored: &mut Vec<u8>) {
    let amax = values.iter().fold(0.0f32, |amax, value| amax.max(value.abs()));
    let d = amax / 127.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    stored.extend(f16::from_f32(d).to_le_bytes());
    stored.extend(values.iter().map(|value| (value * inverse).round() as i8 as u8));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dequantize;

    #[test]
    fn quantized_weights_come_back_within_half_a_step() {
        let values: Vec<f32> = (0..64).map(|i| ((i * 37 % 64) as f32 - 30.0) * 0.013).collect();
        let mut stored = Vec::new();
        quantize(WeightType::Q8_0, &values, &mut stored);
        let mut back = vec![0.0; 64];
        dequantize(WeightType::Q8_0, &stored, &mut back);
        for (value, back) in values.iter().zip(&back) {
            assert!((value - back).abs() <= 0.0018, "{value} {back}");
        }
        assert_eq!(stored[2..34].iter().map(|q| *q as i8).max(), Some(127));
        stored.clear();
        quantize(WeightType::Q8_0, &[0.0; 32], &mut stored);
        assert_eq!(stored, [0; 34]);
    }
}
