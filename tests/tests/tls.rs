//! Certificates on every link: the same answers, nobody in without the right one, and new ones without a restart.

#![allow(clippy::unwrap_used)]

use std::{net::SocketAddr, time::Duration};

use kvasir_proto::v1::{
    self, admin_client::AdminClient, cluster_client::ClusterClient, inference_client::InferenceClient,
};
use kvasir_runtime::tls::ClientTls;
use kvasir_tests::{
    certs::{Certs, dial},
    cluster_sandbox::{ClusterSandbox, kvasir},
    default_model, story,
    tiny_model::TinyModel,
};
use serde_json::Value;
use tempfile::TempDir;
use tonic::{Code, Status, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

fn tiny() -> (TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TinyModel::default().write(&path).unwrap();
    (folder, path)
}

fn count(status: &Value, name: &str) -> u64 {
    status["counters"][name]
        .as_u64()
        .unwrap_or_else(|| panic!("no counter {name}"))
}

/// What comes of a question by a client that shows this.
async fn ask(endpoint: &str, tls: &ClientTls) -> Result<(), Status> {
    let channel = dial(endpoint, Some(tls)).await;
    let channel = channel.map_err(|error| Status::unavailable(format!("{error:?}")))?;
    tokenize(channel).await
}

async fn tokenize(channel: Channel) -> Result<(), Status> {
    let request = v1::TokenizeRequest {
        text: "a".to_owned(),
        ..Default::default()
    };
    InferenceClient::new(channel).tokenize(request).await.map(drop)
}

#[tokio::test]
async fn a_story_goes_from_group_to_group_through_shared_memory_behind_certificates_and_changes_no_bit() {
    let certs = Certs::make(&[]);
    let flags = ["--no-rebalance", "--groups", "1,1"];
    let sandbox = ClusterSandbox::start_encrypted(&default_model(), 2, &flags, &certs);
    assert!(sandbox.endpoint().starts_with("https://"));
    let request = v1::GenerateRequest {
        request_id: "story".to_owned(),
        ..story::request()
    };
    let telling = sandbox.generate(request);
    let moving = async {
        let told = |status: &Value| status["sequences"][0]["tokens"].as_u64() > Some(20);
        let status = sandbox.until("the story to be told", told).await;
        let target = 1 - status["sequences"][0]["group"].as_u64().unwrap() as u32;
        let request = v1::MigrateRequest {
            request_id: "story".to_owned(),
            target_group: Some(target),
        };
        let moved = AdminClient::new(sandbox.channel().await).migrate(request).await;
        moved.unwrap().into_inner().migrations
    };
    let (answer, migrations) = tokio::join!(telling, moving);
    // It began with the admin's name: a tenant of its own, and the same bits.
    assert_eq!(answer.as_ref().unwrap().descriptor.tenant, "admin");
    story::assert_undisturbed(&answer.unwrap(), "certificates on every link");
    assert_eq!(migrations[0].outcome, "moved", "{migrations:?}");
    let status = sandbox.status();
    assert!(count(&status, "transfer_bytes") > 0, "{status:#}");
    assert_eq!(
        count(&status, "transfer_shared_bytes"),
        count(&status, "transfer_bytes")
    );
    assert_eq!(count(&status, "cells_adopted"), count(&status, "cells_planned"));
}

#[tokio::test]
async fn whoever_shows_no_certificate_or_a_wrong_one_is_refused_at_once_told_of_and_counted() {
    let (_folder, model) = tiny();
    let (certs, others) = (Certs::make(&[]), Certs::make(&[]));
    certs.again(&["--clients", "late", "--valid-days", "-1"]);
    let sandbox = ClusterSandbox::start_encrypted(&model, 2, &["--transport", "tcp"], &certs);
    let endpoint = sandbox.endpoint();
    assert!(ask(endpoint, &certs.tls(Some("client"))).await.is_ok());

    let refusals = [
        (certs.tls(None), Some(Code::Unauthenticated), "refused_no_certificate"),
        (certs.tls_showing(Some(others.pair("client"))), None, "refused_wrong_ca"),
        (certs.tls(Some("client-late")), None, "refused_expired"),
        (
            certs.tls(Some("worker-w0")),
            Some(Code::PermissionDenied),
            "refused_not_allowed",
        ),
    ];
    for (tls, code, counter) in &refusals {
        let before = count(&sandbox.status(), counter);
        let refused = ask(endpoint, tls).await.unwrap_err();
        // What ends in the handshake has no status of ours.
        assert!(code.is_none_or(|code| refused.code() == code), "{counter}: {refused:?}");
        let counted = |status: &Value| count(status, counter) > before;
        sandbox.until(counter, counted).await;
        assert!(sandbox.log().contains(&format!("reason=\"{counter}\"")), "{counter}");
    }
    let unbelieving = ask(endpoint, &others.tls(Some("client"))).await.unwrap_err();
    assert!(unbelieving.message().contains("BadSignature") || unbelieving.message().contains("UnknownIssuer"));

    let client = dial(endpoint, Some(&certs.tls(Some("client")))).await.unwrap();
    let status = AdminClient::new(client.clone()).status(v1::StatusRequest {}).await;
    assert_eq!(status.unwrap_err().code(), Code::PermissionDenied);
    let joined = ClusterClient::new(client).join(tokio_stream::empty()).await;
    assert_eq!(joined.unwrap_err().code(), Code::PermissionDenied);
    let nobody = dial(endpoint, Some(&certs.tls(None))).await.unwrap();
    let joined = ClusterClient::new(nobody.clone()).join(tokio_stream::empty()).await;
    assert_eq!(joined.unwrap_err().code(), Code::Unauthenticated);
    let health = HealthClient::new(nobody).check(HealthCheckRequest::default()).await;
    assert!(health.is_ok(), "health is for everybody: {health:?}");
    assert!(ask(endpoint, &certs.tls(Some("client"))).await.is_ok());
}

#[test]
fn a_worker_cannot_join_as_another_one_or_with_a_clients_certificate() {
    let (_folder, model) = tiny();
    let certs = Certs::make(&[]);
    let sandbox = ClusterSandbox::start_encrypted(&model, 1, &[], &certs);
    let join = |id: &str, stem: &str| {
        let model = model.to_str().unwrap();
        let mut args = vec![
            "worker",
            "--model",
            model,
            "--coordinator",
            sandbox.endpoint(),
            "--id",
            id,
        ];
        let flags = certs.flags_of(stem);
        args.extend(flags.iter().map(String::as_str));
        let output = kvasir(args);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let error = join("w1", "worker-w0");
    assert!(
        error.contains("worker `w1` shows a certificate of kvasir://worker/w0"),
        "{error}"
    );
    assert_eq!(count(&sandbox.status(), "refused_other_identity"), 1);
    let error = join("client", "client");
    assert!(error.contains("expected one for a worker"), "{error}");
    assert_eq!(sandbox.status()["spares"].as_array().unwrap().len(), 0);
}

#[test]
fn the_flags_of_certificates_are_checked_before_anything_listens() {
    let (_folder, model) = tiny();
    let certs = Certs::make(&[]);
    let (model, dir) = (model.to_str().unwrap(), certs.dir());
    let up = |flags: &[&str]| {
        let output = kvasir([&["up", "--model", model, "--grpc", "127.0.0.1:0"], flags].concat());
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let error = up(&["--workers", "3", "--tls-dir", dir]);
    assert!(
        error.contains("no certificate for worker w2") && error.contains("--workers w2"),
        "{error}"
    );
    let error = up(&["--tls-dir", "/nowhere"]);
    assert!(error.contains("cannot read /nowhere/coordinator.pem"), "{error}");
    let pair = certs.pair("coordinator");
    let [cert, key] = [&pair.certificate, &pair.key].map(|file| file.to_str().unwrap());
    let error = up(&["--tls-cert", cert, "--tls-key", key]);
    assert!(error.contains("--tls-dir"), "{error}");
    let role = |flags: &[&str]| {
        let output = kvasir([&["coordinator", "--model", model, "--grpc", "0.0.0.0:0"], flags].concat());
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(role(&[]).contains("neither encrypted nor authenticated"));
    assert!(role(&["--tls-cert", cert, "--tls-key", key]).contains("anybody may make them"));
    let worker = |flags: &[&str]| {
        let advertised = ["worker", "--model", model, "--coordinator", "http://127.0.0.1:1"];
        let output = kvasir([&advertised, flags].concat());
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(worker(&["--advertise", "10.0.0.1"]).contains("without encryption"));
    let swapped = up(&["--tls-cert", key, "--tls-key", cert, "--workers", "1"]);
    assert!(swapped.contains("error"), "{swapped}");
}

/// What the coordinator shows, as it is in its file.
async fn shown(address: SocketAddr, tls: &ClientTls) -> Vec<u8> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let stream = tls.connect("localhost", stream).await.unwrap();
    let (_, connection) = stream.get_ref();
    connection.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn a_certificate_that_is_replaced_is_shown_without_a_restart_and_a_broken_one_never() {
    let (_folder, model) = tiny();
    let certs = Certs::make(&[]);
    let sandbox = ClusterSandbox::start_encrypted(&model, 1, &[], &certs);
    let address: SocketAddr = sandbox.endpoint().strip_prefix("https://").unwrap().parse().unwrap();
    let tls = certs.tls(Some("client"));
    let first = shown(address, &tls).await;
    assert_eq!(shown(address, &tls).await, first);

    certs.again(&["--renew"]);
    let second = shown(address, &tls).await;
    assert_ne!(second, first);

    std::fs::write(certs.pair("coordinator").certificate, "no certificate").unwrap();
    assert_eq!(shown(address, &tls).await, second);
    assert!(
        sandbox.log().contains("what was read before stays"),
        "{}",
        sandbox.log()
    );
    assert!(ask(sandbox.endpoint(), &tls).await.is_ok());

    // Another authority: what the old one signed is not believed any more, though nothing was started anew.
    let old = ClientTls::open(kvasir_runtime::tls::ClientTlsFiles {
        authority: certs.path("ca.pem"),
        pair: Some(copied(&certs, "client")),
    });
    let old = old.unwrap();
    assert!(ask(sandbox.endpoint(), &old).await.is_ok());
    certs.again(&["--new-ca"]);
    assert!(ask(sandbox.endpoint(), &certs.tls(Some("client"))).await.is_ok());
    assert!(ask(sandbox.endpoint(), &old).await.is_err());
    // The worker is still there: who is in stays in, until it connects again.
    tokio::time::timeout(Duration::from_secs(10), async {
        let request = v1::GenerateRequest {
            prompt: Some(v1::generate_request::Prompt::TokenIds(v1::TokenIds { ids: vec![5, 6] })),
            max_tokens: Some(2),
            ..Default::default()
        };
        let channel = dial(sandbox.endpoint(), Some(&certs.tls(Some("client"))))
            .await
            .unwrap();
        let mut stream = InferenceClient::new(channel)
            .generate(request)
            .await
            .unwrap()
            .into_inner();
        while stream.message().await.unwrap().is_some() {}
    })
    .await
    .expect("an answer");
}

fn copied(certs: &Certs, stem: &str) -> kvasir_runtime::tls::KeyPairFiles {
    let pair = certs.pair(stem);
    let [certificate, key] = ["copied.pem", "copied.key"].map(|name| certs.path(name));
    std::fs::copy(pair.certificate, &certificate).unwrap();
    std::fs::copy(pair.key, &key).unwrap();
    kvasir_runtime::tls::KeyPairFiles { certificate, key }
}
