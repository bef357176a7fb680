//! The canonical backend against an independent implementation, and that one against another engine's answers.

use std::{path::Path, sync::Arc};

use kvasir_kv::{
    CellLayout, Epoch, EpochSpec, GroupId, KvDtype, Rank, RankCapacity, ShardPlan, TokenId, Transport, UnitKind,
};
use kvasir_model::{BackendKind, Checkpoint, WeightMode, WeightType};
use kvasir_tests::{
    rank_group::{Generation, GroupOptions, RankGroup},
    tiny_model::TinyModel,
    whole_logits::{WholeRow, whole_logits},
};
use kvasir_worker::{backend::Backend, oracle::Oracle};

/// llama.cpp's answers to six prompts, on the same weights in f32.
#[derive(serde::Deserialize)]
struct Golden {
    prompts: Vec<GoldenPrompt>,
}

#[derive(serde::Deserialize)]
struct GoldenPrompt {
    prompt_ids: Vec<u32>,
    f32: GoldenAnswer,
}

#[derive(serde::Deserialize)]
struct GoldenAnswer {
    output_ids: Vec<u32>,
    first_pos_top5: Vec<GoldenToken>,
}

#[derive(serde::Deserialize)]
struct GoldenToken {
    id: u32,
    logprob: f32,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/smollm2-135m.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn real_model() -> Arc<Checkpoint> {
    Arc::new(Checkpoint::open(kvasir_tests::default_model()).unwrap())
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
    let golden = golden();
    let generations: Vec<Generation> = golden
        .prompts
        .iter()
        .map(|prompt| {
            let mut generation = Generation::greedy(&prompt.prompt_ids, prompt.f32.output_ids.len());
            generation.sampling.top_logprobs = 5;
            generation
        })
        .collect();
    let mut group = RankGroup::start(&real_model(), all_in_f32(BackendKind::Candle, 1));
    let answers = group.generate(&generations, |_, _| 512);
    let mut largest = 0.0f32;
    for (prompt, answer) in golden.prompts.iter().zip(answers) {
        let tokens: Vec<u32> = answer.tokens.iter().map(|token| token.0).collect();
        assert_eq!(tokens, prompt.f32.output_ids);
        for (expected, (token, logprob)) in prompt.f32.first_pos_top5.iter().zip(&answer.top_logprobs[0]) {
            assert_eq!(token.0, expected.id);
            largest = largest.max((logprob - expected.logprob).abs());
        }
    }
    println!("largest difference of a first logprob: {largest:e}");
    assert!(largest < 1e-4, "{largest:e}");
}

#[test]
fn canonical_logits_of_the_real_model_are_the_oracles() {
    let golden = golden();
    let sequences: Vec<Vec<TokenId>> = [2, 1]
        .map(|prompt| &golden.prompts[prompt])
        .map(|prompt| prompt.prompt_ids.iter().chain(&prompt.f32.output_ids))
        .map(|tokens| tokens.copied().map(TokenId).collect())
        .into();
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
        (WeightType::Q8_0, 8, 8, 32),
        (WeightType::Q4_1, 6, 2, 128),
    ];
    for (weight_type, num_q_heads, num_kv_heads, head_dim) in models {
        let name = format!("{weight_type} {num_q_heads}/{num_kv_heads}x{head_dim}");
        let model = TinyModel {
            weight_type,
            embedding_type: weight_type,
            tied: num_kv_heads == 2,
            ..TinyModel::with_heads(num_q_heads, num_kv_heads, head_dim)
        };
        let checkpoint = open(&model, folder.path());
        for ranks in [1, 2, 3, 5] {
            for (kv_dtype, difference_max) in [(KvDtype::F32, 1e-3), (KvDtype::F16, 1e-2)] {
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
    model.write(&path).unwrap();
    Arc::new(Checkpoint::open(&path).unwrap())
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
