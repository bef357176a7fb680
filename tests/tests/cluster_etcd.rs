//! Several coordinators and an etcd: answers go on to the bit when the leader dies, when another one takes over, and while
//! etcd is away; whoever leads by an old term is refused; no process is started anew.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use kvasir_proto::v1::{DrainRequest, admin_client::AdminClient, inference_client::InferenceClient};
use kvasir_runtime::registry::records::{GROUPS, LEADER, LeaderRecord, to_json};
use kvasir_tests::{
    certs::{Certs, dial},
    cluster_sandbox::{GrpcAnswer, KvasirProcess, kvasir, request_of},
    etcd_cluster::{EtcdCluster, Telling, coordinator, status_of},
    etcd_server::EtcdServer,
    moving, parity,
    rank_group::Generation,
};
use serde_json::Value;

/// Tokens that have come when something happens.
const TOKENS: usize = 5;
const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// The longest answer, and its digest.
fn longest() -> (Generation, String) {
    let all = moving::generations().into_iter().zip(moving::digests());
    all.max_by_key(|(generation, _)| generation.max_tokens).unwrap()
}

fn start(coordinators: u32) -> EtcdCluster {
    EtcdCluster::start(&kvasir_tests::default_model(), coordinators, 3, &[])
}

fn counter(status: &Value, name: &str) -> u64 {
    status["counters"][name].as_u64().unwrap()
}

fn term(status: &Value) -> u64 {
    status["leader_term"].as_u64().unwrap()
}

fn epoch_term(status: &Value) -> u64 {
    status["groups"][0]["epoch"]["term"].as_u64().unwrap()
}

/// Of the ranks, by worker.
fn rank_pids(status: &Value) -> Vec<u32> {
    let ranks = status["groups"][0]["ranks"].as_array().unwrap().iter();
    let mut pids: Vec<u32> = ranks.map(|rank| rank["pid"].as_u64().unwrap() as u32).collect();
    pids.sort_unstable();
    pids
}

async fn ends_as(telling: &mut Telling, digest: &str) {
    assert_eq!(telling.finish().await, digest);
}

/// Waits for what only looking tells. Panics if it does not come.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(POLL).await;
    }
}

