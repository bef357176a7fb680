//! The canonical backend against an independent implementation, and that one against another engine's answers.

use std::{path::Path, sync::Arc};

use kvasir_kv::{
    CellLayout, Epoch, EpochSpec, GroupId, KvDtype, Rank, RankCapacity, Sampling, ShardPlan, TokenId, Transport,
    UnitKind,
};
use kvasir_model::{BackendKind, Checkpoint, WeightMode, WeightType};
use kvasir_tests::{
    golden::{Golden, read_goldens},
    rank_group::{Generation, GroupOptions, RankGroup},
    tiny_model::TinyModel,
    whole_logits::{WholeRow, whole_logits},
};
use kvasir_worker::{backend::Backend, oracle::Oracle};

fn real_model() -> Arc<Checkpoint> {
    Arc::new(Checkpoint::open(kvasir_tests::default_model()).expect("the default model opens"))
}

fn all_in_f32(backend: BackendKind, ranks: usize) -> GroupOptions {
    GroupOptions {
        ranks,
        backend,
        kv_dtype: KvDtype::F32,
        weight_mode: WeightMode::F32,
        ..GroupOptions::default()
    }
}

#[test]
fn the_oracle_gives_the_golden_answers() {
    let goldens = read_goldens();
    let generation = |golden: &Golden| Generation {
        prompt: golden.prompt.clone(),
        max_tokens: golden.output.len(),
        sampling: Sampling {
            top_logprobs: 5,
            ..Sampling::default()
        },
        prompt_logprobs: None,
    };
    let generations: Vec<Generation> = goldens.iter().map(generation).collect();
    let mut group = RankGroup::start(&real_model(), all_in_f32(BackendKind::Candle, 1));
    let answers = group.generate(&generations, |_, _| 512);
    let mut largest = 0.0f64;
    for (golden, answer) in goldens.iter().zip(answers) {
        assert_eq!(answer.tokens, golden.output);
        assert_eq!(answer.top_logprobs[0].len(), golden.top.len());
        for ((expected, expected_logprob), (token, logprob)) in golden.top.iter().zip(&answer.top_logprobs[0]) {
            assert_eq!(token, expected);
            largest = largest.max((f64::from(*logprob) - expected_logprob).abs());
        }
    }
    println!("largest difference of a first logprob: {largest:e}");
    assert!(largest < 1e-4, "{largest:e}");
}

#[test]
fn canonical_logits_of_the_real_model_are_the_oracles() {
    let goldens = read_goldens();
    let text = |golden: &Golden| [golden.prompt.as_slice(), &golden.output].concat();
    let sequences = [text(&goldens[2]), text(&goldens[1])];
    let steps = [
        vec![(0, 42)],
        vec![(0, 1), (1, 13)],
        vec![(0, 1), (1, 20)],
        vec![(1, 1), (0, 30)],
    ];
    let checkpoint = real_model();
    for ranks in [1, 3] {
        let difference = largest_difference(
            &whole_logits(
                &checkpoint,
                &all_in_f32(BackendKind::Canonical, ranks),
                &sequences,
                &steps,
            ),
            &whole_logits(&checkpoint, &all_in_f32(BackendKind::Candle, ranks), &sequences, &steps),
        );
        println!("{ranks} ranks: largest difference of a logit {difference:e}");
        assert!(difference < 1e-3, "{ranks} ranks: {difference:e}");
    }
}

#[test]
fn canonical_logits_of_every_weight_type_and_head_layout_are_the_oracles() {
    let folder = tempfile::tempdir().unwrap();
    let models = [
        (WeightType::F32, 9, 3, 32),
        (WeightType::F16, 14, 2, 32),
        (WeightType::BF16, 9, 3, 32),
        (WeightType::Q8_0, 8, 8, 32),
        (WeightType::Q4_0, 14, 2, 32),
        (WeightType::Q4_1, 6, 2, 128),
        (WeightType::Q5_0, 8, 1, 32),
        (WeightType::Q5_1, 9, 3, 32),
        (WeightType::Q4K, 6, 2, 128),
        (WeightType::Q5K, 8, 2, 32),
        (WeightType::Q6K, 6, 2, 128),
    ];
    for (index, (weight_type, num_q_heads, num_kv_heads, head_dim)) in models.into_iter().enumerate() {
        let name = format!("{weight_type} {num_q_heads}/{num_kv_heads}x{head_dim}");
        let model = TinyModel {
            weight_type,
            embedding_type: weight_type,
            tied: num_kv_heads == 2,
            architecture: ["llama", "qwen2", "qwen3"][index % 3],
            all_biases: index % 6 == 0,
            rope_divisors: index % 2 == 0,
            ..TinyModel::with_heads(num_q_heads, num_kv_heads, head_dim).of_whole_blocks(weight_type)
        };
        let checkpoint = open(&model, folder.path());
        for ranks in [1, 2, 3, 5] {
            for (kv_dtype, difference_max) in [(KvDtype::F32, 1e-3), (KvDtype::F16, 1e-2), (KvDtype::Q8_0, 4e-2)] {
                let options = |backend| GroupOptions {
                    kv_dtype,
                    ..all_in_f32(backend, ranks)
                };
                let difference = largest_difference(
                    &tiny_logits(&checkpoint, &options(BackendKind::Canonical)),
                    &tiny_logits(&checkpoint, &options(BackendKind::Candle)),
                );
                println!("{name}, {ranks} ranks, {kv_dtype} cells: largest difference of a logit {difference:e}");
                assert!(
                    difference < difference_max,
                    "{name}, {ranks} ranks, {kv_dtype} cells: {difference:e}"
                );
            }
        }
    }
}

