//! Some groups compute prompts and others answers: not a bit changes, nothing is computed again, and each sequence that does
//! not end first goes over once, with cells that leave while its prompt is computed.

#![allow(clippy::unwrap_used)]

use kvasir_tests::{cluster_sandbox::ClusterSandbox, moving};

#[tokio::test]
async fn prompts_computed_in_one_group_and_answers_in_another_change_no_bit() {
    let model = kvasir_tests::default_model();
    let (expected, generations) = (moving::digests(), moving::generations());
    for (prefill, decode) in [(1, 2), (2, 1), (2, 3), (3, 1)] {
        let groups = format!("{prefill}:prefill,{decode}:decode");
        let flags = [
            "--groups",
            groups.as_str(),
            "--chunk-tokens",
            "64",
            "--block-size",
            "16",
        ];
        let sandbox = ClusterSandbox::start(&model, prefill + decode, &flags);
        let digests = sandbox.digests_of(&generations).await;
        assert_eq!(digests, expected, "{groups}");
        let status = sandbox.status();
        let count = |name: &str| status["counters"][name].as_u64().unwrap();
        assert_eq!(status["groups"][0]["role"], "prefill", "{status:#}");
        // On a busy machine the shortest answers end in the group of the prompts before they could go over.
        let (moved, ended) = (count("handoffs"), count("migrations_ended"));
        assert_eq!(
            (moved + ended, count("migrations_begun")),
            (generations.len() as u64, generations.len() as u64),
            "{status:#}"
        );
        assert!(moved > 0, "{status:#}");
        assert_eq!(
            (count("tokens_recomputed"), count("migrations_failed")),
            (0, 0),
            "{status:#}"
        );
        assert_eq!(count("cells_adopted"), count("cells_planned"), "{status:#}");
        assert!(count("transfer_prompt_bytes") > 0, "{status:#}");
        println!(
            "{groups}: {} of {} bytes before the prompts were computed",
            count("transfer_prompt_bytes"),
            count("handoff_bytes")
        );
    }
}