fn log_of(process: &KvasirProcess, word: &str) -> bool {
    process.log().contains(word)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_on_at_a_standby_when_the_leader_is_killed() {
    let mut cluster = start(2);
    let (generation, digest) = longest();
    let leader = cluster.leader();
    let standby = 1 - leader;
    let before = cluster.status(leader);
    let pids = cluster.worker_pids();
    assert_eq!(rank_pids(&before), pids);
    assert!(epoch_term(&before) >= term(&before));

    // A standby says who leads, shows its cluster, hands on what it is asked, and takes no workers.
    let beside = cluster.status(standby);
    assert_eq!(beside["leader_name"], cluster.coordinators[leader].name);
    assert_eq!(
        (&beside["leader"], &beside["coordinator"]),
        (&false.into(), &cluster.coordinators[standby].name.as_str().into())
    );
    assert_eq!(beside["groups"], before["groups"]);
    assert_eq!(beside["registry"], "etcd, connected");
    let url = cluster.coordinators[standby].url.clone();
    let model = kvasir_tests::default_model();
    let args = [
        "worker",
        "--model",
        model.to_str().unwrap(),
        "--coordinator",
        &url,
        "--id",
        "lost",
    ];
    let lost = KvasirProcess::start(&args, cluster.folder().join("lost.log"));
    let told = format!("does not lead; {} does", cluster.coordinators[leader].name);
    until("a refusal", async || log_of(&lost, &told)).await;
    drop(lost);

    let mut telling = cluster.begin(&generation).await;
    telling.until(TOKENS).await;
    cluster.coordinators[leader].process.kill();
    ends_as(&mut telling, &digest).await;
    assert!(telling.resumes > 0);
    let after = cluster.status(standby);
    assert_eq!((&after["leader"], &after["ready"]), (&true.into(), &true.into()));
    assert!(term(&after) > term(&before), "{after:#}");
    assert!(epoch_term(&after) > epoch_term(&before));
    assert_eq!((rank_pids(&after), cluster.worker_pids()), (pids.clone(), pids));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_steps_down_for_a_higher_term_and_hands_on_what_it_is_asked() {
    let cluster = start(2);
    let (generation, digest) = longest();
    let leader = cluster.leader();
    let next = &cluster.coordinators[1 - leader];
    let before = cluster.status(leader);
    let mut telling = cluster.begin(&generation).await;
    telling.until(TOKENS).await;

    // By hand, in the other one's name: it takes it for its own, and leads.
    let registry = cluster.registry();
    let record = to_json(&LeaderRecord {
        name: next.name.clone(),
        url: next.url.clone(),
        term: term(&before) + 100,
    });
    until("a record over the leader's", async || {
        let version = registry.get(LEADER).await.unwrap().map(|entry| entry.version);
        registry.put_if(LEADER, &record, version).await.unwrap().is_some()
    })
    .await;
    ends_as(&mut telling, &digest).await;
    assert!(telling.resumes > 0);
    let after = cluster.wait_for(1 - leader, "the new leader", |status| status["leader"] == true);
    assert!(term(&after) > term(&before) + 100);
    assert_eq!(rank_pids(&after), cluster.worker_pids());

    // The old one lives, and hands on.
    let beside = cluster.wait_for(leader, "a standby", |status| status["leader"] == false);
    assert_eq!(beside["leader_name"], next.name);
    let finished = counter(&cluster.status(1 - leader), "finished");
    let url = cluster.coordinators[leader].url.clone();
    let said = kvasir([
        "generate",
        "--endpoint",
        &url,
        "--prompt",
        "Once",
        "--max-tokens",
        "3",
        "--json",
    ]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert_eq!(counter(&cluster.status(1 - leader), "finished"), finished + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_of_an_old_term_is_refused_by_every_worker() {
    let model = kvasir_tests::default_model();
    let etcd = EtcdServer::start();
    // Terms are not below the revision: in this etcd things have happened.
    for _ in 0..20 {
        let registry = etcd.registry();
        let version = registry.get("past").await.unwrap().map(|entry| entry.version);
        registry.put_if("past", "something", version).await.unwrap().unwrap();
    }
    let cluster = EtcdCluster::start_in(etcd, &model, 1, 3, &[]);
    let (generation, digest) = longest();
    let before = cluster.status(0);
    // It leads in an etcd of its own, with a term that the workers have left behind.
    let elsewhere = EtcdServer::start();
    let old = coordinator(&model, &elsewhere.url(), "old", 3, &[], cluster.folder());
    until("another leader", async || status_of(&old.url)["leader"] == true).await;
    let old_term = term(&status_of(&old.url));
    assert!(old_term < term(&before), "{old_term} {}", term(&before));

    let mut telling = cluster.begin(&generation).await;
    telling.until(TOKENS).await;
    let registry = cluster.registry();
    let record = to_json(&LeaderRecord {
        name: old.name.clone(),
        url: old.url.clone(),
        term: old_term,
    });
    // The leader writes its own over it at once, so a worker may not have seen it.
    until("all workers to refuse", async || {
        registry
            .put_if(
                LEADER,
                &record,
                registry.get(LEADER).await.unwrap().map(|entry| entry.version),
            )
            .await
            .unwrap();
        cluster.workers.iter().all(|worker| log_of(worker, "leader refused"))
    })
    .await;
    ends_as(&mut telling, &digest).await;
    assert_eq!(telling.resumes, 0);
    until("the leader's own record", async || {
        let leader = cluster.view().await.leader();
        leader.is_some_and(|leader| leader.name == "c0")
    })
    .await;
    let after = cluster.status(0);
    assert_eq!((after["leader"] == true, counter(&after, "ranks_lost")), (true, 0));
    assert_eq!(epoch_term(&after), epoch_term(&before));
    let nobody = status_of(&old.url);
    assert_eq!(nobody["groups"][0]["ranks"].as_array().unwrap().len(), 0);
    assert_eq!(counter(&nobody, "epochs"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_is_away_or_loses_everything_changes_nothing() {
    let mut cluster = start(2);
    let (generation, digest) = longest();
    let leader = cluster.leader();
    let before = cluster.status(leader);
    let mut telling = cluster.begin(&generation).await;
    telling.until(TOKENS).await;
    cluster.etcd.kill();
    let away = |status: &Value| {
        status["registry"]
            .as_str()
            .is_some_and(|state| state.starts_with("etcd, away since"))
    };
    cluster.wait_for(leader, "an etcd that is away", away);
    ends_as(&mut telling, &digest).await;
    let mut telling = cluster.begin(&generation).await;
    telling.until(TOKENS).await;
    cluster.etcd.restart_empty();
    until("the leader's record", async || {
        let leader = cluster.view().await.leader();
        leader.is_some_and(|leader| leader.term == term(&before))
    })
    .await;
    ends_as(&mut telling, &digest).await;
    assert_eq!(telling.resumes, 0);
    until("everybody's record", async || {
        let view = cluster.view().await;
        let count = |under: &str| view.entries.keys().filter(|name| name.starts_with(under)).count();
        (count("workers/"), count("coordinators/")) == (3, 2)
    })
    .await;
    let after = cluster.status(leader);
    assert_eq!((after["leader"] == true, counter(&after, "ranks_lost")), (true, 0));
    assert_eq!(
        (term(&after), &after["groups"][0]["epoch"]),
        (term(&before), &before["groups"][0]["epoch"])
    );
    assert_eq!(cluster.leader(), leader);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sizes_of_groups_are_in_the_registry_and_followed_from_there() {
    let cluster = start(1);
    let ranks = |status: &Value| status["groups"][0]["ranks"].as_array().unwrap().len();
    until("the groups as the flags say", async || {
        let groups = cluster.view().await.groups();
        groups.is_some_and(|groups| groups.groups[0].size == 3)
    })
    .await;
    let url = &cluster.coordinators[0].url;
    let smaller = kvasir(["reshard", "--endpoint", url, "--group", "0", "--ranks", "2"]);
    assert!(smaller.status.success(), "{}", String::from_utf8_lossy(&smaller.stderr));
    let entry = cluster.registry().get(GROUPS).await.unwrap().unwrap();
    assert_eq!(cluster.view().await.groups().unwrap().groups[0].size, 2);
    // By hand.
    let bigger = entry.value.replace("\"size\":2", "\"size\":3");
    cluster
        .registry()
        .put_if(GROUPS, &bigger, Some(entry.version))
        .await
        .unwrap()
        .unwrap();
    cluster.wait_for(0, "three ranks", |status| ranks(status) == 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_certificates_a_standby_asks_in_the_name_of_whoever_asked_it() {
    let model = kvasir_tests::default_model();
    let (certs, folder) = (Certs::make(&[]), tempfile::tempdir().unwrap());
    let etcd = EtcdServer::start_encrypted(&certs);
    let files = |stem: &str| {
        let flags = certs.flags_of(stem).into_iter();
        flags.map(|flag| flag.replace("--tls-", "--etcd-")).collect::<Vec<_>>()
    };
    let flags = files("coordinator");
    let flags: Vec<&str> = [
        vec!["--tls-dir", certs.dir()],
        flags.iter().map(String::as_str).collect(),
    ]
    .concat();
    let start = |name: &str| coordinator(&model, &etcd.url(), name, 2, &flags, folder.path());
    let coordinators = [start("c0"), start("c1")];
    let worker = |id: &str| {
        let stem = format!("worker-{id}");
        let args = ["worker", "--model", model.to_str().unwrap(), "--id", id, "--etcd"].map(str::to_owned);
        let args = [args.to_vec(), vec![etcd.url()], certs.flags_of(&stem), files(&stem)].concat();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        KvasirProcess::start(&args, folder.path().join(format!("{id}.log")))
    };
    let _workers = [worker("w0"), worker("w1")];
    let status = |url: &str| {
        let args = ["status", "--json", "--endpoint", url].map(str::to_owned);
        let output = kvasir([args.to_vec(), certs.flags_of("admin")].concat());
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    };
    let ready = |url: &str| status(url)["ready"] == true;
    until("a cluster", async || coordinators.iter().all(|one| ready(&one.url))).await;
    let standby = coordinators
        .iter()
        .find(|one| status(&one.url)["leader"] == false)
        .unwrap();
    // The leader's, by an admin's right.
    assert_eq!(status(&standby.url)["groups"][0]["ranks"].as_array().unwrap().len(), 2);
    let channel = dial(&standby.url, Some(&certs.tls(Some("client")))).await.unwrap();
    let (generation, digest) = longest();
    let asked = InferenceClient::new(channel.clone())
        .generate(request_of(&generation))
        .await;
    let (mut stream, mut answer) = (asked.unwrap().into_inner(), GrpcAnswer::default());
    while let Some(response) = stream.message().await.unwrap() {
        answer.add(response);
    }
    assert_eq!(
        (parity::digest(&answer.to_parity()), answer.descriptor.tenant.as_str()),
        (digest, "client")
    );
    let refused = AdminClient::new(channel)
        .drain(DrainRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
}
