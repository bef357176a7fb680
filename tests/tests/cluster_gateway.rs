//! A gateway in front of coordinators: an answer whose coordinator dies goes on, to the bit, at another one or at the one
//! that takes its place.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use kvasir_tests::{
    cluster_sandbox::{ClusterSandbox, KvasirProcess, kvasir},
    http_answer::{HttpStream, completion},
    moving, parity,
    rank_group::Generation,
};
use serde_json::Value;

/// Pieces that have come when the coordinator dies.
const PIECES: usize = 5;

/// The longest answer, and its digest. Completions name likely tokens by their texts, and a digest holds their ids.
fn longest() -> (Generation, String) {
    let all = moving::generations().into_iter().zip(moving::digests());
    let plain = all.filter(|(generation, _)| generation.sampling.top_logprobs == 0);
    plain.max_by_key(|(generation, _)| generation.max_tokens).unwrap()
}

fn gateway(endpoints: &[&str], folder: &Path) -> (KvasirProcess, String) {
    let mut args = vec!["gateway", "--http", "127.0.0.1:0", "--json"];
    for endpoint in endpoints {
        args.extend(["--coordinator", endpoint]);
    }
    let (gateway, line) = KvasirProcess::start_and_read_line(&args, folder.join("gateway.log"));
    let line: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no line: {}", gateway.log()));
    (gateway, line["http"].as_str().unwrap().to_owned())
}

fn counter(status: &Value, name: &str) -> u64 {
    status["counters"][name].as_u64().unwrap()
}

/// Reads to the end.
fn rest(mut stream: HttpStream, digest: &str) {
    while stream.read() {}
    assert_eq!(parity::digest(&stream.to_parity()), digest);
    assert_eq!(stream.finish_reason.as_deref(), Some("length"));
    let told = stream.usage.unwrap()["completion_tokens"].as_u64();
    assert_eq!(told, Some(stream.tokens.len() as u64));
}

#[test]
fn an_answer_goes_on_at_another_coordinator_when_its_own_dies() {
    let folder = tempfile::tempdir().unwrap();
    let model = kvasir_tests::default_model();
    let mut clusters = [
        ClusterSandbox::start(&model, 1, &[]),
        ClusterSandbox::start(&model, 2, &[]),
    ];
    let endpoints = clusters.each_ref().map(ClusterSandbox::endpoint);
    let (_gateway, http) = gateway(&endpoints, folder.path());
    let (generation, digest) = longest();
    rest(HttpStream::open(&http, &completion(&generation)), &digest);

    let mut stream = HttpStream::open(&http, &completion(&generation));
    for _ in 0..PIECES {
        assert!(stream.read());
    }
    let tells = |cluster: &ClusterSandbox| !cluster.status()["sequences"].as_array().unwrap().is_empty();
    let teller = clusters.iter().position(tells).expect("somebody tells the answer");
    let other = 1 - teller;
    let before = counter(&clusters[other].status(), "finished");
    clusters[teller].kill_up();
    rest(stream, &digest);
    assert_eq!(counter(&clusters[other].status(), "finished"), before + 1);
    // New requests go to the one that is left, also those whose turn it is to go to the other.
    for _ in 0..2 {
        rest(HttpStream::open(&http, &completion(&generation)), &digest);
    }
}

#[test]
fn an_answer_goes_on_when_its_coordinator_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let model = kvasir_tests::default_model();
    let model = model.to_str().unwrap();
    let coordinator = |address: &str, log: &str| {
        let args = [
            "coordinator",
            "--json",
            "--model",
            model,
            "--workers",
            "2",
            "--grpc",
            address,
        ];
        KvasirProcess::start_and_read_line(&args, folder.path().join(log))
    };
    let (mut first, line) = coordinator("127.0.0.1:0", "first.log");
    let line: Value = serde_json::from_str(&line).unwrap();
    let endpoint = line["grpc"].as_str().unwrap().to_owned();
    let worker = |id: &str| {
        let args = ["worker", "--model", model, "--coordinator", &endpoint, "--id", id];
        KvasirProcess::start(&args, folder.path().join(format!("{id}.log")))
    };
    let _workers = [worker("a"), worker("b")];
    let (_gateway, http) = gateway(&[&endpoint], folder.path());
    let ready = format!("{http}/ready");
    while ureq::get(&ready).call().is_err() {
        std::thread::yield_now();
    }

    let (generation, digest) = longest();
    let mut stream = HttpStream::open(&http, &completion(&generation));
    for _ in 0..PIECES {
        assert!(stream.read());
    }
    first.kill();
    let (_second, line) = coordinator(endpoint.trim_start_matches("http://"), "second.log");
    assert!(!line.is_empty());
    rest(stream, &digest);
    let status = kvasir(["status", "--json", "--endpoint", &endpoint]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    // It was not there when the answer began.
    assert_eq!(counter(&status, "finished"), 1);
}
