//! The exact kernels for GPUs, run on the host, give the checked-in digests of the CPU backend: for any number of ranks, batch
//! and chunks, every architecture and weight type, and cells of every dtype.
//!
//! That is all of the backend and of the kernels' sources but for what only a GPU does: time, and memory that many see at once.
//! `KVASIR_TEST_SEED` draws other configurations, `KVASIR_TEST_ALL=1` compares all answers instead of the first few.

#![allow(clippy::unwrap_used)]

use kvasir_kv::Transport;
use kvasir_tests::parity::{self, Chunking, Configuration, Questions};
use kvasir_worker::arith::Kernels;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};

/// Compared for each model: the device is slow here.
const ANSWERS: usize = 6;

/// Every model of the list that `wanted` takes, each in one drawn way; every number of ranks.
fn check_each_model(questions: Questions, wanted: impl Fn(&str) -> bool) {
    let folder = tempfile::tempdir().unwrap();
    let digests = questions.read_digests();
    let seed = std::env::var("KVASIR_TEST_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    let count = std::env::var("KVASIR_TEST_ALL").map_or(ANSWERS, |_| usize::MAX);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut below = |end: usize| random.next_u32() as usize % end;
    for (index, model) in questions.model_names().iter().filter(|model| wanted(model)).enumerate() {
        let configuration = Configuration {
            model: model.clone(),
            ranks: 1 + index % 3,
            transport: Transport::SharedMemory,
            threads: 1,
            together: below(4) > 0,
            chunking: [Chunking::Whole, Chunking::Random, Chunking::Single][below(3)],
            block_size: [16, 64][below(2)],
            isa: Kernels::best().isa(),
        };
        let checkpoint = parity::open_model(model, folder.path());
        let found = configuration.run_on_device(questions, count, &checkpoint);
        let expected = &digests[model][..found.len()];
        assert_eq!(found, expected, "{configuration:?}");
    }
}

fn is_real(model: &str) -> bool {
    model.contains("smollm2")
}

#[test]
fn every_tiny_model_gives_the_cpus_digests_on_the_device() {
    check_each_model(Questions::Plain, |model| {
        !is_real(model) && !model.contains("reference/")
    });
}

#[test]
fn every_architecture_and_weight_type_gives_the_cpus_digests_on_the_device() {
    check_each_model(Questions::Plain, |model| model.contains("reference/"));
}

#[test]
fn every_knob_and_scored_prompts_give_the_cpus_digests_on_the_device() {
    check_each_model(Questions::Knobs, |model| !is_real(model));
}
