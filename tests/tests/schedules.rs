//! Whatever else is served, each request gets the bits that it gets alone: real ranks behind the real coordinator, with
//! pools too small for what is asked, so that sequences are preempted amid their answers, start from cached blocks and
//! lose cached ones to others, while clients come and go.
//!
//! `KVASIR_TEST_SEED` replays what was asked of which cluster; in which order ranks answer differs from run to run.
//! `KVASIR_WRITE_DIGESTS=1` writes the digest file anew (a change of numerics: raise `NUMERICS_VERSION`).

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use kvasir_coordinator::{ClusterConfig, status::Counters};
use kvasir_kv::{CellLayout, FinishReason, KvDtype, Request};
use kvasir_model::Checkpoint;
use kvasir_tests::{
    engine_cluster::{Ending, EngineCluster, EngineOptions, Served},
    parity,
    request_set::{KNOBS, REAL, RequestSet, THOUSAND, TINY},
    schedule::{Asked, Leaves, Schedule},
    sim::dice::Dice,
    solo_answers::SoloAnswers,
};

/// From `KVASIR_TEST_SEED`, or one that nobody has seen before.
fn seed() -> u64 {
    let seed = match std::env::var("KVASIR_TEST_SEED") {
        Ok(seed) => seed.parse().expect("KVASIR_TEST_SEED is a number"),
        Err(_) => u64::from(std::process::id()),
    };
    println!("KVASIR_TEST_SEED={seed}");
    seed
}

/// A set of requests with its model and what each gets alone.
struct Case {
    set: RequestSet,
    checkpoint: Arc<Checkpoint>,
    requests: Vec<Request>,
    solo: SoloAnswers,
}

impl Case {
    fn open(set: RequestSet) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = parity::open_model(set.model, folder.path());
        Self {
            requests: set.requests(checkpoint.spec().vocab_size),
            solo: SoloAnswers::of(&set),
            checkpoint,
            set,
        }
    }

    fn config(&self, ranks: u32, block_size: u32) -> ClusterConfig {
        let spec = self.checkpoint.spec();
        let cell = CellLayout::new(spec.num_layers, spec.head_dim, block_size, KvDtype::F16).unwrap();
        ClusterConfig {
            queue_max: self.requests.len() as u32,
            ..ClusterConfig::new(ranks, cell)
        }
    }

    /// Blocks that the longest of its requests needs.
    fn blocks_min(&self, block_size: u32) -> u32 {
        let positions = self.requests.iter().map(|request| request.total_len_max() - 1);
        positions.max().unwrap().div_ceil(block_size)
    }

    /// One of everything that must leave the bits alone.
    fn draw(&self, dice: &mut Dice) -> EngineOptions {
        let block_size = dice.pick(&[16, 32, 64]);
        let blocks_min = self.blocks_min(block_size);
        let config = ClusterConfig {
            num_blocks_max: Some(blocks_min + dice.between_u32(0, blocks_min)),
            prefix_cache: dice.chance(80),
            force_tcp: dice.chance(25),
            step_tokens_max: dice.pick(&[24, 64, 200, 512]),
            chunk_tokens_max: dice.pick(&[1, 7, 15, 16, 50, 256]),
            sequences_max: dice.pick(&[2, 5, 16, 64]),
            look_ahead: dice.between_u32(0, 3),
            look_ahead_tokens_max: dice.pick(&[8, 64, 4096]),
            ..self.config(dice.between_u32(1, 4), block_size)
        };
        EngineOptions {
            config,
            threads: dice.between(1, 2) as usize,
            seed: dice.between(0, u64::MAX - 1),
        }
    }

    /// With one rank and everything asked at once, one run is like the other. The pool holds one and a half of the
    /// longest request, and prompts are cut small.
    fn tight(&self) -> EngineOptions {
        let config = ClusterConfig {
            num_blocks_max: Some(self.blocks_min(16) * 3 / 2),
            step_tokens_max: 64,
            chunk_tokens_max: 24,
            look_ahead: 2,
            look_ahead_tokens_max: 4096,
            ..self.config(1, 16)
        };
        let (threads, seed) = (1, 0);
        EngineOptions { config, threads, seed }
    }

    /// The same, but a token at a time: newcomers find every block in every state of being filled.
    fn fine(&self) -> EngineOptions {
        let tight = self.tight();
        let config = ClusterConfig {
            num_blocks_max: Some(self.blocks_min(16) * 2),
            step_tokens_max: 8,
            chunk_tokens_max: 1,
            look_ahead: 0,
            ..tight.config
        };
        EngineOptions { config, ..tight }
    }

    /// Checks each answer against what its request gets alone, and the books against each other.
    fn run(&self, options: EngineOptions, schedule: &Schedule) -> Evidence {
        let begun = Instant::now();
        println!("{} x {}: {options:?}", schedule.asked.len(), self.set.name);
        let mut cluster = EngineCluster::start(&self.checkpoint, options);
        schedule.play(&mut cluster);
        for asked in &schedule.asked {
            self.check(asked, cluster.served(asked.sequence));
        }
        check_all_is_given_back(&cluster);
        let evidence = Evidence::of(&cluster, schedule);
        println!("  {:.1?} {evidence:?}", begun.elapsed());
        evidence
    }

    fn check(&self, asked: &Asked, served: &Served) {
        let what = describe(asked, served);
        let Some(Ending::Finished { reason, usage }) = served.ending else {
            panic!("no answer to {what}");
        };
        assert_eq!(usage.prompt_tokens as usize, asked.request.prompt.len(), "{what}");
        if asked.request.prompt_logprobs.is_some() {
            assert_eq!(usage.cached_tokens, 0, "{what}");
        }
        assert_eq!(usage.completion_tokens as usize, served.answer.tokens.len(), "{what}");
        if reason == FinishReason::Cancelled {
            assert!(left_in_time(asked.leaves, served), "wrong end of {what}");
            assert!(
                self.solo.begins_with(asked.index, &served.answer),
                "wrong bits in {what}"
            );
        } else {
            assert!(self.solo.is_whole(asked.index, &served.answer), "wrong bits in {what}");
        }
    }
}

