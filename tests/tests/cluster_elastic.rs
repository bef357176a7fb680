//! Workers that come and go while streams talk become ranks and leave again: not a bit changes, nothing is computed again.

#![allow(clippy::unwrap_used)]

use kvasir_tests::{
    cluster_sandbox::{ClusterSandbox, terminate, wait_gone},
    moving,
};
use serde_json::Value;

fn count(status: &Value, name: &str) -> u64 {
    status["counters"][name].as_u64().unwrap()
}

fn ranks(status: &Value) -> Vec<usize> {
    let groups = status["groups"].as_array().unwrap().iter();
    groups.map(|group| group["ranks"].as_array().unwrap().len()).collect()
}

#[tokio::test]
async fn groups_grow_and_shrink_with_their_workers_and_no_bit_changes() {
    let model = kvasir_tests::default_model();
    let flags = ["--groups", "1,1", "--elastic", "--block-size", "16"];
    let sandbox = ClusterSandbox::start(&model, 2, &flags);
    assert_eq!(ranks(&sandbox.status()), [1, 1]);
    let (generations, digests) = (moving::generations(), moving::digests());
    let asked = sandbox.digests_of(&generations);
    let stirred = async {
        let busy = |status: &Value| count(status, "generation_tokens") > 16;
        sandbox.until("answers under way", busy).await;
        let extra =
            ["extra0", "extra1", "extra2"].map(|id| sandbox.add_worker_with(&model, id, &["--block-size", "16"]));
        let grown = |status: &Value| ranks(status) == [3, 2] && status["reshards"].as_array().unwrap().is_empty();
        sandbox.until("all five to be ranks", grown).await;
        for worker in &extra[..2] {
            terminate(worker.pid());
            assert!(wait_gone(worker.pid()), "a worker that drains ends");
        }
        let shrunk = |status: &Value| ranks(status).iter().sum::<usize>() == 3;
        sandbox.until("three ranks to be left", shrunk).await;
        extra
    };
    let (answered, _extra) = tokio::join!(asked, stirred);
    assert_eq!(answered, digests);
    let status = sandbox.status();
    assert!(count(&status, "reshards_switched") >= 4, "{status:#}");
    assert_eq!(count(&status, "workers_released"), 2, "{status:#}");
    for nothing in [
        "ranks_lost",
        "recoveries",
        "tokens_recomputed",
        "conservation_violations",
    ] {
        assert_eq!(count(&status, nothing), 0, "{nothing}: {status:#}");
    }
    assert_eq!(
        count(&status, "cells_planned"),
        count(&status, "cells_adopted"),
        "{status:#}"
    );
}
