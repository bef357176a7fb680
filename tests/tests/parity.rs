//! Same bits: tokens and logprob bits equal the checked-in digests for any number of ranks, both collectives, any
//! number of threads, alone and amid others, any chunking, any block size, any instruction set.
//!
//! `KVASIR_TEST_SEED` draws other configurations, `KVASIR_TEST_ALL=1` runs the whole product,
//! `KVASIR_WRITE_DIGESTS=1` writes the digest file anew (a change of numerics: raise `NUMERICS_VERSION`).

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, path::Path};

use kvasir_kv::Transport;
use kvasir_tests::parity::{self, Chunking, Configuration, Digests, Questions};
use kvasir_worker::arith::Kernels;

fn env_u64(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| {
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is not a number"))
    })
}

/// The plainest way: one rank, one thread, one answer at a time.
fn plain(model: &str) -> Configuration {
    Configuration {
        model: model.to_owned(),
        ranks: 1,
        transport: Transport::SharedMemory,
        threads: 1,
        together: false,
        chunking: Chunking::Whole,
        block_size: 64,
        isa: Kernels::best().isa(),
    }
}

/// With `KVASIR_WRITE_DIGESTS` set, the file is written anew first.
fn check_drawn(questions: Questions, count: usize) {
    let folder = tempfile::tempdir().unwrap();
    if env_u64("KVASIR_WRITE_DIGESTS").is_some() {
        let of_model = |name: &String| plain(name).run(questions, &parity::open_model(name, folder.path()));
        let digests: Digests = questions
            .model_names()
            .into_iter()
            .map(|name| (name.clone(), of_model(&name)))
            .collect();
        std::fs::write(
            questions.digest_file(),
            serde_json::to_string_pretty(&digests).unwrap() + "\n",
        )
        .unwrap();
    }
    let seed = env_u64("KVASIR_TEST_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("KVASIR_TEST_SEED={seed}");
    run_all(questions, &parity::draw(questions, seed, count), folder.path());
}

#[test]
fn answers_equal_the_checked_in_digests_in_every_drawn_configuration() {
    // Every model at least once.
    check_drawn(Questions::Plain, 72);
}

#[test]
fn answers_with_every_knob_and_scored_prompts_equal_the_digests_in_every_drawn_configuration() {
    check_drawn(Questions::Knobs, 42);
}

/// Of two threads one has a part of a head's context here, which the other tests are too short for.
#[test]
fn answers_after_long_contexts_equal_the_digests_in_every_drawn_configuration() {
    check_drawn(Questions::Long, 18);
}

/// Runs with `cargo xtask test --all` alone: 192 configurations of each model on the fastest kernels.
#[test]
fn the_whole_product_equals_the_digests() {
    if std::env::var_os("KVASIR_TEST_ALL").is_none() {
        println!("only with KVASIR_TEST_ALL=1; the tests above draw some of the configurations");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for questions in [Questions::Plain, Questions::Knobs, Questions::Long] {
        for model in questions.model_names() {
            let product = parity::product(&model, &[Kernels::best().isa()]);
            run_all(questions, &product, folder.path());
        }
    }
}

fn run_all(questions: Questions, configurations: &[Configuration], folder: &Path) {
    let expected = questions.read_digests();
    let mut opened = BTreeMap::new();
    for (index, configuration) in configurations.iter().enumerate() {
        let begun = std::time::Instant::now();
        let model = &configuration.model;
        let checkpoint = opened
            .entry(model.clone())
            .or_insert_with(|| parity::open_model(model, folder));
        assert_eq!(
            configuration.run(questions, checkpoint),
            expected[model],
            "{questions:?} {configuration:?}"
        );
        println!(
            "{}/{} {configuration:?} {:.1?}",
            index + 1,
            configurations.len(),
            begun.elapsed()
        );
    }
}

#[test]
fn the_digests_tell_answers_apart() {
    let mut seen = std::collections::BTreeSet::new();
    for (questions, count) in [
        (Questions::Plain, parity::GENERATIONS),
        (Questions::Knobs, parity::KNOBS),
        (Questions::Long, parity::LONG),
    ] {
        for (model, digests) in questions.read_digests() {
            assert_eq!(digests.len(), count, "{model}");
            assert!(
                digests.iter().all(|digest| seen.insert(digest.clone())),
                "{model}: two answers have one digest"
            );
        }
    }
}
