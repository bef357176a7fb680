//! `kvasir bench serve`, `speed` and `steps` with real processes: they count what they sent, equal seeds get equal answers,
//! what is measured as computed was not cached, and nothing that was started is left running.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use kvasir_tests::cluster_sandbox::{ClusterSandbox, KvasirProcess, kvasir, wait_gone};
use serde_json::Value;

fn bench(cluster: &ClusterSandbox, flags: &[&str]) -> Value {
    run(cluster, &[&["bench", "serve", "--json"], flags].concat())
}

fn run(cluster: &ClusterSandbox, flags: &[&str]) -> Value {
    let output = cluster.kvasir(flags);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn number(report: &Value, pointer: &str) -> f64 {
    let value = report.pointer(pointer).and_then(Value::as_f64);
    value.unwrap_or_else(|| panic!("no number at {pointer}: {report:#}"))
}

#[test]
fn equal_seeds_get_equal_answers_from_the_cache_and_without_it() {
    let cluster = ClusterSandbox::start(&kvasir_tests::default_model(), 2, &[]);
    let sizes = ["--prefix-tokens", "70", "--prompt-tokens", "80", "--max-tokens", "4"];
    let measured = |flags: &[&str]| bench(&cluster, &[&sizes[..], &["--requests", "6"], flags].concat());

    let first = measured(&["--seed", "1", "--concurrency", "3"]);
    let second = measured(&["--seed", "1", "--concurrency", "3"]);
    let other = measured(&["--seed", "2", "--rate", "100"]);

    for report in [&first, &second, &other] {
        for (counter, count) in [("finished", 6), ("refused", 0), ("failed", 0), ("cancelled", 0)] {
            assert_eq!(report[counter], count, "{report:#}");
        }
        assert_eq!(report["input_tokens"], 6 * 80, "{report:#}");
        assert_eq!(report["output_tokens"], 6 * 4, "{report:#}");
        assert!(number(report, "/ttft_ms/p50") > 0.0, "{report:#}");
        assert!(number(report, "/itl_ms/p50") > 0.0, "{report:#}");
        assert!(
            number(report, "/e2e_ms/p50") > number(report, "/ttft_ms/p50"),
            "{report:#}"
        );
    }
    assert_eq!(number(&second, "/cached_tokens"), 6.0 * 64.0, "{second:#}");
    assert_eq!(first["digest"], second["digest"]);
    assert_ne!(first["digest"], other["digest"]);
}

#[test]
fn load_in_the_background_is_counted_apart_and_ends_with_the_measurement() {
    let cluster = ClusterSandbox::start(&kvasir_tests::default_model(), 2, &[]);
    // Without end, and so cancelled; and short, so that many finish.
    let long = "tenant=a,concurrency=2,prompt-tokens=8,max-tokens=4000";
    let short = "tenant=c,prompt-tokens=4..8,max-tokens=1,priority=-1";
    let sizes = [
        "--requests",
        "3",
        "--prompt-tokens",
        "8",
        "--max-tokens",
        "8",
        "--tenant",
        "b",
    ];
    let loads = ["--background", long, "--background", short, "--warmup", "0.2"];

    let report = bench(&cluster, &[&sizes[..], &loads[..]].concat());

    assert_eq!(report["finished"], 3, "{report:#}");
    assert_eq!(report["output_tokens"], 3 * 8, "{report:#}");
    assert_eq!(report["background"][0]["tenant"], "a", "{report:#}");
    assert_eq!(report["background"][0]["finished"], 0, "{report:#}");
    assert!(number(&report, "/background/0/output_tokens") > 0.0, "{report:#}");
    assert!(number(&report, "/background/1/finished") > 0.0, "{report:#}");
    cluster.wait_for("an idle cluster", |status| {
        status["sequences"].as_array().is_some_and(Vec::is_empty)
    });
}

#[test]
fn what_cannot_be_measured_is_one_clear_error() {
    let refused = |flags: &[&str], code: i32, fragment: &str| {
        let output = kvasir([&["bench", "serve"], flags].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(fragment), "`{fragment}` is not in: {stderr}");
    };
    refused(
        &["--prompt-tokens", "64...256"],
        2,
        "`64...256` is not a number of tokens",
    );
    refused(&["--background", "tennant=a"], 2, "`tennant` is not one of tenant, ");
    refused(&["--rate", "5", "--concurrency", "2"], 2, "cannot be used with");
    refused(&["--duration", "5"], 2, "--rate");
    refused(&["--endpoint", "127.0.0.1:1"], 1, "cannot reach http://127.0.0.1:1");
}

#[test]
fn a_report_without_an_answer_is_a_failure() {
    let cluster = ClusterSandbox::start(&kvasir_tests::default_model(), 1, &[]);
    let too_long = ["bench", "serve", "--requests", "2", "--prompt-tokens", "9000"];
    let output = cluster.kvasir(&too_long);
    let (out, error) = (output.stdout, String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.starts_with("error: no request finished: "), "{error}");
    let table = String::from_utf8(out).unwrap();
    assert!(
        table.starts_with("0 finished, 0 refused, 2 failed, 0 cancelled"),
        "{table}"
    );
}

#[test]
fn speeds_have_a_row_for_each_depth_and_number_of_streams_and_are_of_nothing_cached() {
    let cluster = ClusterSandbox::start(&kvasir_tests::default_model(), 2, &["--sequences", "2"]);
    let sizes = ["--prefill", "130", "--decode", "8", "--depths", "0,70", "--runs", "2"];
    let measured = || {
        let flags = [&["bench", "speed", "--json", "--streams", "1,2,3"], &sizes[..]].concat();
        run(&cluster, &flags)
    };

    let (first, second) = (measured(), measured());

    for report in [&first, &second] {
        let rows = report["rows"].as_array().unwrap();
        let shapes: Vec<_> = rows
            .iter()
            .map(|row| {
                (
                    row["test"].as_str().unwrap(),
                    [&row["tokens"], &row["depth"], &row["streams"]],
                )
            })
            .map(|(test, numbers)| (test, numbers.map(|number| number.as_u64().unwrap())))
            .collect();
        let expected = [
            ("prefill", [130, 0, 1]),
            ("decode", [8, 0, 1]),
            ("decode", [4, 70, 1]),
            ("decode", [8, 0, 2]),
            ("decode", [8, 0, 3]),
        ];
        assert_eq!(shapes, expected, "{report:#}");
        for row in rows {
            assert_eq!(row["tokens_per_s"]["samples"].as_array().unwrap().len(), 2, "{row:#}");
        }
        // Two places: the third stream begins when another has ended.
        assert_eq!(rows[4]["waited"], 1, "{report:#}");
        assert!(rows[3]["waited"].is_null(), "{report:#}");
    }
}

#[test]
fn a_depth_beyond_the_context_is_refused_before_anything_runs() {
    let cluster = ClusterSandbox::start(&kvasir_tests::default_model(), 1, &[]);
    let output = cluster.kvasir(&["bench", "speed", "--depths", "0,9000"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.starts_with("error: --depths 9000: 9000 prompt tokens and 64 answer"),
        "{error}"
    );
    assert_eq!(cluster.status()["counters"]["submitted"], 0);
}

#[test]
fn steps_are_measured_as_often_with_a_coordinator_as_without() {
    let model = kvasir_tests::default_model();
    let sizes = ["--tokens", "8", "--streams", "1,3", "--runs", "2"];
    let flags = ["bench", "steps", "--json", "--model", model.to_str().unwrap()];
    let output = kvasir([&flags[..], &sizes[..]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!((rows.len(), &report["ranks"]), (2, &Value::from(2)), "{report:#}");
    for (row, streams) in rows.iter().zip([1, 3]) {
        assert_eq!(row["streams"], streams, "{row:#}");
        for side in ["ranks_alone_tokens_per_s", "cluster_tokens_per_s"] {
            assert_eq!(row[side]["samples"].as_array().unwrap().len(), 2, "{row:#}");
        }
    }
    for (latency, transport) in report["all_reduce"].as_array().unwrap().iter().zip(["shm", "tcp"]) {
        assert_eq!(latency["transport"], transport);
        // The hidden state, and whether it is poisoned.
        assert_eq!((&latency["sums"], &latency["calls"]), (&577.into(), &10_000.into()));
    }
}

#[test]
fn a_measurement_that_is_interrupted_leaves_no_process_behind() {
    let model = kvasir_tests::default_model();
    let folder = tempfile::tempdir().unwrap();
    let flags = ["bench", "steps", "--runs", "1000", "--model", model.to_str().unwrap()];
    let mut bench = KvasirProcess::start(&flags, folder.path().join("bench.log"));
    // Two workers of its own, and `kvasir up` with two.
    let started = descendants(bench.pid(), 5);

    bench.stop();

    assert!(
        bench.log().contains("interrupted before all was measured"),
        "{}",
        bench.log()
    );
    assert!(started.into_iter().all(wait_gone));
}

/// Waits until there are so many.
fn descendants(pid: u32, count: usize) -> Vec<u32> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let children = children(pid);
        let all: Vec<u32> = children
            .iter()
            .copied()
            .chain(children.iter().flat_map(|child| self::children(*child)))
            .collect();
        if all.len() >= count {
            return all;
        }
        assert!(Instant::now() < deadline, "{} of {count} processes came", all.len());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Of the main thread, which starts them all.
fn children(pid: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}
