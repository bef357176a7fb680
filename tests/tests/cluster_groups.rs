//! Several groups of different rank counts: the same bits from each, and from one to the other.

#![allow(clippy::unwrap_used)]

use kvasir_tests::{
    cluster_sandbox::{ClusterSandbox, kill},
    parity, story,
};
use serde_json::Value;

fn count(status: &Value, name: &str) -> u64 {
    status["counters"][name].as_u64().unwrap()
}

/// Sequences of a group that are well into their answer.
fn telling_in(status: &Value, group: u64) -> usize {
    let sequences = status["sequences"].as_array().unwrap();
    let telling = |sequence: &&Value| {
        sequence["group"] == group && sequence["state"] == "running" && sequence["tokens"].as_u64() > Some(20)
    };
    sequences.iter().filter(telling).count()
}

#[tokio::test]
async fn groups_of_one_and_of_three_ranks_answer_with_the_same_bits() {
    let flags = ["--groups", "1,3", "--block-size", "16"];
    let sandbox = ClusterSandbox::start(&kvasir_tests::default_model(), 4, &flags);
    let generations = parity::generations(49_152);
    for round in 0..2 {
        let digests = sandbox.digests_of(&generations).await;
        assert_eq!(digests, parity::read_digests()["smollm2-135m"], "round {round}");
    }
    let status = sandbox.status();
    let groups = status["groups"].as_array().unwrap();
    let ranks: Vec<usize> = groups
        .iter()
        .map(|group| group["ranks"].as_array().unwrap().len())
        .collect();
    assert_eq!(ranks, [1, 3]);
    assert!(
        groups.iter().all(|group| group["blocks"]["cached"].as_u64() > Some(0)),
        "both worked: {status:#}"
    );
    assert!(count(&status, "routed_by_prefix") > 0, "{status:#}");
    assert_eq!(count(&status, "conservation_violations"), 0);
}

/// The answers that the only worker of a group was telling are told to their end by the other group.
#[tokio::test]
async fn when_a_group_dies_its_answers_go_on_in_the_other_without_a_changed_bit() {
    let model = kvasir_tests::default_model();
    let sandbox = ClusterSandbox::start(&model, 3, &["--groups", "1,2"]);
    let before = sandbox.status();
    let alone = before["groups"][0]["ranks"][0]["pid"].as_u64().unwrap();
    // Long enough to be met in mid-answer, and each a story to its 64th token.
    let stories = futures::future::join_all((0..6).map(|_| sandbox.generate(story::request())));
    let strike = async {
        let telling = |status: &Value| telling_in(status, 0) > 0;
        sandbox.until("a story in the group of one", telling).await;
        kill(alone as u32);
    };
    let (answers, ()) = tokio::join!(stories, strike);

    for answer in answers {
        story::assert_undisturbed(&answer.unwrap(), "the group that told it died");
    }
    let after = sandbox.wait_for("the loss to be recovered", |status| count(status, "recoveries") == 1);
    assert!(count(&after, "sequences_rerouted") > 0, "{after:#}");
    assert!(count(&after, "tokens_recomputed") > 20, "{after:#}");
    assert_eq!(count(&after, "failed"), 0);
    assert_eq!(
        after["groups"][1]["epoch"], before["groups"][1]["epoch"],
        "the other group was not disturbed"
    );
    assert_eq!(after["groups"][0]["state"], "waiting");
    assert!(
        after["groups"][0]["cause"]
            .as_str()
            .unwrap()
            .contains("no worker is free"),
        "{after:#}"
    );
    assert_eq!(after["ready"], true);

    let _spare = sandbox.add_worker(&model, "spare");
    let back = sandbox.wait_for("the group to form again", |status| {
        status["groups"][0]["state"] == "serving"
    });
    let number = |status: &Value| status["groups"][0]["epoch"]["number"].as_u64().unwrap();
    assert!(number(&back) > number(&before), "{back:#}");
}
