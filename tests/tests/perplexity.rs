//! `kvasir perplexity`: llama.cpp's values on a known text, the same bits on any number of workers, clear errors.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use kvasir_tests::{cluster_sandbox::kvasir, default_model};
use serde_json::Value;

/// The text of the Apache License 2.0, 11,357 bytes.
fn license() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../LICENSE")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn measure(flags: &[&str]) -> Value {
    let (model, file) = (default_model(), license());
    let args = ["perplexity", "--model", text(&model), "--file", text(&file), "--json"];
    let output = kvasir([&args, flags].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no report: {stderr}"))
}

/// llama.cpp's value for the model, our own to the bit, and the digest of all logprobs.
struct Expected {
    theirs: f64,
    ours: f64,
    digest: &'static str,
}

fn check(flags: &[&str], expected: &Expected) {
    for workers in ["1", "3"] {
        let report = measure(&[flags, &["--workers", workers]].concat());
        let perplexity = report["perplexity"].as_f64().unwrap();
        println!("{workers} workers {flags:?}: {report}");
        assert!((perplexity / expected.theirs - 1.0).abs() < 0.01, "{report}");
        assert!((perplexity / expected.ours - 1.0).abs() < 1e-12, "{report}");
        assert_eq!(report["digest"], expected.digest, "{report}");
        let chunks = report["chunks"].as_u64().unwrap();
        assert_eq!(report["tokens"].as_u64(), Some(chunks * 255), "{report}");
    }
}

#[test]
fn a_known_text_has_the_perplexity_that_another_engine_gives_it() {
    check(
        &[],
        &Expected {
            theirs: 15.9351,
            ours: 15.983367391568754,
            digest: "d88232829f0e477afff3e76b4f578fe3",
        },
    );
}

#[test]
fn a_known_text_has_the_perplexity_that_another_engine_gives_it_in_f32() {
    check(
        &["--weights-dtype", "f32", "--kv-dtype", "f32"],
        &Expected {
            theirs: 15.9263,
            ours: 15.927986240545156,
            digest: "1865942cf676d7fd2bd720643aab3878",
        },
    );
}

/// A file that the gguf package requantizes to Q8_0 gives this very digest.
#[test]
fn a_known_text_has_the_perplexity_that_another_engine_gives_it_with_weights_quantized_at_load() {
    check(
        &["--weights-dtype", "q8_0"],
        &Expected {
            theirs: 15.9151,
            ours: 15.831336777743036,
            digest: "95a652a6278f3ab000c00585c982685a",
        },
    );
}

#[test]
fn running_values_end_with_the_final_one() {
    let (model, file) = (default_model(), license());
    let flags = ["--context", "256", "--workers", "2"];
    let output = kvasir(
        [
            &["perplexity", "--model", text(&model), "--file", text(&file)],
            &flags[..],
        ]
        .concat(),
    );
    let lines: Vec<String> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    let (last, running) = lines.split_last().unwrap();
    let value = |line: &String| line.split(' ').nth(1).unwrap().to_owned();
    assert_eq!(running.len(), 8, "{lines:?}");
    assert!(running[0].starts_with("[1/8] "), "{lines:?}");
    assert_eq!(value(&running[7]), value(last).trim_end_matches(','), "{lines:?}");
    assert!(
        last.contains(" +/- ") && last.contains("1016 tokens scored in 8 chunks of 256"),
        "{last}"
    );
}

#[test]
fn a_text_that_cannot_be_measured_is_named_before_a_worker_starts() {
    let folder = tempfile::tempdir().unwrap();
    let model = default_model();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let (short, broken) = (file("short.txt", b"Once upon a time."), file("broken.txt", b"caf\xe9 "));
    let absent = folder.path().join("absent.txt");
    let cases: [(&Path, &str, &[&str]); 4] = [
        (
            &short,
            "512",
            &["short.txt has 5 tokens, a chunk takes 512", "--context 5 or less"],
        ),
        (&broken, "512", &["broken.txt is not UTF-8", "byte 3"]),
        (&absent, "512", &["absent.txt", "No such file"]),
        (&short, "8193", &["--context 8193", "8192"]),
    ];
    for (file, context, fragments) in cases {
        let args = [
            "perplexity",
            "--model",
            text(&model),
            "--file",
            text(file),
            "--context",
            context,
        ];
        let output = kvasir(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        for fragment in fragments {
            assert!(stderr.contains(fragment), "`{fragment}` is not in: {stderr}");
        }
    }
    let low = kvasir([
        "perplexity",
        "--model",
        text(&model),
        "--file",
        text(&short),
        "--context",
        "3",
    ]);
    assert_eq!(low.status.code(), Some(2));
}
