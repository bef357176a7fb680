//! For each rule, trees that break it and trees that come close and keep it: a rule that cannot fail guards nothing.

use super::rules;
use super::tree::Tree;

type Files = &'static [(&'static str, &'static str)];

struct Example {
    rule: &'static str,
    breaks: &'static [Files],
    keeps: &'static [Files],
}

const LONG: &str = match std::str::from_utf8(&[b'\n'; 701]) {
    Ok(text) => text,
    Err(_) => panic!("newlines are text"),
};

const EXAMPLES: &[Example] = &[
    Example {
        rule: "imports-point-one-way",
        breaks: &[
            &[("kv/Cargo.toml", "[dependencies]\nkvasir-model.workspace = true")],
            &[(
                "coordinator/Cargo.toml",
                "[dependencies]\nkvasir-worker.workspace = true",
            )],
            &[(
                "worker/Cargo.toml",
                "[dev-dependencies]\nkvasir-coordinator.workspace = true",
            )],
            &[("proto/Cargo.toml", "[dependencies]\nkvasir-tests.workspace = true")],
        ],
        keeps: &[
            &[(
                "cli/Cargo.toml",
                "[dependencies]\nkvasir-worker.workspace = true\nkvasir-coordinator.workspace = true",
            )],
            &[("model/Cargo.toml", "[dev-dependencies]\nkvasir-tests.workspace = true")],
        ],
    },
    Example {
        rule: "kv-stands-alone",
        breaks: &[
            &[("kv/Cargo.toml", "[dependencies]\ntokio = \"1\"")],
            &[("kv/Cargo.toml", "[target.'cfg(unix)'.dependencies]\nrand = \"1\"")],
        ],
        keeps: &[&[(
            "kv/Cargo.toml",
            "[dependencies]\nthiserror.workspace = true\n[dev-dependencies]\nproptest = \"1\"",
        )]],
    },
    Example {
        rule: "tensors-stay-in-worker",
        breaks: &[
            &[("model/Cargo.toml", "[dependencies]\ncandle-core.workspace = true")],
            &[("tests/Cargo.toml", "[dev-dependencies]\ncudarc = \"1\"")],
        ],
        keeps: &[&[("worker/Cargo.toml", "[dependencies]\ncandle-core.workspace = true")]],
    },
    Example {
        rule: "anyhow-at-the-rim",
        breaks: &[&[("runtime/Cargo.toml", "[dependencies]\nanyhow.workspace = true")]],
        keeps: &[
            &[("cli/Cargo.toml", "[dependencies]\nanyhow.workspace = true")],
            &[("proto/Cargo.toml", "[dev-dependencies]\nanyhow.workspace = true")],
        ],
    },
    Example {
        rule: "kv-is-pure",
        breaks: &[
            &[("kv/src/pool.rs", "//! a\nuse std::collections::HashMap;")],
            &[("kv/src/pool.rs", "//! a\nlet now = std::time::Duration::ZERO;")],
            &[("kv/src/pool.rs", "//! a\nasync fn step() {}")],
        ],
        keeps: &[
            &[("kv/src/pool.rs", "//! no HashMap here\nlet operand = \"Instant\";")],
            &[(
                "kv/src/pool.rs",
                "//! a\n#[cfg(test)]\nmod tests {\nuse std::collections::HashSet;\n}",
            )],
        ],
    },
    Example {
        rule: "coordinator-decides-without-io",
        breaks: &[
            &[("coordinator/src/scheduler.rs", "//! a\nlet now = Instant::now();")],
            &[("coordinator/src/group/epoch.rs", "//! a\nuse tokio::sync::mpsc;")],
            &[("coordinator/src/lib.rs", "//! a\nfn f() -> tonic::Status {}")],
        ],
        keeps: &[
            &[(
                "coordinator/src/scheduler.rs",
                "//! a\nfn on(&mut self, event: Event, now: Instant) {}",
            )],
            &[("coordinator/src/driver/clock.rs", "//! a\nlet now = Instant::now();")],
        ],
    },
    Example {
        rule: "unsafe-stays-put",
        breaks: &[
            &[("kv/src/pool.rs", "//! a\nlet x = unsafe { y };")],
            &[("worker/src/arith/portable.rs", "//! a\nunsafe fn f() {}")],
            &[(
                "tests/tests/e2e.rs",
                "//! a\n#[cfg(test)]\nmod tests {\nunsafe { f() }\n}",
            )],
        ],
        keeps: &[
            &[("worker/src/arith/x86/avx2.rs", "//! a\nunsafe fn f() {}")],
            &[(
                "kv/src/pool.rs",
                "//! a\n// unsafe is not needed\nlet a = \"unsafe\"; let unsafe_blocks = 0;",
            )],
        ],
    },
    Example {
        rule: "files-introduce-themselves",
        breaks: &[
            &[("kv/src/pool.rs", "use crate::ids::BlockId;\n//! late")],
            &[("tests/tests/e2e.rs", "// a plain comment")],
        ],
        keeps: &[
            &[("kv/src/pool.rs", "//! The pool.")],
            &[("proto/src/generated/kvasir.v1.rs", "// @generated")],
        ],
    },
    Example {
        rule: "files-stay-short",
        breaks: &[&[("kv/src/pool.rs", LONG)]],
        keeps: &[
            &[("kv/src/pool.rs", "//! a")],
            &[("proto/src/generated/kvasir.v1.rs", LONG)],
        ],
    },
    Example {
        rule: "nothing-left-undone",
        breaks: &[
            &[("kv/src/pool.rs", concat!("//! a\nfn f() { todo", "!() }"))],
            &[(
                "kv/src/pool.rs",
                concat!("//! a\n#[cfg(test)]\nmod tests {\n#[", "ignore]\nfn f() {}\n}"),
            )],
            &[("kv/src/pool.rs", concat!("//! a\n// TO", "DO: later"))],
            &[("README.md", concat!("- TO", "DO"))],
        ],
        keeps: &[&[("kv/src/pool.rs", "//! a\nlet todo = ignore(todo);")]],
    },
    Example {
        rule: "no-private-places",
        breaks: &[
            &[("README.md", concat!("see https://pypi", ".org/project/x"))],
            &[("deploy/compose.yaml", concat!("- /ho", "me/me/models:/models"))],
            &[("kv/src/pool.rs", concat!("//! a\nlet path = \"/ro", "ot/x\";"))],
        ],
        keeps: &[
            &[("README.md", "~/.cache/kvasir, or a host of your own")],
            &[(
                "Cargo.lock",
                concat!("source = \"registry+https://index.crates", ".io/\""),
            )],
        ],
    },
];

#[test]
fn every_rule_has_an_example() {
    let names: Vec<_> = rules().map(|rule| rule.name).collect();
    let with_examples: Vec<_> = EXAMPLES.iter().map(|example| example.rule).collect();
    assert_eq!(names, with_examples);
}

#[test]
fn every_rule_can_fail() {
    for (rule, example) in rules().zip(EXAMPLES) {
        for files in example.breaks {
            let findings = (rule.check)(&Tree::of(files));
            assert_eq!(findings.len(), 1, "{}: {files:?}: {findings:?}", rule.name);
            assert!(findings[0].line > 0 && files[0].0 == findings[0].path, "{findings:?}");
        }
    }
}

#[test]
fn no_rule_refuses_what_only_comes_close() {
    for (rule, example) in rules().zip(EXAMPLES) {
        for files in example.keeps {
            assert_eq!((rule.check)(&Tree::of(files)), [], "{}", rule.name);
        }
    }
}
