//! Whoever does not belong to the epoch is kept out, and keeps nobody out.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::group::*;
use crate::collective::endpoint::SegmentFile;
use crate::collective::{CollectiveError, Endpoint, EpochNonce, Listening, Seat, Terms, Transport};

fn foreign_seat(rank: usize, world_size: usize) -> Seat {
    Seat {
        nonce: EpochNonce(NONCE.0 ^ 1 << 40),
        ..seat(rank, world_size)
    }
}

#[test]
fn a_wrong_nonce_is_refused() {
    for transport in TRANSPORTS {
        let (host, host_endpoint) = Listening::prepare(transport, seat(0, 2)).unwrap();
        let (stranger, stranger_endpoint) = Listening::prepare(transport, foreign_seat(1, 2)).unwrap();
        let endpoints = [host_endpoint, stranger_endpoint];
        std::thread::scope(|scope| {
            let terms = Terms {
                connect_deadline: Duration::from_millis(200),
                ..patient_terms()
            };
            let (host_terms, host_endpoints) = (terms.clone(), &endpoints);
            let host = scope.spawn(move || host.connect(host_endpoints, host_terms));
            let refused = stranger.connect(&endpoints, terms);
            assert!(
                matches!(refused, Err(CollectiveError::Refused { rank: 0, .. })),
                "{transport} {refused:?}"
            );
            let waited = host.join().unwrap();
            let Err(CollectiveError::DeadlineExceeded { missing, .. }) = waited else {
                panic!("{transport} {waited:?}");
            };
            assert_eq!(missing, [1], "{transport}");
        });
    }
}

#[test]
fn strangers_on_the_line_harm_nobody() {
    let (listening, endpoints) = prepare(Transport::Tcp, 3);
    let address = endpoints[0].as_tcp().unwrap();
    let mut silent: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut loud: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
    for stranger in &mut loud {
        stranger
            .write_all(b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n")
            .unwrap();
    }
    (0..5).for_each(|_| drop(TcpStream::connect(address).unwrap()));
    run_ranks(listening, &endpoints, &patient_terms(), |collective| {
        check_all_reduce(collective, 5, 576).unwrap();
    });
    for stranger in silent.iter_mut().chain(&mut loud) {
        let mut answer = Vec::new();
        let _end_or_reset = stranger.read_to_end(&mut answer);
        assert!(answer.is_empty(), "strangers are told nothing");
    }
}

#[test]
fn a_place_is_taken_once() {
    let (first, first_endpoint) = Listening::prepare(Transport::SharedMemory, seat(0, 3)).unwrap();
    let (second, second_endpoint) = Listening::prepare(Transport::SharedMemory, seat(1, 3)).unwrap();
    let (twin, _) = Listening::prepare(Transport::SharedMemory, seat(1, 3)).unwrap();
    let endpoints = [first_endpoint, second_endpoint.clone(), second_endpoint];
    let terms = Terms {
        connect_deadline: Duration::from_millis(20),
        ..patient_terms()
    };
    assert!(matches!(
        second.connect(&endpoints, terms.clone()),
        Err(CollectiveError::DeadlineExceeded { missing, .. }) if missing == [0, 2]
    ));
    assert!(matches!(
        twin.connect(&endpoints, terms),
        Err(CollectiveError::Refused { rank: 1, .. })
    ));
    drop(first);
}

#[test]
fn a_segment_that_could_shrink_is_refused() {
    let (mut listening, mut endpoints) = prepare(Transport::SharedMemory, 2);
    let genuine = std::fs::File::open(endpoints[0].0.strip_prefix("shm:").unwrap()).unwrap();
    // The same bytes, but not sealed: whoever holds it could pull the pages away from under us.
    let file = rustix::fs::memfd_create(c"stranger", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let copied_bytes = std::io::copy(&mut &genuine, &mut std::fs::File::from(file.try_clone().unwrap())).unwrap();
    assert_eq!(copied_bytes, genuine.metadata().unwrap().len());
    endpoints[0] = Endpoint::segment(SegmentFile {
        process: std::process::id(),
        descriptor: file.as_raw_fd() as u32,
    });
    let outcome = listening.remove(1).connect(&endpoints, patient_terms());
    assert!(
        matches!(outcome, Err(CollectiveError::Refused { rank: 0, .. })),
        "{outcome:?}"
    );
}

#[test]
fn a_group_of_another_size_is_refused() {
    let (mut listening, endpoints) = prepare(Transport::SharedMemory, 2);
    let (other, _) = Listening::prepare(Transport::SharedMemory, seat(1, 3)).unwrap();
    let mut three = endpoints.clone();
    three.push(endpoints[1].clone());
    assert!(matches!(
        other.connect(&three, patient_terms()),
        Err(CollectiveError::Refused { rank: 0, .. })
    ));
    let too_few = listening.remove(0).connect(&endpoints[..1], patient_terms());
    assert!(matches!(too_few, Err(CollectiveError::BadSeat { .. })), "{too_few:?}");
}

#[test]
fn impossible_seats_are_refused() {
    for (transport, rank, world_size) in [
        (Transport::Tcp, 2, 2),
        (Transport::Solo, 0, 2),
        (Transport::Tcp, 0, 257),
        (Transport::Tcp, 0, 0),
    ] {
        let outcome = Listening::prepare(transport, seat(rank, world_size));
        assert!(
            matches!(outcome, Err(CollectiveError::BadSeat { .. })),
            "{transport} {rank} {world_size}"
        );
    }
}