#[test]
fn a_token_out_of_range_poisons_its_sequence_alone() {
    let folder = tempfile::tempdir().unwrap();
    let model = TinyModel {
        weight_type: WeightType::F32,
        embedding_type: WeightType::F32,
        ..TinyModel::default()
    };
    let mut file = model.gguf();
    // The first element of token 7.
    let at = (7 * model.hidden * 4) as usize;
    file.tensor_mut("token_embd.weight").bytes[at..at + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let path = folder.path().join("poison.gguf");
    file.write(&path).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(&path).unwrap());
    let sequences =
        [vec![5, 6, 8], vec![5, 7, 8], vec![9, 10, 11]].map(|tokens| tokens.into_iter().map(TokenId).collect());
    for ranks in [1, 3] {
        let options = all_in_f32(BackendKind::Candle, ranks);
        let rows = whole_logits(&checkpoint, &options, &sequences, &[vec![(0, 3), (1, 3), (2, 3)]]);
        let poisoned: Vec<bool> = rows.iter().map(|row| row.poisoned).collect();
        assert_eq!(poisoned, [false, true, false], "{ranks} ranks");
    }
}

#[test]
fn units_that_stay_are_kept_from_epoch_to_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = open(&TinyModel::default(), folder.path());
    let spec = checkpoint.spec();
    let cell = CellLayout::new(spec.num_layers, spec.head_dim, 64, KvDtype::F32).unwrap();
    let mut oracle = Oracle::new(Arc::clone(&checkpoint), WeightMode::File, cell).unwrap();
    let layout = oracle.layout().clone();
    let num_units = |ranks| {
        let plan = ShardPlan::balance(&layout, &vec![RankCapacity::default(); ranks], 0).unwrap();
        let units = UnitKind::ALL.map(|kind| plan.shares()[0].units(kind).len() as u32);
        (plan, units.iter().sum::<u32>())
    };
    let (whole, all) = num_units(1);
    let (halves, half) = num_units(2);
    let mut begin = |plan: &ShardPlan| {
        let load = oracle.begin_epoch(&epoch(plan)).unwrap();
        (load.units_loaded, load.units_kept)
    };
    assert_eq!(begin(&halves), (half, 0));
    assert_eq!(begin(&whole), (all - half, half));
    assert_eq!(begin(&halves), (0, half));
}

fn epoch(plan: &ShardPlan) -> EpochSpec {
    EpochSpec {
        group: GroupId(0),
        epoch: Epoch { term: 1, number: 1 },
        rank: Rank(0),
        transport: Transport::SharedMemory,
        nonce: 1,
        shares: plan.shares().to_vec(),
        num_blocks: 4,
        block_size: 64,
        step_tokens_max: 64,
    }
}

fn open(model: &TinyModel, folder: &Path) -> Arc<Checkpoint> {
    let path = folder.join("tiny.gguf");
    model.write(&path).expect("the folder takes a file");
    Arc::new(Checkpoint::open(&path).expect("a tiny model opens"))
}

/// Two sequences, one of them beyond the first 256 positions, in steps of many tokens and of one.
fn tiny_logits(checkpoint: &Arc<Checkpoint>, options: &GroupOptions) -> Vec<WholeRow> {
    let token = |i: u32| TokenId(3 + i * i * 31 % 317);
    let sequences = [(0..280).map(token).collect(), (300..360).map(token).collect()];
    let steps = [
        vec![(0, 200)],
        vec![(0, 70), (1, 30)],
        vec![(0, 1), (1, 1)],
        vec![(1, 8), (0, 1)],
    ];
    whole_logits(checkpoint, options, &sequences, &steps)
}

/// Over all rows and the whole vocabulary.
fn largest_difference(left: &[WholeRow], right: &[WholeRow]) -> f32 {
    assert_eq!(left.len(), right.len());
    let mut largest = 0.0f32;
    for (left, right) in left.iter().zip(right) {
        assert!(!left.poisoned && !right.poisoned);
        assert_eq!(left.logits.len(), right.logits.len());
        assert!(!left.logits.is_empty());
        for (left, right) in left.logits.iter().zip(&right.logits) {
            let difference = (left - right).abs();
            assert!(difference.is_finite(), "{left} and {right}");
            largest = largest.max(difference);
        }
    }
    largest
}
