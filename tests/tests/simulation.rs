//! The whole cluster in virtual time: hundreds of seeds without a broken promise, and planted bugs that are found.

use kvasir_tests::sim::{Plant, Report, run};

const SEEDS: u64 = 500;
/// Seeds within which each planted bug must be found.
const PLANT_SEEDS: u64 = 300;

/// The seeds to run: one from `KVASIR_SIM_SEED`, or the first few hundred.
fn seeds() -> std::ops::Range<u64> {
    match std::env::var("KVASIR_SIM_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("KVASIR_SIM_SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..SEEDS,
    }
}

#[test]
fn no_answer_changes_and_nothing_hangs_whatever_the_weather() {
    let mut total = Report::default();
    for seed in seeds() {
        match run(seed, None) {
            Ok(report) => total.add(&report),
            Err(failure) => panic!("{failure}"),
        }
    }
    println!("{total:#?}");
    if seeds().end - seeds().start == SEEDS {
        // The weather must be bad enough to mean something.
        assert!(total.kills > SEEDS / 2 && total.pauses > SEEDS / 5, "{total:?}");
        assert!(
            total.recoveries > SEEDS / 2 && total.preemptions > SEEDS / 5,
            "{total:?}"
        );
        assert!(
            total.prefix_hits_tokens > 10 * SEEDS && total.blocks_shared > SEEDS / 2 && total.evictions > SEEDS,
            "{total:?}"
        );
        assert!(
            total.stale_steps > 50 && total.messages_stale > 50 && total.tokens_discarded > 50,
            "{total:?}"
        );
    }
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..10 {
        assert_eq!(run(seed, None).unwrap(), run(seed, None).unwrap());
    }
}

fn assert_found(plant: Plant, symptom: &str) {
    let mut failures = (0..PLANT_SEEDS).filter_map(|seed| run(seed, Some(plant)).err());
    let found = failures.any(|failure| failure.what.contains(symptom));
    assert!(
        found,
        "{} does not show as `{symptom}` within {PLANT_SEEDS} seeds",
        plant.name()
    );
}

#[test]
fn a_step_of_another_epoch_taken_for_ones_own_is_found() {
    assert_found(Plant::EpochCheckSkipped, "of its own epoch");
}

#[test]
fn a_block_released_twice_is_found() {
    assert_found(Plant::BlockReleasedTwice, "writes block");
}

#[test]
fn a_block_that_is_shared_before_it_is_full_is_found() {
    assert_found(Plant::BlockSharedEarly, "starts after block");
}

#[test]
fn a_lost_wake_up_is_found() {
    assert_found(Plant::WakeUpLost, "although nothing is wrong");
}

#[test]
fn a_lost_cell_write_is_found() {
    assert_found(Plant::WriteLost, "right is");
}

#[test]
fn an_early_acknowledgement_is_found() {
    assert_found(Plant::EarlyAcknowledge, "has not done step");
}
