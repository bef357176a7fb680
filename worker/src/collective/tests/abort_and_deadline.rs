//! Nothing waits for ever, and a failed collective stays dead.

use std::sync::atomic::Ordering;
use std::sync::{Barrier, mpsc};
use std::time::{Duration, Instant};

use super::group::*;
use crate::collective::{CollectiveError, Terms};

#[test]
fn abort_wakes_every_waiter_and_kills_for_good() {
    for transport in LINES {
        let terms = patient_terms();
        let (entering, entries) = mpsc::channel();
        std::thread::scope(|scope| {
            let abort = terms.abort.clone();
            let aborter = scope.spawn(move || {
                entries.iter().take(3).for_each(drop);
                // Long enough for all of them to be asleep in the kernel.
                std::thread::sleep(Duration::from_millis(50));
                abort.abort();
                Instant::now()
            });
            // Rank 3 stays away, so the others wait for it.
            let woken = run_group(transport, 4, &terms, |collective| {
                if collective.rank() == 3 {
                    while !terms.abort.is_aborted() {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    return None;
                }
                entering.send(()).unwrap();
                let outcome = collective.all_reduce(&[1; 9], &mut [0.0; 9]);
                let woken = Instant::now();
                assert!(
                    matches!(outcome, Err(CollectiveError::Aborted)),
                    "{transport} {outcome:?}"
                );
                let again = collective.all_gather(&[], &mut Vec::new());
                assert!(matches!(again, Err(CollectiveError::Aborted)), "{transport} {again:?}");
                Some(woken)
            });
            let aborted = aborter.join().unwrap();
            for woken in woken.into_iter().flatten() {
                // 20 ms is the aim; a busy machine gets some more.
                assert!(
                    woken.saturating_duration_since(aborted) < Duration::from_millis(200),
                    "{transport}"
                );
            }
        });
    }
}

#[test]
fn abort_ends_connecting() {
    for transport in LINES {
        let (mut listening, endpoints) = prepare(transport, 2);
        let terms = patient_terms();
        let abort = terms.abort.clone();
        let aborter = std::thread::spawn(move || abort.abort());
        let outcome = listening.remove(0).connect(&endpoints, terms);
        assert!(
            matches!(outcome, Err(CollectiveError::Aborted)),
            "{transport} {outcome:?}"
        );
        aborter.join().unwrap();
    }
}

#[test]
fn deadline_names_the_missing_rank() {
    for transport in LINES {
        let terms = Terms {
            call_deadline: Duration::from_millis(60),
            ..patient_terms()
        };
        let all_gave_up = Barrier::new(4);
        let outcomes = run_group(transport, 4, &terms, |collective| {
            let outcomes = (collective.rank() != 2).then(|| {
                let first = collective.all_reduce(&[1; 9], &mut [0.0; 9]);
                (first, collective.all_reduce(&[1; 9], &mut [0.0; 9]))
            });
            // Nobody lets go of their side before: then it would be a peer that left.
            all_gave_up.wait();
            outcomes
        });
        for (first, second) in outcomes.into_iter().flatten() {
            let Err(CollectiveError::DeadlineExceeded { missing, waited_ms }) = first else {
                panic!("{transport} {first:?}");
            };
            assert_eq!(missing, [2], "{transport}");
            assert!((60..5000).contains(&waited_ms), "{transport} {waited_ms}");
            assert!(matches!(second, Err(CollectiveError::Dead)), "{transport} {second:?}");
        }
    }
}

#[test]
fn connecting_names_the_missing_rank() {
    for transport in LINES {
        let (mut listening, endpoints) = prepare(transport, 3);
        let terms = Terms {
            connect_deadline: Duration::from_millis(300),
            ..patient_terms()
        };
        let absent = listening.remove(2);
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let ranks: Vec<_> = listening
                .into_iter()
                .map(|listening| {
                    let (endpoints, terms) = (&endpoints, terms.clone());
                    scope.spawn(move || listening.connect(endpoints, terms).map(drop))
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        let is_named = |outcome: &Result<(), CollectiveError>| matches!(outcome, Err(CollectiveError::DeadlineExceeded { missing, .. }) if *missing == [2]);
        assert!(outcomes.iter().any(is_named), "{transport} {outcomes:?}");
        drop(absent);
    }
}

#[test]
fn a_peer_that_leaves_is_named() {
    for transport in LINES {
        run_group(transport, 2, &patient_terms(), |collective| {
            check_all_reduce(collective, 0, 576).unwrap();
            if collective.rank() == 0 {
                let outcome = collective.all_reduce(&[1; 9], &mut [0.0; 9]);
                assert!(
                    matches!(outcome, Err(CollectiveError::PeerGone { rank: 1 })),
                    "{transport} {outcome:?}"
                );
            }
        });
    }
}

#[test]
fn entered_counts_calls_and_not_pieces() {
    for transport in LINES {
        let terms = patient_terms();
        run_group(transport, 2, &terms, |collective| {
            check_all_reduce(collective, 0, 0).unwrap();
            check_all_reduce(collective, 1, 100_000).unwrap();
            collective.all_gather(&vec![7; 300_000], &mut Vec::new()).unwrap();
        });
        assert_eq!(terms.entered.load(Ordering::SeqCst), 2 * 3, "{transport}");
    }
}
