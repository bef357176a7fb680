//! Streams between two workers, over real sockets: what comes is what was sent, in both directions at once.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use super::*;
use crate::refusals::Refusal;

const PATIENCE: Duration = Duration::from_secs(30);

fn door(authority: &Authority, folder: &std::path::Path, identity: &Identity) -> Result<PeerDoor, TlsError> {
    let issued = authority.issue(identity, &[], 1).unwrap();
    let stem = identity.to_string().replace([':', '/'], "_");
    let [certificate, key] = ["pem", "key"].map(|end| folder.join(format!("{stem}.{end}")));
    std::fs::write(&certificate, issued.certificate).unwrap();
    std::fs::write(&key, issued.key).unwrap();
    let files = PeerTlsFiles {
        authority: folder.join("ca.pem"),
        pair: KeyPairFiles { certificate, key },
    };
    PeerTls::open(files).map(|tls| PeerDoor::new(Some(tls)))
}

fn worker(id: &str) -> Identity {
    Identity::Worker(id.to_owned())
}

fn doors() -> [PeerDoor; 2] {
    let folder = tempfile::tempdir().unwrap();
    let (authority, own) = Authority::generate().unwrap();
    std::fs::write(folder.path().join("ca.pem"), own.certificate).unwrap();
    // They have read their files when the folder goes.
    ["w0", "w1"].map(|id| door(&authority, folder.path(), &worker(id)).unwrap())
}

fn sockets() -> [TcpStream; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let calling = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (answering, _) = listener.accept().unwrap();
    [calling, answering]
}

#[test]
fn a_shared_stream_carries_much_in_both_directions_at_once() {
    let [calling, answering] = sockets();
    let [caller, answerer] = doors();
    let called = std::thread::spawn(move || caller.shared(calling, Side::Calling, PATIENCE).unwrap());
    let answered = answerer.shared(answering, Side::Answering, PATIENCE).unwrap();
    let called = called.join().unwrap();
    let message = |seed: usize| -> Vec<u8> { (0..3_000_001).map(|index| ((index * seed) >> 3) as u8).collect() };
    std::thread::scope(|scope| {
        for (seed, stream) in [(5, called.clone()), (7, answered.clone())] {
            let mut stream = stream;
            scope.spawn(move || stream.write_all(&message(seed)).unwrap());
        }
        for (seed, stream) in [(7, called), (5, answered)] {
            let mut stream = stream;
            scope.spawn(move || {
                let mut found = vec![0; 3_000_001];
                // Much has come by then, and is not cut where records end.
                std::thread::sleep(Duration::from_millis(100));
                // In pieces that leave something behind in each record.
                for piece in found.chunks_mut(1000) {
                    stream.read_exact(piece).unwrap();
                }
                assert!(found == message(seed), "what came is not what was sent");
            });
        }
    });
}

#[test]
fn a_handshake_that_dribbles_ends_at_its_deadline() {
    let [mut calling, answering] = sockets();
    let [_, answerer] = doors();
    let deadline = Duration::from_millis(300);
    let begun = Instant::now();
    let answered = std::thread::spawn(move || answerer.shared(answering, Side::Answering, deadline));
    // The head of a record of 16 KiB, then one byte after the other.
    calling.write_all(&[22, 3, 1, 64, 0]).unwrap();
    while !answered.is_finished() {
        assert!(begun.elapsed() < PATIENCE, "it waits on");
        // It ends when the other side does.
        let _ = calling.write_all(&[1]);
        std::thread::sleep(Duration::from_millis(20));
    }
    let error = HandshakeError::from(answered.join().unwrap().unwrap_err());
    assert_eq!(error.refusal, Refusal::HandshakeTimeout, "{error}");
}

#[test]
fn a_certificate_of_another_role_opens_no_door_between_workers() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, own) = Authority::generate().unwrap();
    std::fs::write(folder.path().join("ca.pem"), own.certificate).unwrap();
    for identity in [
        Identity::Coordinator,
        Identity::Client("w0".to_owned()),
        Identity::Admin("w0".to_owned()),
    ] {
        let refused = door(&authority, folder.path(), &identity).unwrap_err();
        assert!(refused.to_string().contains(&identity.to_string()), "{refused}");
    }
}
