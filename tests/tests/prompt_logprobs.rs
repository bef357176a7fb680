//! Logprobs of the prompt: those that the same tokens got as an answer, to the bit, and those of another implementation.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use kvasir_kv::{KvDtype, PromptLogprob, Sampling, TokenId};
use kvasir_model::{BackendKind, Checkpoint, WeightMode};
use kvasir_tests::{
    golden::read_goldens,
    rank_group::{Generation, GroupOptions, RankGroup},
    tiny_model::TinyModel,
};

fn scored(prompt: &[TokenId], top: u32) -> Generation {
    Generation {
        prompt: prompt.to_vec(),
        max_tokens: 1,
        sampling: Sampling::default(),
        prompt_logprobs: Some(top),
    }
}

/// What was sampled token by token and what is scored in chunks of a prompt are the same rows of the same model.
#[test]
fn an_answer_that_is_scored_as_a_prompt_has_the_logprob_bits_that_it_had() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TinyModel::default().write(&path).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(path).unwrap());
    let prompt = [5, 9, 200, 5, 17].map(TokenId);
    for ranks in [1, 3] {
        let options = GroupOptions {
            ranks,
            ..GroupOptions::default()
        };
        let mut group = RankGroup::start(&checkpoint, options);
        let asked = Generation {
            max_tokens: 150,
            prompt_logprobs: None,
            sampling: Sampling {
                temperature: 1.0,
                repetition_penalty: 1.2,
                top_logprobs: 4,
                ..Sampling::default()
            },
            ..scored(&prompt, 0)
        };
        let answer = group.generate(&[asked], |_, _| usize::MAX).remove(0);
        let whole = [&prompt[..], &answer.tokens].concat();
        for chunk in [usize::MAX, 1, 13, 70] {
            let again = group.generate(&[scored(&whole, 4)], |_, _| chunk).remove(0);
            assert_eq!(again.prompt_logprobs.len(), whole.len() - 1);
            for (index, found) in again.prompt_logprobs[prompt.len() - 1..].iter().enumerate() {
                let expected = PromptLogprob {
                    logprob: answer.logprobs[index],
                    top_logprobs: answer.top_logprobs[index].clone(),
                };
                assert_eq!(
                    *found, expected,
                    "{ranks} ranks, chunks of {chunk}, answer token {index}"
                );
            }
        }
    }
}

#[test]
fn the_logprobs_of_real_prompts_are_those_of_the_independent_backend() {
    let checkpoint = Arc::new(Checkpoint::open(kvasir_tests::default_model()).unwrap());
    let generations: Vec<Generation> = read_goldens()
        .iter()
        .map(|golden| scored(&[&golden.prompt[..], &golden.output].concat(), 5))
        .collect();
    let answers = |backend, ranks| {
        let options = GroupOptions {
            ranks,
            backend,
            kv_dtype: KvDtype::F32,
            weight_mode: WeightMode::F32,
            ..GroupOptions::default()
        };
        RankGroup::start(&checkpoint, options).generate(&generations, |_, _| 50)
    };
    let expected = answers(BackendKind::Candle, 2);
    for ranks in [1, 3] {
        let mut largest = 0.0f32;
        for (found, expected) in answers(BackendKind::Canonical, ranks).iter().zip(&expected) {
            assert_eq!(found.prompt_logprobs.len(), expected.prompt_logprobs.len());
            for (found, expected) in found.prompt_logprobs.iter().zip(&expected.prompt_logprobs) {
                largest = largest.max((found.logprob - expected.logprob).abs());
                let tokens = |scored: &PromptLogprob| scored.top_logprobs[0].0;
                let is_close = expected.top_logprobs[0].1 - expected.top_logprobs[1].1 < 1e-3;
                assert!(is_close || tokens(found) == tokens(expected));
            }
        }
        println!("{ranks} ranks: largest difference of a logprob {largest:e}");
        assert!(largest < 1e-3, "{ranks} ranks: {largest:e}");
    }
}