/// Without the prompt and the stop tokens: those are many, and known by the index.
fn describe(asked: &Asked, served: &Served) -> String {
    let Asked {
        sequence,
        index,
        leaves,
        ..
    } = asked;
    let Served {
        answer,
        ending,
        admissions,
        resumptions,
        chunks,
        ..
    } = served;
    format!(
        "request {index}, sequence {sequence}, leaves {leaves:?}: {ending:?} after {admissions} admissions, \
         {resumptions} of them amid the answer, {chunks} chunks, tokens {:?}",
        answer.tokens
    )
}

/// Nobody was cancelled at another point than where they left.
fn left_in_time(leaves: Leaves, served: &Served) -> bool {
    let num_tokens = served.answer.tokens.len() as u32;
    match leaves {
        Leaves::Never => false,
        Leaves::AtOnce => num_tokens == 0 && served.admissions <= 1,
        Leaves::Admitted => num_tokens == 0 && served.admissions > 0,
        Leaves::After(wanted) => num_tokens == wanted,
        Leaves::Preempted => num_tokens > 0,
    }
}

fn check_all_is_given_back(cluster: &EngineCluster) {
    let status = cluster.status();
    let blocks = cluster.group().blocks;
    assert_eq!((blocks.held, blocks.in_flight), (0, 0), "{blocks:?}");
    assert_eq!(blocks.free + blocks.cached, blocks.total, "{blocks:?}");
    assert_eq!(status.sequences, [], "{status:?}");
    assert_eq!(cluster.group().steps_outstanding, 0, "{status:?}");
    let counters = status.counters;
    assert_eq!(counters.submitted, cluster.all_served().count() as u64, "{counters:?}");
    assert_eq!(counters.finished, counters.submitted, "{counters:?}");
    assert_eq!(counters.generation_tokens, cluster.tokens(), "{counters:?}");
}

/// What happened, so that a test can prove that it tested something.
#[derive(Clone, Copy, Debug, Default)]
struct Evidence {
    counters: Counters,
    cached_tokens: u64,
    /// Sequences that went on with their answer after a preemption.
    resumptions: u64,
    chunks: u64,
    /// Clients that went away before the first step of their sequence, before its first token, amid its answer, and
    /// while it waited to go on with it.
    left_waiting: u64,
    left_computing: u64,
    left_answering: u64,
    left_preempted: u64,
}

impl Evidence {
    fn of(cluster: &EngineCluster, schedule: &Schedule) -> Self {
        let mut evidence = Self {
            counters: cluster.status().counters,
            ..Self::default()
        };
        for asked in &schedule.asked {
            evidence.count(asked.leaves, cluster.served(asked.sequence));
        }
        evidence
    }

