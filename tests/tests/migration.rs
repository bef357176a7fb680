//! Sequences move and groups change their ranks while sixteen streams talk: not a bit changes, nothing is computed again,
//! and the counters say that the cells did move.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
};

use kvasir_proto::v1::{self, admin_client::AdminClient};
use kvasir_tests::{
    certs::Certs,
    cluster_sandbox::{ClusterSandbox, kill, terminate, wait_gone},
    moving,
    sim::dice::Dice,
    story,
};
use serde_json::Value;
use tonic::{Code, transport::Channel};

/// So much has to happen.
#[derive(Clone, Copy)]
struct Goal {
    migrations: u64,
    reshards: u64,
}

fn count(status: &Value, name: &str) -> u64 {
    status["counters"][name].as_u64().unwrap()
}

/// One that differs from run to run, unless `KVASIR_TEST_SEED` is set.
fn dice() -> Dice {
    let seed = match std::env::var("KVASIR_TEST_SEED") {
        Ok(seed) => seed.parse().expect("KVASIR_TEST_SEED is a number"),
        Err(_) => u64::from(std::process::id()),
    };
    println!("seed {seed}");
    Dice::new(seed)
}

/// Epochs of the groups, which only grow.
#[derive(Default)]
struct Epochs(BTreeMap<u64, u64>);

impl Epochs {
    fn see(&mut self, status: &v1::StatusResponse) {
        for group in &status.groups {
            let last = self.0.insert(u64::from(group.id), group.epoch).unwrap_or(0);
            assert!(
                group.epoch >= last,
                "group {} went from epoch {last} to {}",
                group.id,
                group.epoch
            );
        }
    }
}

/// Moves what runs and reshards what serves, at random, until enough has happened or `done`.
async fn stir(
    admin: &mut AdminClient<Channel>,
    dice: &mut Dice,
    epochs: &mut Epochs,
    (moves, reshards): (&mut u64, &mut u64),
    goal: Goal,
    done: &AtomicBool,
) {
    while !done.load(Ordering::Relaxed) {
        let status = admin.status(v1::StatusRequest {}).await.unwrap().into_inner();
        epochs.see(&status);
        let running: Vec<_> = status
            .sequences
            .iter()
            .filter(|sequence| sequence.state == "running")
            .collect();
        if running.is_empty() {
            tokio::task::yield_now().await;
            continue;
        }
        let num_groups = status.groups.len() as u64;
        if *reshards < goal.reshards && dice.chance(25) || *moves >= goal.migrations {
            let group = dice.between(0, num_groups - 1) as u32;
            let ranks = dice.between_u32(1, 5);
            let resharded = admin.reshard(v1::ReshardRequest { group, ranks }).await;
            match resharded {
                Ok(done) => {
                    let done = done.into_inner();
                    assert_eq!(done.outcome, "switched", "{done:?}");
                    *reshards += 1;
                }
                // As it is, or not enough workers.
                Err(status) => assert_eq!(status.code(), Code::FailedPrecondition, "{status}"),
            }
        } else {
            let moved = running[dice.between(0, running.len() as u64 - 1) as usize];
            let others: Vec<u32> = (0..num_groups as u32).filter(|group| *group != moved.group).collect();
            let target_group = Some(others[dice.between(0, others.len() as u64 - 1) as usize]);
            let request_id = moved.request_id.clone();
            match admin
                .migrate(v1::MigrateRequest {
                    request_id,
                    target_group,
                })
                .await
            {
                Ok(done) => {
                    for migration in done.into_inner().migrations {
                        assert!(
                            ["moved", "ended"].contains(&migration.outcome.as_str()),
                            "{migration:?}"
                        );
                        *moves += u64::from(migration.outcome == "moved");
                    }
                }
                // It has ended meanwhile.
                Err(status) => assert_eq!(status.code(), Code::NotFound, "{status}"),
            }
        }
    }
}

