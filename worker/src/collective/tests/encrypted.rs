//! With certificates, whoever has none of the cluster's is no rank: not even one that knows the epoch's nonce.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use kvasir_runtime::refusals::Refusal;
use kvasir_runtime::tls::{Identity, PeerDoor, PeerTls, PeerTlsFiles};

use super::certificates::Certificates;
use super::group::*;
use crate::collective::{CollectiveError, Listening, Terms, Transport};

/// What a host of two ranks counts while a guest with these certificates, or without, knocks with the right nonce.
fn refused_by_host(host_door: &PeerDoor, guest_door: PeerDoor) -> CollectiveError {
    let (host, host_endpoint) = Listening::prepare(Transport::Tcp, seat(0, 2)).unwrap();
    let (guest, guest_endpoint) = Listening::prepare(Transport::Tcp, seat(1, 2)).unwrap();
    let (host, guest) = (host.behind(host_door.clone()), guest.behind(guest_door));
    let endpoints = [host_endpoint, guest_endpoint];
    let terms = Terms {
        connect_deadline: Duration::from_secs(30),
        ..patient_terms()
    };
    std::thread::scope(|scope| {
        let (host_terms, host_endpoints) = (terms.clone(), &endpoints);
        let host = scope.spawn(move || host.connect(host_endpoints, host_terms));
        let refused = guest.connect(&endpoints, terms.clone()).unwrap_err();
        // The host goes on waiting for its peer: the stranger was none.
        terms.abort.abort();
        let waited = host.join().unwrap();
        assert!(matches!(waited, Err(CollectiveError::Aborted)), "{waited:?}");
        refused
    })
}

#[test]
fn a_peer_without_a_certificate_with_a_foreign_or_expired_one_or_one_of_a_client_is_refused_and_counted() {
    let (ours, theirs) = (Certificates::new(), Certificates::new());
    let mixed = PeerTlsFiles {
        pair: theirs.pair(&Identity::Worker("w1".to_owned()), 1),
        ..ours.files(ours.pair(&Identity::Worker("w1".to_owned()), 1))
    };
    let mixed = PeerDoor::new(Some(PeerTls::open(mixed).unwrap()));
    let expired = ours.pair(&Identity::Worker("w1".to_owned()), -1);
    let expired = PeerDoor::new(Some(PeerTls::open(ours.files(expired)).unwrap()));
    for (guest, refusal) in [
        (PeerDoor::default(), Refusal::CollectiveStranger),
        // It does not believe the host, and says so.
        (theirs.worker("w1"), Refusal::CollectiveStranger),
        (mixed, Refusal::WrongCa),
        (expired, Refusal::Expired),
    ] {
        let host = ours.worker("w0");
        let error = refused_by_host(&host, guest);
        assert!(
            matches!(error, CollectiveError::Refused { rank: 0, .. }),
            "{refusal:?} {error:?}"
        );
        assert_eq!(host.refusals().count(refusal), 1, "{refusal:?} {error:?}");
    }
    let client = ours.pair(&Identity::Client("ada".to_owned()), 1);
    let error = PeerTls::open(ours.files(client)).unwrap_err();
    assert!(error.to_string().contains("expected one for a worker"), "{error}");
}

#[test]
fn strangers_on_an_encrypted_line_harm_nobody_and_are_told_nothing_of_the_epoch() {
    let (listening, endpoints) = prepare(Line::Tls, 3);
    let address = endpoints[0].as_tcp().unwrap();
    let _silent: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut loud: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
    for stranger in &mut loud {
        // What a rank would say without TLS.
        stranger.write_all(b"KvsrTcp1").unwrap();
        stranger.write_all(&NONCE.0.to_le_bytes()).unwrap();
        stranger.write_all(&[1, 0, 0, 0, 3, 0, 0, 0]).unwrap();
    }
    run_ranks(listening, &endpoints, &patient_terms(), |collective| {
        check_all_reduce(collective, 5, 576).unwrap();
    });
    for stranger in &mut loud {
        let mut answer = Vec::new();
        let _end_or_reset = stranger.read_to_end(&mut answer);
        // At most an alert, which says that this is no handshake.
        assert!(answer.len() <= 7, "{answer:02x?}");
    }
}
