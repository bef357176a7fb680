//! Connections from strangers: bytes that mean nothing, words that never end, silence, and too many. None stops the cluster
//! from answering, and all end.

#![allow(clippy::unwrap_used)]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use kvasir_proto::v1::{self, generate_request::Prompt};
use kvasir_runtime::descriptors::raise_descriptor_limit;
use kvasir_tests::{
    certs::Certs, cluster_sandbox::ClusterSandbox, listening_ports::listening_ports, sim::dice::Dice,
    tiny_model::TinyModel,
};
use rustix::net::{AddressFamily, SocketType};
use serde_json::Value;
use tempfile::TempDir;

/// Longer than any bound on a connection; nothing waits for it unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn tiny() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TinyModel::default().write(&path).unwrap();
    (folder, path)
}

fn count(status: &Value, name: &str) -> u64 {
    status["counters"][name].as_u64().unwrap()
}

fn address_of(sandbox: &ClusterSandbox) -> SocketAddr {
    let (_, address) = sandbox.endpoint().split_once("://").unwrap();
    address.parse().unwrap()
}

/// As another host on loopback, so that its connections are not counted with those of workers and clients.
fn stranger_at(address: SocketAddr) -> TcpStream {
    let socket: OwnedFd = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    let own: SocketAddr = "127.0.0.9:0".parse().unwrap();
    rustix::net::bind(&socket, &own).unwrap();
    rustix::net::connect(&socket, &address).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Waits for the end of a connection. Panics if it does not come.
fn assert_ends(mut stream: TcpStream, what: &str) {
    let begun = Instant::now();
    let mut answer = [0; 4096];
    loop {
        match stream.read(&mut answer) {
            Ok(0) => return,
            Ok(_) => assert!(begun.elapsed() < PATIENCE, "{what}: it goes on"),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
            Err(error) => panic!("{what}: {error}"),
        }
    }
}

async fn assert_answers(sandbox: &ClusterSandbox) {
    let request = v1::GenerateRequest {
        prompt: Some(Prompt::TokenIds(v1::TokenIds { ids: vec![5, 6, 7] })),
        max_tokens: Some(4),
        ignore_eos: true,
        ..Default::default()
    };
    assert_eq!(sandbox.generate(request).await.unwrap().tokens.len(), 4);
}

#[tokio::test]
async fn what_is_no_http2_ends_and_what_dribbles_is_cut_off() {
    let (_folder, model) = tiny();
    let sandbox = ClusterSandbox::start(&model, 1, &[]);
    let address = address_of(&sandbox);
    // What never comes to its end begins first: all of them wait together.
    let silent = stranger_at(address);
    let mut half = stranger_at(address);
    half.write_all(&PREFACE[..PREFACE.len() - 1]).unwrap();
    let mut dribbling = stranger_at(address);
    let dribble = std::thread::spawn(move || {
        for byte in PREFACE.iter().cycle() {
            if dribbling.write_all(&[*byte]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(700));
        }
    });

    let mut dice = Dice::new(7);
    for _ in 0..20 {
        let mut noise = stranger_at(address);
        let bytes: Vec<u8> = (0..100).map(|_| dice.between(0, 255) as u8).collect();
        noise.write_all(&bytes).unwrap();
        assert_ends(noise, "noise");
    }
    let mut http1 = stranger_at(address);
    http1.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
    assert_ends(http1, "HTTP/1");
    // A frame that says it is longer than any may be.
    let mut giant = stranger_at(address);
    giant
        .write_all(&[PREFACE, &[0xff, 0xff, 0xff, 1, 4, 0, 0, 0, 1]].concat())
        .unwrap();
    assert_ends(giant, "a giant frame");

    let mut inference = sandbox.inference().await;
    let mut wordy = tonic::Request::new(v1::TokenizeRequest::default());
    let value = "x".repeat(60_000).parse().unwrap();
    wordy.metadata_mut().insert("wordy", value);
    assert!(inference.tokenize(wordy).await.is_err(), "60 kB of headers");
    let big = v1::TokenizeRequest {
        text: "x".repeat(5 << 20),
        ..Default::default()
    };
    assert!(inference.tokenize(big).await.is_err(), "5 MiB of a message");
    assert_answers(&sandbox).await;

    let waited = tokio::task::spawn_blocking(move || {
        assert_ends(silent, "silence");
        assert_ends(half, "half of a preface");
        dribble.join().unwrap();
    });
    waited.await.unwrap();
    let counted = |status: &Value| count(status, "refused_slow_connection") >= 3;
    let status = sandbox.until("the slow ones to be counted", counted).await;
    assert_eq!(count(&status, "refused_slow_connection"), 3, "{status:#}");
    assert_answers(&sandbox).await;
}

#[tokio::test]
async fn a_handshake_that_does_not_come_or_dribbles_is_cut_off_and_holds_nobody_up() {
    let (_folder, model) = tiny();
    let certs = Certs::make(&[]);
    let sandbox = ClusterSandbox::start_encrypted(&model, 1, &[], &certs);
    let address = address_of(&sandbox);
    let silent: Vec<TcpStream> = (0..50).map(|_| stranger_at(address)).collect();
    let mut begun = stranger_at(address);
    // The head of a record of 512 bytes, and nothing of them.
    begun.write_all(&[22, 3, 1, 2, 0]).unwrap();
    let mut plain = stranger_at(address);
    plain.write_all(PREFACE).unwrap();
    assert_ends(plain, "HTTP/2 without TLS");
    assert_answers(&sandbox).await;
    let waited = tokio::task::spawn_blocking(move || {
        silent.into_iter().for_each(|stream| assert_ends(stream, "silence"));
        assert_ends(begun, "a record that does not come");
    });
    waited.await.unwrap();
    let counted = |status: &Value| count(status, "refused_handshake_timeout") == 51;
    let status = sandbox.until("the slow ones to be counted", counted).await;
    assert_eq!(count(&status, "refused_bad_handshake"), 1, "{status:#}");
}

#[tokio::test]
async fn a_thousand_idle_connections_keep_nobody_out_and_one_beyond_the_bound_is_closed_at_once() {
    raise_descriptor_limit();
    let (_folder, model) = tiny();
    let sandbox = ClusterSandbox::start(&model, 1, &[]);
    let address = address_of(&sandbox);
    let preface = [PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    let idle: Vec<TcpStream> = (0..1000)
        .map(|_| {
            let mut stream = stranger_at(address);
            stream.write_all(&preface).unwrap();
            stream
        })
        .collect();
    assert_answers(&sandbox).await;
    // 24 more fit; the bound is of one client, so others still come in.
    let more: Vec<TcpStream> = (0..40).map(|_| stranger_at(address)).collect();
    let refused = |status: &Value| count(status, "refused_too_many_connections") >= 16;
    let status = sandbox.until("those beyond the bound", refused).await;
    assert_eq!(count(&status, "refused_too_many_connections"), 16, "{status:#}");
    for stream in more.into_iter().skip(24) {
        assert_ends(stream, "beyond the bound");
    }
    assert_answers(&sandbox).await;
    // Seats come back.
    drop(idle);
    let comes_in = || {
        let mut stream = stranger_at(address);
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let sent = stream.write_all(&preface);
        sent.is_ok() && stream.read(&mut [0; 9]).is_ok_and(|bytes| bytes > 0)
    };
    let begun = Instant::now();
    while !comes_in() {
        assert!(begun.elapsed() < PATIENCE, "the seats do not come back");
    }
}

/// A worker's port for cells, with and without certificates.
#[tokio::test]
async fn strangers_at_a_workers_port_are_refused_told_of_and_counted() {
    let (_folder, model) = tiny();
    let certs = Certs::make(&[]);
    for sandbox in [
        ClusterSandbox::start(&model, 2, &["--transport", "tcp"]),
        ClusterSandbox::start_encrypted(&model, 2, &["--transport", "tcp"], &certs),
    ] {
        let ports: Vec<SocketAddr> = sandbox
            .worker_pids()
            .iter()
            .flat_map(|pid| listening_ports(*pid))
            .collect();
        assert_eq!(
            ports.len(),
            2,
            "one for cells; that for sums is open while ranks meet: {ports:?}"
        );
        for address in &ports {
            assert!(address.ip().is_loopback(), "{address}");
            for words in [&[b'G'; 200][..], b"Kvxf", b"KvsrTcp1"] {
                let mut stranger = stranger_at(*address);
                stranger.write_all(words).unwrap();
                // The worker may have seen enough, and be gone already.
                let _ = stranger.shutdown(std::net::Shutdown::Write);
                assert_ends(stranger, "a stranger");
            }
        }
        let counted = |status: &Value| count(status, "cells_refused_ticket") == 6;
        sandbox.until("six strangers", counted).await;
        let told = sandbox.log().matches("reason=\"refused_transfer_stranger\"").count();
        assert_eq!(told, 6, "{}", sandbox.log());
        assert_answers(&sandbox).await;
    }
}