#[tokio::test]
async fn a_hundred_migrations_and_thirty_reshards_under_sixteen_streams_change_no_bit_and_recompute_nothing() {
    let goal = Goal {
        migrations: 100,
        reshards: 30,
    };
    let status = stir_all(&["--no-rebalance", "--groups", "1,2,3"], goal, None).await;
    // All workers are on one host.
    let bytes = count(&status, "transfer_bytes");
    assert_eq!(count(&status, "transfer_shared_bytes"), bytes, "{status:#}");
}

#[tokio::test]
async fn cells_that_go_through_connections_change_no_bit_either() {
    let goal = Goal {
        migrations: 20,
        reshards: 6,
    };
    let flags = ["--no-rebalance", "--groups", "1,2,3", "--transport", "tcp"];
    let status = stir_all(&flags, goal, None).await;
    assert_eq!(count(&status, "transfer_shared_bytes"), 0, "{status:#}");
}

/// Certificates on every link: clients, sessions, sums and cells.
#[tokio::test]
async fn sums_and_cells_that_go_through_encrypted_connections_change_no_bit_either() {
    let goal = Goal {
        migrations: 8,
        reshards: 3,
    };
    let certs = Certs::make(&["--workers", "w0,w1,w2,w3,w4,w5,spare-0,spare-1"]);
    let flags = ["--no-rebalance", "--groups", "1,2,3", "--transport", "tcp"];
    let status = stir_all(&flags, goal, Some(&certs)).await;
    assert_eq!(count(&status, "transfer_shared_bytes"), 0, "{status:#}");
    let over_tcp = |group: &Value| group["transport"] == "tcp" || group["ranks"].as_array().unwrap().len() == 1;
    assert!(status["groups"].as_array().unwrap().iter().all(over_tcp), "{status:#}");
}

/// Moves and reshards under sixteen streams until the goal is reached; returns what the cluster says then.
async fn stir_all(flags: &[&str], goal: Goal, certs: Option<&Certs>) -> Value {
    let model = kvasir_tests::default_model();
    let sandbox = match certs {
        Some(certs) => ClusterSandbox::start_encrypted(&model, 6, flags, certs),
        None => ClusterSandbox::start(&model, 6, flags),
    };
    let add_spare = |id: &str| {
        let flags = certs.map_or_else(Vec::new, |certs| certs.flags_of(&format!("worker-{id}")));
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        sandbox.add_worker_with(&model, id, &flags)
    };
    let _spares = ["spare-0", "spare-1"].map(add_spare);
    sandbox.wait_for("the spares", |status| status["spares"].as_array().unwrap().len() == 2);
    let mut admin = AdminClient::new(sandbox.channel().await);
    let (expected, generations) = (moving::digests(), moving::generations());
    let (mut dice, mut epochs) = (dice(), Epochs::default());
    let (mut moves, mut reshards) = (0, 0);
    let mut rounds = 0;
    while moves < goal.migrations || reshards < goal.reshards {
        let done = AtomicBool::new(false);
        let asked = async {
            let digests = sandbox.digests_of(&generations).await;
            done.store(true, Ordering::Relaxed);
            digests
        };
        let stirred = stir(
            &mut admin,
            &mut dice,
            &mut epochs,
            (&mut moves, &mut reshards),
            goal,
            &done,
        );
        let (digests, ()) = tokio::join!(asked, stirred);
        assert_eq!(digests, expected, "round {rounds}");
        rounds += 1;
        assert!(
            rounds < 40,
            "{moves} migrations and {reshards} reshards in {rounds} rounds"
        );
    }
    println!("{moves} migrations and {reshards} reshards in {rounds} rounds");
    let status = sandbox.wait_for("all blocks to come back", |status| {
        let groups = status["groups"].as_array().unwrap();
        groups
            .iter()
            .all(|group| group["blocks"]["held"] == 0 && group["blocks"]["in_flight"] == 0)
    });
    for none in [
        "tokens_recomputed",
        "preemptions",
        "conservation_violations",
        "failed",
        "ranks_lost",
        "migrations_failed",
        "reshards_failed",
        "transfers_broken",
    ] {
        assert_eq!(count(&status, none), 0, "{none}: {status:#}");
    }
    assert_eq!(
        (count(&status, "migrations_moved"), count(&status, "reshards_switched")),
        (moves, reshards)
    );
    assert_eq!(
        count(&status, "cells_adopted"),
        count(&status, "cells_planned"),
        "{status:#}"
    );
    // Each moves at least the last block of one sequence, of three KV heads.
    assert!(count(&status, "cells_adopted") >= 3 * moves, "{status:#}");
    assert!(count(&status, "transfer_bytes") > 0, "{status:#}");
    assert_eq!(count(&status, "epochs"), 3 + reshards);
    for group in status["groups"].as_array().unwrap() {
        assert_eq!(group["blocks"]["unaccounted"], 0, "{status:#}");
    }
    status
}

