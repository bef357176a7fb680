//! Models of every architecture and weight type, written by the Python packages that others use, against the logits that
//! transformers computes from the same weights (`reference/models.py`).

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::Arc};

use kvasir_kv::{KvDtype, TokenId};
use kvasir_model::{BackendKind, Checkpoint, RotatedPairs, WeightMode, WeightType};
use kvasir_tests::{
    rank_group::GroupOptions,
    reference_models::{expected, names, path},
    whole_logits::whole_logits,
};

/// The logits after each of some positions of one sequence.
fn logits_at(checkpoint: &Arc<Checkpoint>, backend: BackendKind, ranks: usize, positions: &[usize]) -> Vec<Vec<f32>> {
    let options = GroupOptions {
        ranks,
        backend,
        kv_dtype: KvDtype::F32,
        weight_mode: WeightMode::F32,
        block_size: 16,
        ..GroupOptions::default()
    };
    let tokens: Vec<TokenId> = expected().tokens.iter().copied().map(TokenId).collect();
    let ends = positions.iter().map(|position| position + 1);
    let starts = std::iter::once(0).chain(ends.clone());
    let steps: Vec<_> = starts.zip(ends).map(|(start, end)| vec![(0, end - start)]).collect();
    let rows = whole_logits(checkpoint, &options, &[tokens], &steps);
    rows.into_iter()
        .map(|row| {
            assert!(!row.poisoned);
            row.logits
        })
        .collect()
}

#[test]
fn both_backends_compute_the_logits_of_transformers() {
    let mut largest_of: BTreeMap<String, f32> = BTreeMap::new();
    for (name, rows) in &expected().logits {
        let checkpoint = Arc::new(Checkpoint::open(path(name)).unwrap_or_else(|error| panic!("{name}: {error}")));
        let positions: Vec<usize> = rows.keys().copied().collect();
        for (backend, ranks) in [
            (BackendKind::Canonical, 1),
            (BackendKind::Canonical, 3),
            (BackendKind::Candle, 2),
        ] {
            let computed = logits_at(&checkpoint, backend, ranks, &positions);
            let mut largest = 0.0f32;
            for (computed, row) in computed.iter().zip(rows.values()) {
                assert_eq!(computed.len(), row.len(), "{name}");
                let spread = row.iter().fold(0.0f32, |max, logit| max.max(logit.abs()));
                assert!(spread > 1.0, "{name}: logits that say something");
                for (computed, logit) in computed.iter().zip(row) {
                    largest = largest.max((computed - logit).abs());
                }
            }
            assert!(largest < 1e-3, "{name}, {backend} on {ranks} ranks: {largest:e}");
            let so_far = largest_of.entry(backend.to_string()).or_default();
            *so_far = so_far.max(largest);
        }
    }
    println!("largest differences of a logit: {largest_of:?}");
}

#[test]
fn every_architecture_has_a_file_of_every_weight_type_and_a_folder() {
    for architecture in ["llama", "qwen2", "qwen3"] {
        for weight_type in WeightType::ALL {
            let name = format!("{architecture}-{weight_type}.gguf");
            let checkpoint = Checkpoint::open(path(&name)).unwrap();
            assert_eq!(checkpoint.spec().architecture, architecture);
            let wq = checkpoint.tensor(&checkpoint.tensors().layers[0].wq).unwrap();
            assert_eq!(wq.weight_type, weight_type, "{name}");
        }
        let of_it = |name: &&String| !name.ends_with(".gguf") && name.starts_with(architecture);
        assert!(names().iter().any(|name| of_it(&name)), "{architecture}");
    }
}

#[test]
fn a_folder_says_the_same_as_a_file() {
    let open = |name: &str| Checkpoint::open(path(name)).unwrap();
    let (file, folder) = (open("llama3-rope-F16.gguf"), open("llama3-rope-f16"));
    assert_eq!(file.spec().rope_pairs, RotatedPairs::Adjacent);
    assert_eq!(folder.spec().rope_pairs, RotatedPairs::Halves);
    assert_eq!(file.spec().rope_divisors, folder.spec().rope_divisors);
    assert_eq!(file.spec().rope_divisors.len(), 16);
    let linear = open("llama-linear-rope-f16");
    assert_eq!(linear.spec().rope_divisors, [4.0; 16]);
    let window = open("mistral-bf16-window");
    assert_eq!(
        (window.spec().architecture.as_str(), window.spec().context_len),
        ("llama", 128)
    );
    let biases = open("llama-f16-biases");
    assert!(
        biases
            .tensors()
            .layers
            .iter()
            .all(|layer| layer.biases.o.is_some() && layer.biases.down.is_some())
    );
    assert!(open("qwen3-bf16").spec().tied_head && !open("llama-bf16-sharded").spec().tied_head);
}
