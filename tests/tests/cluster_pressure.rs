//! Streams through real processes that have too little memory for all of them: sequences are preempted, cached blocks
//! evicted, and each answer has the bits that it has alone.

#![allow(clippy::unwrap_used)]

use kvasir_tests::{cluster_sandbox::ClusterSandbox, parity};

/// A block of 16 positions has 720 KiB; of two workers, one holds two thirds of that. The pool has room for ten or so.
#[tokio::test]
async fn streams_without_room_for_all_get_the_bits_that_each_gets_alone() {
    for (workers, kv_memory) in [(1, "8MiB"), (2, "5MiB")] {
        let flags = ["--block-size", "16", "--kv-memory", kv_memory];
        let sandbox = ClusterSandbox::start(&kvasir_tests::default_model(), workers, &flags);
        let generations = parity::generations(49_152);
        let expected = &parity::read_digests()["smollm2-135m"];
        let count = |name: &str| sandbox.status()["counters"][name].as_u64().unwrap();

        let mut rounds = 0;
        while rounds < 3 || count("preemptions") == 0 {
            let digests = sandbox.digests_of(&generations).await;
            assert_eq!(&digests, expected, "{workers} workers {flags:?}");
            rounds += 1;
            assert!(rounds < 20, "no preemption: {:#}", sandbox.status());
        }
        println!(
            "{workers} workers: {rounds} rounds, {} preemptions",
            count("preemptions")
        );
        assert!(count("evictions") > 0, "{:#}", sandbox.status());
        let blocks = &sandbox.status()["groups"][0]["blocks"];
        assert_eq!(blocks["held"], 0, "{blocks:#}");
    }
}