/// Each worker of two groups is asked to end while sixteen streams talk, and another takes its place.
#[tokio::test]
async fn a_rolling_replacement_of_every_worker_changes_no_bit_and_recomputes_nothing() {
    let model = kvasir_tests::default_model();
    let sandbox = ClusterSandbox::start(&model, 4, &["--no-rebalance", "--groups", "2,2"]);
    let (expected, generations) = (moving::digests(), moving::generations());
    let done = AtomicBool::new(false);
    let talk = async {
        let mut rounds = 0;
        while !done.load(Ordering::Relaxed) {
            let digests = sandbox.digests_of(&generations).await;
            assert_eq!(digests, expected, "round {rounds}");
            rounds += 1;
        }
    };
    let replace = async {
        let mut fresh = Vec::new();
        for (index, pid) in sandbox.worker_pids().iter().enumerate() {
            fresh.push(sandbox.add_worker(&model, &format!("fresh-{index}")));
            let joined = |status: &Value| status["spares"].as_array().unwrap().len() == 1;
            sandbox.until("the fresh worker", joined).await;
            terminate(*pid);
            let released = |status: &Value| count(status, "workers_released") == index as u64 + 1;
            sandbox.until("the worker to be let go", released).await;
            let whole = |group: &Value| group["state"] == "serving" && group["ranks"].as_array().unwrap().len() == 2;
            let all_whole = |status: &Value| status["groups"].as_array().unwrap().iter().all(whole);
            sandbox.until("both groups to be whole", all_whole).await;
        }
        done.store(true, Ordering::Relaxed);
        fresh
    };
    let ((), _fresh) = tokio::join!(talk, replace);
    assert!(
        sandbox.worker_pids().iter().all(|pid| wait_gone(*pid)),
        "they have ended"
    );
    let status = sandbox.status();
    for none in [
        "tokens_recomputed",
        "failed",
        "ranks_lost",
        "migrations_failed",
        "conservation_violations",
    ] {
        assert_eq!(count(&status, none), 0, "{none}: {status:#}");
    }
    assert!(count(&status, "reshards_switched") >= 4, "{status:#}");
    assert_eq!(
        count(&status, "cells_adopted"),
        count(&status, "cells_planned"),
        "{status:#}"
    );
}

