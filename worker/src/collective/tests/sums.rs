//! What comes out is the plain definition, whatever carries it.

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::group::*;
use crate::collective::arrival::Arrivals;
use crate::collective::endpoint::SegmentFile;
use crate::collective::member::Wire;
use crate::collective::patience::Patience;
use crate::collective::segment::Segment;
use crate::collective::shared_memory_wire::SharedMemoryWire;
use crate::collective::{Abort, CollectiveError, Transport};

const LENGTHS: [usize; 8] = [0, 1, 7, 576, 2048, 2049, 577 * 5, 100_000];

#[test]
fn every_world_and_length_sums_to_the_plain_definition() {
    for transport in LINES {
        for world_size in 1..=6 {
            run_group(transport, world_size, &patient_terms(), |collective| {
                for (round, len) in LENGTHS.into_iter().enumerate() {
                    check_all_reduce(collective, round as u64, len).unwrap();
                }
            });
        }
    }
}

#[test]
fn a_group_of_one_is_solo() {
    let transports = run_group(Transport::Tcp, 1, &patient_terms(), |collective| collective.transport());
    assert_eq!(transports, [Transport::Solo]);
}

#[test]
fn thousands_of_uneven_rounds_lose_no_wake_up() {
    for (transport, world_size, num_rounds) in [
        (Transport::SharedMemory, 2, 20_000),
        (Transport::SharedMemory, 5, 3_000),
        (Transport::Tcp, 3, 2_000),
    ] {
        run_group(transport, world_size, &patient_terms(), |collective| {
            let mut random = Random::new(collective.rank() as u64);
            for round in 0..num_rounds {
                dawdle(&mut random);
                // Small and large ones in turn, so that both paths follow each other in every order.
                let len = if round % 16 < 12 { 33 } else { 2100 };
                check_all_reduce(collective, round, len).unwrap();
            }
        });
    }
}

/// Nothing, or some spinning, or a sleep: so that peers are met spinning, yielding and sleeping.
fn dawdle(random: &mut Random) {
    match random.next() % 64 {
        0 => std::thread::sleep(Duration::from_micros(random.next() % 500)),
        1..8 => (0..random.next() % 20_000).for_each(|_| std::hint::spin_loop()),
        _ => {}
    }
}

#[test]
fn gathered_bytes_come_in_rank_order_whatever_their_lengths() {
    let lens = [0, 5, 1_000_003, 8, 262_144, 262_145];
    for transport in LINES {
        for world_size in 1..=6 {
            run_group(transport, world_size, &patient_terms(), |collective| {
                let mut gathered = vec![vec![9; 100]; 9];
                for turn in 0..7 {
                    let len_of = |rank: usize| lens[(rank + turn) % lens.len()];
                    let rank = collective.rank();
                    collective
                        .all_gather(&bytes_of(rank, len_of(rank)), &mut gathered)
                        .unwrap();
                    let expected: Vec<_> = (0..world_size).map(|rank| bytes_of(rank, len_of(rank))).collect();
                    assert!(gathered == expected, "{transport} world {world_size} turn {turn}");
                }
            });
        }
    }
}

#[test]
fn eight_megabytes_may_cross() {
    run_group(Transport::Tcp, 3, &patient_terms(), |collective| {
        check_all_reduce(collective, 1, 1 << 20).unwrap();
        let mut gathered = Vec::new();
        let mine = vec![collective.rank() as u8; 8 << 20];
        collective.all_gather(&mine, &mut gathered).unwrap();
        assert!(
            gathered
                .iter()
                .enumerate()
                .all(|(rank, bytes)| *bytes == vec![rank as u8; 8 << 20])
        );
    });
}

#[test]
fn a_gather_that_is_too_long_is_refused() {
    let outcomes = run_group(Transport::SharedMemory, 1, &patient_terms(), |collective| {
        collective.all_gather(&vec![0; crate::collective::GATHER_BYTES_MAX + 1], &mut Vec::new())
    });
    assert!(matches!(
        outcomes[0],
        Err(CollectiveError::GatherTooLong { rank: 0, .. })
    ));
}

