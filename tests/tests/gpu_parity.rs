//! The exact kernels for GPUs, run on the host, give the checked-in digests of the CPU backend: for any number of ranks, batch
//! and chunks, every architecture and weight type, and cells of every dtype.
//!
//! That is all of the backend and of the kernels' sources but for what only a GPU does: time, and memory that many see at once.
//! `KVASIR_TEST_SEED` draws other configurations, `KVASIR_TEST_ALL=1` compares all answers instead of the first few.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use kvasir_kv::{
    BlockId, CellLayout, Epoch, EpochSpec, GroupId, KvDtype, Rank, RankCapacity, SequenceId, ShardPlan, TokenId,
    Transport, UnitKind,
};
use kvasir_model::{BackendKind, Checkpoint, WeightMode, WeightType};
use kvasir_tests::{
    parity::{self, Chunking, Configuration, Questions},
    rank_group::{self, Generation, GroupOptions, RankGroup},
    tiny_model::TinyModel,
    whole_logits::collectives,
};
use kvasir_worker::{
    arith::Kernels,
    backend::{Backend, ForwardOutput},
    gpu::{Arithmetic, Gpu, host_device::HostDevice},
    rank_books::WorkInput,
};
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

/// Units come and go while the ranks live, and steps that were captured are forgotten with their buffers.
#[test]
fn another_plan_on_the_same_ranks_changes_no_bit() {
    let folder = tempfile::tempdir().unwrap();
    let digests = Questions::Plain.read_digests();
    for model in ["Q4_1-9/3x32", "F32-8/8x32"] {
        let checkpoint = parity::open_model(model, folder.path());
        let generations = parity::generations(checkpoint.spec().vocab_size);
        let options = GroupOptions {
            ranks: 3,
            backend: BackendKind::CudaExact,
            ..GroupOptions::default()
        };
        let mut group = RankGroup::start(&checkpoint, options);
        let layout = checkpoint.unit_layout(WeightMode::File).unwrap();
        for weights in [[1.0, 1.0, 1.0], [1.0, 0.1, 5.0], [3.0, 1.0, 0.1]] {
            let capacities = weights.map(|weight| RankCapacity {
                weight,
                memory_bytes: None,
            });
            group.form(&ShardPlan::balance(&layout, &capacities, 0).unwrap());
            let answers = group.generate(&generations[..3], |_, _| usize::MAX);
            let found: Vec<String> = answers.iter().map(parity::digest).collect();
            assert_eq!(found, digests[model][..3], "{model} on ranks of {weights:?}");
        }
    }
}

/// The spec of rank 0 of a plan.
fn epoch(plan: &ShardPlan) -> EpochSpec {
    EpochSpec {
        group: GroupId(0),
        epoch: Epoch { term: 1, number: 1 },
        rank: Rank(0),
        transport: Transport::Solo,
        nonce: 1,
        shares: plan.shares().to_vec(),
        num_blocks: 4,
        block_size: 64,
        step_tokens_max: 64,
    }
}

fn plan(backend: &dyn Backend, ranks: usize) -> ShardPlan {
    ShardPlan::balance(backend.layout(), &vec![RankCapacity::default(); ranks], 0).unwrap()
}

#[test]
fn units_that_stay_are_kept_from_epoch_to_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = parity::open_model("Q4_1-9/3x32", folder.path());
    let options = GroupOptions {
        backend: BackendKind::CudaExact,
        ..GroupOptions::default()
    };
    let mut backend = rank_group::backend(&checkpoint, &options);
    let (halves, whole) = (plan(backend.as_ref(), 2), plan(backend.as_ref(), 1));
    let num_units = |plan: &ShardPlan| -> u32 {
        let share = &plan.shares()[0];
        UnitKind::ALL.map(|kind| share.units(kind).len() as u32).iter().sum()
    };
    let (half, all) = (num_units(&halves), num_units(&whole));
    let mut begin = |plan: &ShardPlan| {
        let load = backend.begin_epoch(&epoch(plan)).unwrap();
        (load.units_loaded, load.units_kept)
    };
    assert_eq!(begin(&halves), (half, 0));
    assert_eq!(begin(&whole), (all - half, half));
    assert_eq!(begin(&halves), (0, half));
}

