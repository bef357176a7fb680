//! The whole cluster in virtual time: hundreds of seeds without a broken promise, and planted bugs that are found.

use kvasir_tests::sim::{FIRST_SEED_WITH_ELASTIC_GROUPS, Plant, Report, run};

const SEEDS: u64 = 500;
/// Seeds that have found a bug which thousands of others did not.
const FOUND: [u64; 2] = [5_101_448, 6_102_216];
/// Seeds within which each planted bug must be found.
const PLANT_SEEDS: u64 = 300;

/// The seeds to run: one from `KVASIR_SIM_SEED`; or the first few hundred, and as many that nobody has seen before.
fn seeds() -> Vec<u64> {
    match std::env::var("KVASIR_SIM_SEED") {
        Ok(seed) => vec![seed.parse().expect("KVASIR_SIM_SEED is a number")],
        Err(_) => (0..SEEDS).chain(FOUND).chain(fresh(SEEDS)).collect(),
    }
}

/// Seeds that differ from run to run, unless `KVASIR_TEST_SEED` says where they begin.
fn fresh(count: u64) -> std::ops::Range<u64> {
    let begin = match std::env::var("KVASIR_TEST_SEED") {
        Ok(seed) => seed.parse().expect("KVASIR_TEST_SEED is a number"),
        Err(_) => u64::from(std::process::id()) << 20,
    };
    let begin = FIRST_SEED_WITH_ELASTIC_GROUPS.max(begin);
    println!("fresh seeds from {begin}");
    begin..begin.saturating_add(count)
}

#[test]
fn no_answer_changes_and_nothing_hangs_whatever_the_weather() {
    let mut total = Report::default();
    let seeds = seeds();
    for &seed in &seeds {
        match run(seed, None) {
            Ok(report) => total.add(&report),
            Err(failure) => panic!("{failure}"),
        }
    }
    println!("{total:#?}");
    if seeds.len() as u64 > SEEDS {
        // The weather must be bad enough to mean something.
        assert!(total.kills > SEEDS / 2 && total.pauses > SEEDS / 5, "{total:?}");
        let counters = total.counters;
        assert!(
            counters.recoveries > SEEDS / 2 && counters.preemptions > SEEDS / 5,
            "{total:?}"
        );
        assert!(
            counters.prefix_hits_tokens > 10 * SEEDS && total.blocks_shared > SEEDS / 2 && counters.evictions > SEEDS,
            "{total:?}"
        );
        assert!(
            total.stale_steps > 50 && counters.messages_stale > 50 && counters.tokens_discarded > 50,
            "{total:?}"
        );
        assert!(
            counters.sequences_rerouted > SEEDS / 5 && counters.routed_by_prefix > SEEDS / 5,
            "{total:?}"
        );
        assert!(
            counters.migrations_moved > SEEDS
                && counters.migrations_failed > SEEDS / 5
                && total.cells_moved > 5 * SEEDS,
            "{total:?}"
        );
        assert!(
            counters.reshards_switched > SEEDS && counters.reshards_failed > SEEDS / 10 && total.leaves > SEEDS / 5,
            "{total:?}"
        );
        assert!(
            counters.handoffs > SEEDS / 5 && counters.transfer_prompt_bytes > 0 && counters.migrations_for_room > 0,
            "{total:?}"
        );
        assert!(counters.prefix_copies_adopted > SEEDS / 50, "{total:?}");
        assert_eq!(counters.cells_adopted, counters.cells_planned, "{total:?}");
        assert!(total.scores > 10 * SEEDS, "{total:?}");
        assert!(
            counters.preemptions_for_others > SEEDS / 5 && counters.chunks > SEEDS,
            "{total:?}"
        );
        assert!(
            counters.cancelled > SEEDS / 5 && counters.rejected > SEEDS / 5,
            "{total:?}"
        );
    }
}

fn assert_clean(seed: u64) {
    if let Err(failure) = run(seed, None) {
        panic!("{failure}");
    }
}

/// The first step of all stood still with a stopped rank, became the usual one, and a dead rank was given six seconds.
#[test]
fn a_first_step_that_stood_still_does_not_hide_a_dead_rank() {
    assert_clean(1_002_498);
}

/// Two ranks waited for one behind a stalled link; when it had come and gone past them, they were blamed for the wait.
#[test]
fn a_rank_that_waited_for_a_stalled_one_is_not_blamed_when_that_one_comes() {
    assert_clean(1_008_574);
}

/// Preempted in one group, it was admitted to another before the ranks of the first had been told to forget it.
#[test]
fn a_sequence_moves_only_when_its_ranks_have_been_told_to_forget_it() {
    assert_clean(1289);
}

/// Admitted and preempted while one step was composed, it had had its turn; a newer one of its tenant got the room left.
#[test]
fn whoever_gave_way_is_not_passed_over_in_the_same_step() {
    assert_clean(1823);
}

/// Admitted and preempted while one step was composed, it counted as one that had run, and waited without end.
#[test]
fn whoever_never_ran_waits_no_longer_than_the_queue_allows() {
    assert_clean(20_516);
}

/// A new one at equal service preempted an older one, which was then first again: neither ever got on.
#[test]
fn whoever_takes_room_from_another_gets_it() {
    assert_clean(1762);
}

/// Its deadline passed in the tick in which its group ended: it was told that no group can serve, while others did.
#[test]
fn the_end_of_one_group_is_no_outage() {
    assert_clean(15_726);
}

/// It hung while it waited for a stopped rank; until that one came, nobody could tell.
#[test]
fn a_rank_that_hangs_behind_another_is_noticed_after_that_one() {
    assert_clean(3_036_091);
    assert_clean(128_496);
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..10 {
        assert_eq!(run(seed, None).unwrap(), run(seed, None).unwrap());
    }
}

fn assert_found(plant: Plant, symptom: &str) {
    let mut failures = fresh(PLANT_SEEDS).filter_map(|seed| run(seed, Some(plant)).err());
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
fn a_block_of_another_tenant_that_is_shared_is_found() {
    assert_found(Plant::TenantShared, "is shared with tenant");
}

#[test]
fn a_sequence_with_two_homes_is_found() {
    assert_found(Plant::TwoHomes, "is held by two groups");
}

#[test]
fn a_lost_wake_up_is_found() {
    assert_found(Plant::WakeUpLost, "although nothing is wrong");
}

#[test]
fn a_damaged_cell_that_nobody_checked_is_found() {
    assert_found(Plant::CellDamaged, "right is");
}

#[test]
fn a_cell_that_comes_after_its_transfer_has_ended_is_found() {
    assert_found(Plant::LateCell, "right is");
}

#[test]
fn a_lost_cell_write_is_found() {
    assert_found(Plant::WriteLost, "right is");
}

#[test]
fn an_early_acknowledgement_is_found() {
    assert_found(Plant::EarlyAcknowledge, "has not done step");
}