    fn count(&mut self, leaves: Leaves, served: &Served) {
        self.resumptions += u64::from(served.resumptions);
        self.chunks += u64::from(served.chunks);
        let Some(Ending::Finished { reason, usage }) = served.ending else {
            return;
        };
        self.cached_tokens += u64::from(usage.cached_tokens);
        if reason == FinishReason::Cancelled {
            *self.stage_mut(leaves, served) += 1;
        }
    }

    fn stage_mut(&mut self, leaves: Leaves, served: &Served) -> &mut u64 {
        if leaves == Leaves::Preempted {
            &mut self.left_preempted
        } else if served.admissions == 0 {
            &mut self.left_waiting
        } else if served.answer.tokens.is_empty() {
            &mut self.left_computing
        } else {
            &mut self.left_answering
        }
    }

    fn assert_all_happened(&self) {
        let Counters {
            evictions,
            preemptions,
            tokens_discarded,
            ..
        } = self.counters;
        let happened = [
            evictions,
            preemptions,
            tokens_discarded,
            self.cached_tokens,
            self.resumptions,
            self.chunks,
        ];
        assert!(happened.iter().all(|count| *count > 0), "{self:#?}");
    }
}

/// The tight clusters prove that everything happened; the drawn ones go where nobody has been.
fn run_tight_and_drawn(cases: &[Case], num_drawn: usize) {
    let mut dice = Dice::new(seed());
    for case in cases {
        let burst = Schedule::burst(&case.requests);
        case.run(case.tight(), &burst).assert_all_happened();
        case.run(case.fine(), &burst);
    }
    for case in cases.iter().cycle().take(num_drawn) {
        let options = case.draw(&mut dice);
        let live_max = dice.pick(&[1, 4, 12, 40]);
        let percent_leaving = dice.pick(&[0, 20, 50]);
        let schedule = Schedule::draw(&case.requests, live_max, percent_leaving, &mut dice);
        case.run(options, &schedule);
    }
}

#[test]
fn random_schedules_give_the_digests_on_tiny_models() {
    run_tight_and_drawn(&TINY.map(Case::open), 60);
}

#[test]
fn random_schedules_give_the_digests_on_the_real_model() {
    run_tight_and_drawn(&[Case::open(REAL)], 3);
}

#[test]
fn random_schedules_give_the_digests_of_penalized_answers_and_scored_prompts() {
    run_tight_and_drawn(&[Case::open(KNOBS)], 16);
}

#[test]
fn a_thousand_requests_get_their_solo_tokens_on_a_pool_that_is_too_small() {
    let case = Case::open(THOUSAND);
    let mut dice = Dice::new(seed());
    let mut left_preempted = 0;
    for ranks in 1..=4 {
        let config = ClusterConfig {
            num_blocks_max: Some(24),
            step_tokens_max: dice.pick(&[48, 128]),
            chunk_tokens_max: dice.pick(&[8, 24, 48]),
            sequences_max: 12,
            look_ahead: dice.between_u32(1, 3),
            ..case.config(ranks, 16)
        };
        let options = EngineOptions {
            config,
            threads: 1,
            seed: dice.between(0, u64::MAX - 1),
        };
        let schedule = Schedule::draw(&case.requests, 40, 33, &mut dice);

        let evidence = case.run(options, &schedule);

        evidence.assert_all_happened();
        let left_early = [evidence.left_waiting, evidence.left_computing, evidence.left_answering];
        assert!((250..450).contains(&left_early.iter().sum::<u64>()), "{evidence:#?}");
        assert!(left_early.iter().all(|count| *count > 20), "{evidence:#?}");
        left_preempted += evidence.left_preempted;
    }
    assert!(left_preempted > 0);
}

#[test]
fn the_solo_answers_tell_requests_apart() {
    for case in TINY.into_iter().chain([REAL, THOUSAND, KNOBS]).map(Case::open) {
        let lines = case.solo.lines();
        assert_eq!(lines.len(), case.set.num_requests, "{}", case.set.name);
        // Some ask the same.
        let prompts: BTreeSet<_> = case.requests.iter().map(|request| &request.prompt).collect();
        let answers: BTreeSet<_> = lines.iter().collect();
        assert!(answers.len() >= prompts.len(), "{}", case.set.name);
        assert!(prompts.len() > case.set.num_requests / 2, "{}", case.set.name);
    }
}