#[test]
fn ranks_in_different_calls_notice() {
    for transport in LINES {
        let outcomes = run_group(transport, 2, &patient_terms(), |collective| match collective.rank() {
            0 => collective.all_reduce(&[1; 4], &mut [0.0; 4]),
            _ => collective.all_reduce(&[1; 5], &mut [0.0; 5]),
        });
        assert!(
            matches!(outcomes[0], Err(CollectiveError::OutOfStep { rank: 1, .. })),
            "{transport} {outcomes:?}"
        );
    }
}

#[test]
fn phases_may_wrap_around() {
    run_wires(u32::MAX - 7, |rank, wire| {
        let abort = Abort::new();
        for round in 0..50 {
            let mut patience = Patience::new(&abort, Duration::from_secs(10));
            let mut out = [0.0; 100];
            wire.all_reduce(&sums_of(rank, round, 100), &mut out, &mut patience)
                .unwrap();
            assert_eq!(bits(&out), expected_bits(2, round, 100));
        }
    });
}

#[test]
fn sleepers_are_woken_by_the_arrival_alone() {
    let nap = Duration::from_secs(20);
    run_wires(0, |rank, wire| {
        let abort = Abort::new();
        let mut random = Random::new(rank as u64);
        for round in 0..3_000 {
            // Mostly around the time at which the peer goes to sleep.
            (0..random.next() % 30_000).for_each(|_| std::hint::spin_loop());
            let started = Instant::now();
            let mut patience = Patience::of_a_sound_sleeper(&abort, nap);
            wire.all_reduce(&[1], &mut [0.0], &mut patience).unwrap();
            assert!(started.elapsed() < nap / 2, "rank {rank} overslept in round {round}");
        }
    });
}

/// Runs two ranks on wires whose counters stand at `phase`, without what a member adds.
fn run_wires(phase: u32, body: impl Fn(usize, &mut SharedMemoryWire) + Sync) {
    let (segment, file) = Segment::create(&seat(0, 2)).unwrap();
    let source = SegmentFile {
        process: std::process::id(),
        descriptor: file.as_raw_fd() as u32,
    };
    let segments = [segment, Segment::open(source, &seat(1, 2)).unwrap()];
    for rank in 0..2 {
        segments[0].line(rank).arrived().store(phase, Ordering::SeqCst);
    }
    std::thread::scope(|scope| {
        for (rank, segment) in segments.into_iter().enumerate() {
            let body = &body;
            scope.spawn(move || {
                body(
                    rank,
                    &mut SharedMemoryWire {
                        arrivals: Arrivals::starting_at(phase, segment, rank, 2),
                    },
                );
            });
        }
    });
}

#[test]
fn a_scribbling_peer_cannot_make_us_read_out_of_bounds() {
    for garbage in [
        u64::MAX,
        4 << 56 | u64::MAX >> 8,
        1 << 56 | 1 << 40,
        0,
        4 << 56 | 1 << 33,
    ] {
        let (segment, file) = Segment::create(&seat(0, 2)).unwrap();
        segment.line(1).arrived().store(1, Ordering::SeqCst);
        segment.buffer(1, 1).0.store(garbage, Ordering::SeqCst);
        let mut wire = SharedMemoryWire {
            arrivals: Arrivals::new(segment, 0, 2),
        };
        let abort = Abort::new();
        let mut patience = Patience::new(&abort, Duration::from_secs(10));
        let outcome = wire.all_gather(&[1, 2, 3], &mut [Vec::new(), Vec::new()], &mut patience);
        assert!(
            matches!(
                outcome,
                Err(CollectiveError::OutOfStep { rank: 1, .. } | CollectiveError::GatherTooLong { rank: 1, .. })
            ),
            "{garbage:#x} {outcome:?}"
        );
        drop(file);
    }
}
