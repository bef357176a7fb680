//! The script that checks a GPU, with programs in place of the real ones: whatever one of them does, the others run, and what
//! came of each is in the table and the JSON.

#![allow(clippy::unwrap_used)]

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

/// Lists tests that pass, fail, hang and leave; whatever else it is asked passes.
const WORKER_TESTS: &str = r#"#!/bin/sh
case "$*" in
  *--list*) printf 'gpu::tests::good: test\ngpu::tests::bad: test\ngpu::tests::hangs: test\ngpu::tests::last: test\n' ;;
  *bad*) echo "thread panicked at cells.rs:7:"; echo "  left: 1"; exit 101 ;;
  *hangs*) sleep 600 ;;
esac
"#;
const PASSING: &str = "#!/bin/sh\ncase \"$*\" in *--list*) echo 'all: test' ;; esac\n";
/// Two workers give another digest than one.
const KVASIR: &str = r#"#!/bin/sh
case "$*" in
  *"--workers 2"*) echo '{"digest": "b"}' ;;
  *) echo '{"digest": "a"}' ;;
esac
"#;
const BENCH: &str = r#"#!/bin/sh
[ "$1" = attention ] && { echo "error: out of memory"; exit 1; }
printf '{"copy_gb_s": 3000.5}' > "$2"
"#;

struct Outcome {
    exit_code: Option<i32>,
    table: String,
    json: serde_json::Value,
}

fn run(seconds: &str) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("gpu/gpu_check.sh");
    fs::copy(script, place.join("gpu_check.sh")).unwrap();
    for (name, text) in [
        ("worker_tests", WORKER_TESTS),
        ("gpu_group", PASSING),
        ("gpu_parity", PASSING),
        ("gpu_fast", PASSING),
        ("kvasir", KVASIR),
        ("gpu_bench", BENCH),
    ] {
        fs::write(place.join(name), text).unwrap();
        fs::set_permissions(place.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let out = place.join("results");
    let mut bash = Command::new("bash");
    bash.arg(place.join("gpu_check.sh")).env("OUT", &out);
    // A python without torch, so that the answer is the same wherever this runs.
    bash.env("PYTHONPATH", no_torch(place)).env_remove("KVASIR_MODEL");
    bash.envs([
        ("KVASIR_GPU", "host"),
        ("GPU_TEST_SECONDS", "2"),
        ("GPU_CHECK_SECONDS", seconds),
    ]);
    let output = bash.output().unwrap();
    Outcome {
        exit_code: output.status.code(),
        table: String::from_utf8(output.stdout).unwrap(),
        json: serde_json::from_slice(&fs::read(out.join("gpu-check.json")).unwrap()).unwrap(),
    }
}

fn no_torch(place: &Path) -> std::path::PathBuf {
    let folder = place.join("python");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("torch.py"), "raise ImportError").unwrap();
    folder
}

#[test]
fn one_check_hides_no_other() {
    let outcome = run("120");
    let verdict = |name: &str| {
        let checks = outcome.json["checks"].as_array().unwrap();
        let found = checks.iter().find(|check| check["name"] == name);
        let found = found.unwrap_or_else(|| panic!("no check {name} in {}", outcome.table));
        (found["verdict"].as_str().unwrap(), found["words"].as_str().unwrap())
    };
    assert_eq!(verdict("worker_tests gpu::tests::good"), ("ok", ""));
    let (bad, words) = verdict("worker_tests gpu::tests::bad");
    assert!(
        bad == "FAILED" && words.contains("panicked at cells.rs:7") && words.contains("left: 1"),
        "{words}"
    );
    assert_eq!(verdict("worker_tests gpu::tests::hangs").0, "TIMED OUT");
    assert_eq!(verdict("worker_tests gpu::tests::last").0, "ok");
    assert_eq!(verdict("gpu_parity all").0, "ok");
    assert_eq!(verdict("same bits through processes, 1 worker").0, "ok");
    let (different, words) = verdict("same bits through processes, 2 workers on one GPU");
    assert!(different == "FAILED" && words.contains("the bits differ"), "{words}");
    assert_eq!(
        verdict("same bits of the default model"),
        ("NOT HERE", "KVASIR_MODEL names no file")
    );
    assert_eq!(verdict("measure roofline").0, "ok");
    assert!(verdict("measure attention").1.contains("out of memory"));
    assert_eq!(verdict("measure torch"), ("NOT HERE", "python3 has no torch"));
    assert_eq!(outcome.json["numbers"]["roofline"]["copy_gb_s"], 3000.5);
    assert!(
        outcome.table.contains("TIMED OUT worker_tests gpu::tests::hangs"),
        "{}",
        outcome.table
    );
    assert_eq!(outcome.exit_code, Some(1));
}

#[test]
fn once_the_time_is_up_the_rest_is_not_run_and_says_so() {
    let outcome = run("0");
    let checks = outcome.json["checks"].as_array().unwrap();
    assert!(checks.len() > 8, "{}", outcome.table);
    assert!(
        checks.iter().all(|check| check["verdict"] == "NOT RUN"),
        "{}",
        outcome.table
    );
    assert_eq!(outcome.exit_code, Some(1));
}