/// The only worker of a group goes: what it tells is told on by the other group.
#[tokio::test]
async fn the_last_worker_of_a_group_goes_when_its_stories_have_gone_to_another() {
    let model = kvasir_tests::default_model();
    let sandbox = ClusterSandbox::start(&model, 2, &["--no-rebalance", "--groups", "1,1"]);
    let before = sandbox.status();
    let leaving = before["groups"][0]["ranks"][0]["worker"].as_str().unwrap().to_owned();
    let stories = futures::future::join_all((0..6).map(|_| sandbox.generate(story::request())));
    let drain = async {
        let telling = |status: &Value| {
            let sequences = status["sequences"].as_array().unwrap();
            let in_it = |sequence: &&Value| sequence["group"] == 0 && sequence["tokens"].as_u64() > Some(16);
            sequences.iter().filter(in_it).count() > 0
        };
        sandbox.until("a story in the group that goes", telling).await;
        let (endpoint, worker) = (sandbox.endpoint().to_owned(), leaving.clone());
        let drained = tokio::task::spawn_blocking(move || {
            kvasir_tests::cluster_sandbox::kvasir(["drain", &worker, "--endpoint", &endpoint])
        });
        drained.await.unwrap()
    };
    let (answers, drained) = tokio::join!(stories, drain);
    assert!(drained.status.success(), "{drained:?}");
    for answer in answers {
        story::assert_undisturbed(&answer.unwrap(), "the worker that told it was let go");
    }
    let after = sandbox.status();
    assert_eq!(count(&after, "tokens_recomputed"), 0, "{after:#}");
    assert_eq!(
        (count(&after, "workers_released"), count(&after, "ranks_lost")),
        (1, 0),
        "{after:#}"
    );
    assert!(count(&after, "migrations_moved") > 0, "{after:#}");
}

/// A group that lost a rank takes a worker in that joins, while it goes on with its story.
#[tokio::test]
async fn a_worker_that_joins_is_taken_into_the_group_that_lacks_one_without_a_changed_bit() {
    let model = kvasir_tests::default_model();
    let sandbox = ClusterSandbox::start(&model, 2, &[]);
    kill(sandbox.worker_pids()[1]);
    sandbox.wait_for("the group of one", |status| {
        status["groups"][0]["ranks"].as_array().unwrap().len() == 1 && status["groups"][0]["state"] == "serving"
    });
    let before = sandbox.status();
    let _late = sandbox.add_worker(&model, "late");
    let mut stories = 0;
    while count(&sandbox.status(), "reshards_switched") == 0 {
        let answers = futures::future::join_all((0..3).map(|_| sandbox.generate(story::request()))).await;
        for answer in answers {
            story::assert_undisturbed(&answer.unwrap(), "a worker joined");
        }
        stories += 1;
        assert!(stories < 60, "{:#}", sandbox.status());
    }
    let after = sandbox.status();
    assert_eq!(after["groups"][0]["ranks"].as_array().unwrap().len(), 2, "{after:#}");
    assert!(after["groups"][0]["epoch"]["number"].as_u64() > before["groups"][0]["epoch"]["number"].as_u64());
    assert_eq!(count(&after, "tokens_recomputed"), count(&before, "tokens_recomputed"));
}

#[tokio::test]
async fn what_cannot_be_moved_is_refused_with_the_reason() {
    let model = kvasir_tests::default_model();
    let sandbox = ClusterSandbox::start(&model, 1, &[]);
    let error_of = |args: &[&str]| {
        let output = sandbox.kvasir(args);
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let unknown = error_of(&["migrate", "nobody"]);
    assert!(
        unknown.contains("no request `nobody` is running or waiting"),
        "{unknown}"
    );
    let same = error_of(&["reshard", "--ranks", "1"]);
    assert!(same.contains("group 0 has 1 ranks already"), "{same}");
    let many = error_of(&["reshard", "--ranks", "3"]);
    assert!(
        many.contains("3 ranks are wanted; the group's own and the free workers are 1"),
        "{many}"
    );
    let none = error_of(&["reshard", "--ranks", "0"]);
    assert!(none.contains("a group of 0 ranks serves nothing"), "{none}");
    let gone = error_of(&["drain", "nobody"]);
    assert!(gone.contains("no worker `nobody` is here"), "{gone}");
    let far = error_of(&["reshard", "--group", "7", "--ranks", "1"]);
    assert!(far.contains("there is no group 7"), "{far}");
}
