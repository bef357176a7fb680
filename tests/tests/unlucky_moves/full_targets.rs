//! Migrations to a group that has no room, now or ever: the order is told so, and the answer goes on where it was.

use std::path::Path;

use kvasir_proto::v1;
use kvasir_tests::{
    cluster_sandbox::{ClusterSandbox, GrpcAnswer, kill, request_of},
    cluster_watch::{ClusterWatch, count},
    moving, parity,
    rank_group::Generation,
};
use tonic::Code;

use crate::scene::{assert_books, assert_nothing_is_left, pids};

/// Eight blocks.
const SMALL: &str = "12MiB";
/// Two blocks.
const TINY: &str = "4MiB";
const ORDERS_MAX: u32 = 400;

/// The longest answers, by index, with what is expected.
fn longest(num: usize) -> Vec<(Generation, String)> {
    let mut told: Vec<_> = moving::generations().into_iter().zip(moving::digests()).collect();
    told.sort_by_key(|(generation, _)| std::cmp::Reverse(generation.prompt.len() + generation.max_tokens));
    told.truncate(num);
    told
}

async fn tell(sandbox: &ClusterSandbox, told: &[(Generation, String)]) {
    let asked = told
        .iter()
        .map(|(generation, _)| sandbox.generate(request_of(generation)));
    let answers = futures::future::join_all(asked).await;
    for (answer, (_, digest)) in answers.into_iter().zip(told) {
        let answer: GrpcAnswer = answer.unwrap();
        assert_eq!(parity::digest(&answer.to_parity()), *digest);
    }
}

fn start(model: &Path) -> ClusterSandbox {
    // Nothing moves by itself, and nothing is there already.
    let flags = [
        "--groups",
        "1,1",
        "--no-rebalance",
        "--no-prefix-cache",
        "--kv-memory",
        SMALL,
    ];
    ClusterSandbox::start(model, 2, &flags)
}

/// Orders moves into full groups until one found no room.
async fn press(watch: &ClusterWatch) -> v1::Migration {
    for _ in 0..ORDERS_MAX {
        let full = |status: &v1::StatusResponse| {
            let has_room = |group: u32| status.groups[group as usize].blocks.unwrap().free > 1;
            let mut sequences = status.sequences.iter();
            let stuck = sequences.find(|sequence| {
                sequence.state == "running" && sequence.computed > 128 && !has_room(1 - sequence.group)
            })?;
            Some((stuck.request_id.clone(), 1 - stuck.group))
        };
        let (request_id, target) = watch.until("a full group", full).await;
        let order = v1::MigrateRequest {
            request_id,
            target_group: Some(target),
        };
        match watch.admin.clone().migrate(order).await {
            Ok(done) => {
                let mut migrations = done.into_inner().migrations.into_iter();
                let full = migrations.find(|migration| migration.outcome == "target full");
                if let Some(full) = full {
                    return full;
                }
            }
            Err(status) => assert_eq!(status.code(), Code::NotFound, "{status}"),
        }
    }
    panic!("no target was full in {ORDERS_MAX} moves");
}

#[tokio::test]
async fn a_sequence_stays_whole_where_it_is_when_its_target_is_full() {
    let model = kvasir_tests::default_model();
    let sandbox = start(&model);
    let watch = ClusterWatch::of(&sandbox).await;
    let told = longest(6);
    let ((), full) = tokio::join!(tell(&sandbox, &told), press(&watch));
    assert!(full.detail.contains("the target group has no room"), "{full:?}");
    assert!(sandbox.log().contains(&full.detail), "{full:?}: {}", sandbox.log());
    assert_nothing_is_left(&watch).await;
    let status = watch.status().await;
    assert!(count(&status, "migrations_failed") > 0, "{status:#?}");
}

#[tokio::test]
async fn a_target_that_could_never_hold_a_sequence_refuses_it_with_the_numbers() {
    let model = kvasir_tests::default_model();
    let sandbox = start(&model);
    let watch = ClusterWatch::of(&sandbox).await;
    kill(pids(&watch.status().await, 1)[0]);
    let _tiny = sandbox.add_worker_with(&model, "tiny", &["--kv-memory", TINY]);
    let both = |status: &v1::StatusResponse| {
        let all_serve = status.groups.iter().all(|group| group.state == "serving");
        (all_serve && status.groups[1].blocks.unwrap().total == 2).then_some(())
    };
    watch.until("the tiny group", both).await;
    let told = longest(1);
    let ordered = async {
        let running = |status: &v1::StatusResponse| {
            let mut sequences = status.sequences.iter();
            let running = sequences.find(|sequence| sequence.state == "running" && sequence.computed > 0)?;
            Some(running.request_id.clone())
        };
        let order = v1::MigrateRequest {
            request_id: watch.until("the answer to begin", running).await,
            target_group: Some(1),
        };
        watch.admin.clone().migrate(order).await.unwrap_err()
    };
    let ((), refused) = tokio::join!(tell(&sandbox, &told), ordered);
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let numbers = "blocks of 64 tokens needed alone, the group has 2";
    assert!(refused.message().contains(numbers), "{refused}");
    let status = watch.status().await;
    assert_eq!(count(&status, "migrations_begun"), 0, "{status:#?}");
    assert_books(&status);
}
