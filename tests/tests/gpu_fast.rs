//! The fast mode for GPUs, run on the host: its logits against those of the candle backend, which computes in f32.
//!
//! bf16 keeps eight bits of each activation, so logits differ in the third digit; what is asked is that they differ by little of
//! their spread, on every architecture, alone and on three ranks, in one step and in many.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use kvasir_kv::{KvDtype, TokenId};
use kvasir_model::{BackendKind, Checkpoint, WeightMode, WeightType};
use kvasir_tests::{
    rank_group::GroupOptions,
    reference_models::{expected, path},
    tiny_model::TinyModel,
    whole_logits::whole_logits,
};

/// Of the logits' spread.
const TOLERANCE: f32 = 0.02;

fn logits(checkpoint: &Arc<Checkpoint>, backend: BackendKind, ranks: usize, cuts: &[usize]) -> Vec<Vec<f32>> {
    let options = GroupOptions {
        ranks,
        backend,
        kv_dtype: KvDtype::F16,
        weight_mode: WeightMode::File,
        block_size: 16,
        ..GroupOptions::default()
    };
    let vocab = checkpoint.spec().vocab_size;
    let tokens: Vec<TokenId> = expected().tokens.iter().map(|token| TokenId(token % vocab)).collect();
    let num_tokens = tokens.len();
    let ends = cuts.iter().copied().chain([num_tokens]);
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    let steps: Vec<_> = starts.zip(ends).map(|(start, end)| vec![(0, end - start)]).collect();
    let rows = whole_logits(checkpoint, &options, &[tokens], &steps);
    assert!(rows.iter().all(|row| !row.poisoned));
    rows.into_iter().map(|row| row.logits).collect()
}

/// The largest difference as a part of the spread.
fn largest_difference(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let rows = found.iter().zip(expected).map(|(found, expected)| {
        let largest = expected.iter().fold(f32::MIN, |max, logit| max.max(*logit));
        let smallest = expected.iter().fold(f32::MAX, |min, logit| min.min(*logit));
        let differences = found
            .iter()
            .zip(expected)
            .map(|(found, expected)| (found - expected).abs());
        differences.fold(0.0, f32::max) / (largest - smallest)
    });
    rows.fold(0.0, f32::max)
}

#[test]
fn the_fast_modes_logits_are_candles_within_the_tolerance() {
    for name in [
        "llama-BF16.gguf",
        "qwen2-BF16.gguf",
        "qwen3-BF16.gguf",
        "llama-Q8_0.gguf",
        "llama-f16-biases",
    ] {
        let checkpoint = Arc::new(Checkpoint::open(path(name)).unwrap());
        for (ranks, cuts) in [(1, vec![]), (1, vec![1, 2, 9, 12]), (3, vec![7])] {
            let expected = logits(&checkpoint, BackendKind::Candle, 1, &cuts);
            let difference = largest_difference(&logits(&checkpoint, BackendKind::CudaFast, ranks, &cuts), &expected);
            println!("{name} on {ranks} ranks in {} steps: {difference:.4}", cuts.len() + 1);
            assert!(difference < TOLERANCE, "{name} on {ranks} ranks: {difference}");
        }
    }
}

/// Heads that tensor cores take, and some that they do not.
#[test]
fn every_shape_of_heads_is_within_the_tolerance() {
    let folder = tempfile::tempdir().unwrap();
    for (index, (q, kv, dim)) in [
        (8, 2, 64),
        (4, 4, 128),
        (16, 1, 64),
        (6, 2, 128),
        (6, 2, 96),
        (32, 1, 64),
    ]
    .into_iter()
    .enumerate()
    {
        let file = folder.path().join(format!("{index}.gguf"));
        let model = TinyModel {
            weight_type: WeightType::BF16,
            embedding_type: WeightType::BF16,
            ..TinyModel::with_heads(q, kv, dim)
        };
        model.write(&file).unwrap();
        let checkpoint = Arc::new(Checkpoint::open(&file).unwrap());
        for cuts in [vec![], vec![1, 2, 3, 20]] {
            let expected = logits(&checkpoint, BackendKind::Candle, 1, &cuts);
            let difference = largest_difference(&logits(&checkpoint, BackendKind::CudaFast, 1, &cuts), &expected);
            println!(
                "{q} heads on {kv} of {dim} in {} steps: {difference:.4}",
                cuts.len() + 1
            );
            assert!(difference < TOLERANCE, "{q} heads on {kv} of {dim}: {difference}");
        }
    }
}