/// One token of each of so many sequences, all at the same position.
fn decode_step(sequences: u32, position: u32) -> Vec<WorkInput> {
    let work = |sequence: u32| WorkInput {
        sequence: SequenceId(u64::from(sequence)),
        tokens: vec![TokenId(5 + 7 * sequence + position)],
        start: position,
        blocks: vec![BlockId(sequence)],
        samples: true,
        ..WorkInput::default()
    };
    (0..sequences).map(work).collect()
}

/// Captured once for each number of rows, and repeated with what the CPU computes.
#[test]
fn steps_of_single_rows_are_captured_and_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = parity::open_model("F32-6/2x128", folder.path());
    let spec = checkpoint.spec();
    let cell = CellLayout::new(spec.num_layers, spec.head_dim, 64, KvDtype::F16).unwrap();
    let device = HostDevice::new().unwrap();
    let mut gpu = Gpu::new(
        device,
        Arithmetic::Exact,
        Arc::clone(&checkpoint),
        WeightMode::File,
        cell,
    )
    .unwrap();
    let mut cpu = rank_group::backend(&checkpoint, &GroupOptions::default());
    let mut collective = collectives(1).remove(0)();
    let whole = plan(&gpu, 1);
    gpu.begin_epoch(&epoch(&whole)).unwrap();
    cpu.begin_epoch(&epoch(&whole)).unwrap();
    let (mut found, mut expected) = (ForwardOutput::default(), ForwardOutput::default());
    for (position, sequences) in [3, 3, 2, 3, 2, 1, 1].into_iter().enumerate() {
        // All three sequences have computed what a shorter step leaves out.
        let position = position as u32;
        for work in [decode_step(3, position), decode_step(sequences, position)] {
            gpu.forward(&work, collective.as_mut(), &mut found).unwrap();
            cpu.forward(&work, collective.as_mut(), &mut expected).unwrap();
            assert_eq!(found.summaries, expected.summaries);
        }
    }
    assert_eq!(gpu.device().num_graphs(), 3);
    gpu.begin_epoch(&epoch(&whole)).unwrap();
    assert_eq!(gpu.device().num_graphs(), 0);
}

/// A token whose embedding is out of range poisons the sequences that hold it, and no other.
#[test]
fn what_is_out_of_range_is_poison_on_every_rank_as_on_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("huge.gguf");
    let model = TinyModel {
        weight_type: WeightType::F32,
        embedding_type: WeightType::F32,
        tied: false,
        ..TinyModel::default()
    };
    let mut gguf = model.gguf();
    // The first element of token 77.
    let at = (77 * model.hidden * 4) as usize;
    gguf.tensor_mut("token_embd.weight").bytes[at..at + 4].copy_from_slice(&3e38f32.to_le_bytes());
    gguf.write(&file).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(&file).unwrap());
    for ranks in [1, 2, 3] {
        let answers = [BackendKind::Canonical, BackendKind::CudaExact].map(|backend| {
            let options = GroupOptions {
                ranks,
                backend,
                ..GroupOptions::default()
            };
            let generations =
                [&[5, 6, 77, 8][..], &[5, 6, 7, 8], &[77], &[9]].map(|prompt| Generation::greedy(prompt, 3));
            RankGroup::start(&checkpoint, options).generate(&generations, |_, _| 2)
        });
        let [cpu, device] = &answers;
        let poisoned: Vec<bool> = cpu.iter().map(|answer| answer.poisoned).collect();
        assert_eq!(poisoned, [true, false, true, false]);
        for (cpu, device) in cpu.iter().zip(device) {
            assert_eq!(
                (cpu.poisoned, &cpu.tokens),
                (device.poisoned, &device.tokens),
                "{ranks} ranks"
            );
        }
    }
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
