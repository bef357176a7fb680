//! Right bits: the real model against another engine's outputs, and the quantized path against our own f32 path.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use kvasir_kv::{KvDtype, Sampling, TokenId};
use kvasir_model::{Checkpoint, WeightMode};
use kvasir_tests::{
    golden::{Golden, read_goldens},
    rank_group::{Generation, GroupOptions, RankGroup},
    whole_logits::{WholeRow, whole_logits},
};

/// Mean over all golden positions of KL(f32 || quantized weights, int8 activations, f16 cells), in nats. A property of
/// the arithmetic, the same on every machine.
const MEAN_KL: f64 = 0.002_707_1;

fn open() -> Arc<Checkpoint> {
    Arc::new(Checkpoint::open(kvasir_tests::default_model()).unwrap())
}

fn exact(ranks: usize) -> GroupOptions {
    GroupOptions {
        ranks,
        kv_dtype: KvDtype::F32,
        weight_mode: WeightMode::F32,
        ..GroupOptions::default()
    }
}

#[test]
fn in_f32_all_golden_tokens_are_equal_and_the_likeliest_logprobs_close() {
    let goldens = read_goldens();
    let sampling = Sampling {
        top_logprobs: 5,
        ..Sampling::default()
    };
    let ask = |golden: &Golden| Generation {
        prompt: golden.prompt.clone(),
        max_tokens: golden.output.len(),
        sampling: sampling.clone(),
        prompt_logprobs: None,
    };
    let generations: Vec<Generation> = goldens.iter().map(ask).collect();

    let answers = RankGroup::start(&open(), exact(2)).generate(&generations, |_, _| usize::MAX);

    let (mut tokens, mut worst) = (0, 0.0f64);
    for (golden, answer) in goldens.iter().zip(&answers) {
        assert_eq!(answer.tokens, golden.output, "prompt {:?}", golden.prompt);
        tokens += answer.tokens.len();
        for (ours, golden) in answer.top_logprobs[0].iter().zip(&golden.top) {
            assert_eq!(ours.0, golden.0);
            worst = worst.max((f64::from(ours.1) - golden.1).abs());
        }
    }
    println!("{tokens} tokens equal, largest difference of a top-5 logprob {worst:.2e}");
    assert_eq!(tokens, 384);
    assert!(worst < 1e-4, "{worst}");
}

#[test]
fn quantized_the_token_is_the_same_where_the_margin_is_wide_and_the_divergence_is_pinned() {
    let goldens = read_goldens();
    let checkpoint = open();
    let exact = teach(&checkpoint, &exact(1), &goldens);
    let quantized = teach(&checkpoint, &GroupOptions::default(), &goldens);

    let (mut wide, mut same, mut divergence) = (0, 0, 0.0);
    for (index, (exact, quantized)) in exact.iter().zip(&quantized).enumerate() {
        // Rows come step by step, the prompts side by side.
        let (position, golden) = (index / goldens.len(), &goldens[index % goldens.len()]);
        let token = likeliest(&quantized.logits);
        same += usize::from(token == golden.output[position]);
        if golden.margins[position] > 0.5 {
            wide += 1;
            assert_eq!(
                token, golden.output[position],
                "position {position} of prompt {:?}",
                golden.prompt
            );
        }
        divergence += kl(&exact.logits, &quantized.logits);
    }
    let mean = divergence / exact.len() as f64;
    println!(
        "{same} of {} tokens equal, all {wide} with a margin above 0.5; mean KL {mean:.7} nats",
        exact.len()
    );
    assert!(wide > 200, "the golden margins were read");
    assert!(
        (mean - MEAN_KL).abs() < 1e-6,
        "mean KL {mean} is not the pinned {MEAN_KL}"
    );
}

/// Logits at every position of the golden outputs, given the golden tokens before it.
fn teach(checkpoint: &Arc<Checkpoint>, options: &GroupOptions, goldens: &[Golden]) -> Vec<WholeRow> {
    let sequences: Vec<Vec<TokenId>> = goldens
        .iter()
        .map(|golden| [&golden.prompt[..], &golden.output].concat())
        .collect();
    let prompts = goldens
        .iter()
        .enumerate()
        .map(|(index, golden)| (index, golden.prompt.len()))
        .collect();
    let one_each: Vec<(usize, usize)> = (0..goldens.len()).map(|index| (index, 1)).collect();
    let mut steps = vec![prompts];
    steps.extend(vec![one_each; goldens[0].output.len() - 1]);
    whole_logits(checkpoint, options, &sequences, &steps)
}

fn likeliest(logits: &[f32]) -> TokenId {
    let best = (0..logits.len())
        .max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)))
        .unwrap();
    TokenId(best as u32)
}

/// KL(p || q) of the softmaxes, in nats.
fn kl(p: &[f32], q: &[f32]) -> f64 {
    let (p, q) = (log_softmax(p), log_softmax(q));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    logits.iter().map(|logit| f64::from(logit - max) - sum.ln()).collect()
}
