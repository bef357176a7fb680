//! The rules that source lines can break: what must not be there, and where.

use super::source::{Source, holds_word};
use super::tree::Tree;
use super::{Finding, Rule};

pub const RULES: &[Rule] = &[
    Rule {
        name: "kv-is-pure",
        why: "the books act on nothing and ask nothing, and their order never depends on a hasher",
        check: kv_is_pure,
    },
    Rule {
        name: "coordinator-decides-without-io",
        why: "the state machines run in the simulation exactly as they run in the drivers",
        check: coordinator_decides_without_io,
    },
    Rule {
        name: "unsafe-stays-put",
        why: "few files need it, and those are read with care",
        check: unsafe_stays_put,
    },
    Rule {
        name: "files-introduce-themselves",
        why: "`//!` says what a file is before it begins",
        check: files_introduce_themselves,
    },
    Rule {
        name: "files-stay-short",
        why: "one noun, one file",
        check: files_stay_short,
    },
    Rule {
        name: "nothing-left-undone",
        why: "what is in the tree works and is tested",
        check: nothing_left_undone,
    },
    Rule {
        name: "no-private-places",
        why: "it builds on every machine and behind every mirror",
        check: no_private_places,
    },
];

const IMPURE: [&str; 15] = [
    "HashMap",
    "HashSet",
    "async",
    "await",
    "tokio",
    "rand",
    "Instant",
    "SystemTime",
    "std::env",
    "std::fs",
    "std::io",
    "std::net",
    "std::process",
    "std::thread",
    "std::time",
];
const IO: [&str; 12] = [
    "tokio",
    "tonic",
    "async",
    "await",
    "Instant::now",
    "SystemTime",
    "rand",
    "std::fs",
    "std::io",
    "std::net",
    "std::process",
    "std::thread",
];
/// What of the coordinator acts, by the start of its path: the task around the machines, the one that finds out who leads,
/// and the doors to clients and workers. All other files decide.
const DRIVERS: [&str; 8] = [
    "coordinator/src/driver.rs",
    "coordinator/src/driver/",
    "coordinator/src/generate.rs",
    "coordinator/src/grpc/",
    "coordinator/src/lead/",
    "coordinator/src/server.rs",
    "coordinator/src/token_log.rs",
    // What the drivers tell of themselves.
    "coordinator/src/telemetry/",
];
const UNSAFE_FILES: [&str; 8] = [
    "model/src/mapped.rs",
    "worker/src/arith/huge.rs",
    "worker/src/arith/x86/",
    "worker/src/collective/shared_memory.rs",
    "worker/src/gpu/cuda_device",
    "worker/src/gpu/host_device.rs",
    "worker/src/threads.rs",
    "worker/src/transfer/slot_memory.rs",
];
const LINES_LISTED: usize = 500;
const LINES_MAX: usize = 700;
/// Files that may be longer, each with its reason.
const LONG_WITH_REASON: [(&str, &str); 0] = [];
// Written so that this file does not break its own rules.
const UNDONE_MARKS: [&str; 2] = [concat!("TO", "DO"), concat!("FIX", "ME")];
const UNDONE_CODE: [&str; 3] = [
    concat!("todo", "!"),
    concat!("unimplemented", "!"),
    concat!("#[", "ignore"),
];
const REGISTRY_HOSTS: [&str; 7] = [
    concat!("crates", ".io/"),
    concat!("static.crates", ".io"),
    concat!("index.crates", ".io"),
    concat!("pypi", ".org"),
    concat!("files.python", "hosted.org"),
    concat!("registry.npm", "js.org"),
    concat!("proxy.golang", ".org"),
];
const HOME_FOLDERS: [&str; 3] = [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/")];

/// Files longer than one would like, with their lines.
pub fn long_files(tree: &Tree) -> Vec<(String, usize)> {
    let long = tree.sources().filter(|source| source.num_lines() > LINES_LISTED);
    long.map(|source| (source.path.to_owned(), source.num_lines()))
        .collect()
}

fn kv_is_pure(tree: &Tree) -> Vec<Finding> {
    words_in(
        tree.sources().filter(|source| source.path.starts_with("kv/src/")),
        &IMPURE,
    )
}

fn coordinator_decides_without_io(tree: &Tree) -> Vec<Finding> {
    let is_driver = |path: &str| DRIVERS.iter().any(|driver| path.starts_with(driver));
    let brain = tree
        .sources()
        .filter(|source| source.path.starts_with("coordinator/src/") && !is_driver(source.path));
    words_in(brain, &IO)
}

fn words_in<'a>(sources: impl Iterator<Item = Source<'a>>, words: &[&str]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources {
        for (line, code) in source.product_code() {
            let found = words.iter().filter(|word| holds_word(code, word));
            findings.extend(found.map(|word| Finding::new(source.path, line, format!("uses {word}"))));
        }
    }
    findings
}

fn unsafe_stays_put(tree: &Tree) -> Vec<Finding> {
    let is_named = |path: &str| UNSAFE_FILES.iter().any(|named| path.starts_with(named));
    let mut findings = Vec::new();
    for source in tree.sources().filter(|source| !is_named(source.path)) {
        let lines = source.code().filter(|(_, code)| holds_word(code, "unsafe"));
        findings
            .extend(lines.map(|(line, _)| Finding::new(source.path, line, "unsafe outside the files named for it")));
    }
    findings
}

fn files_introduce_themselves(tree: &Tree) -> Vec<Finding> {
    let silent = tree.sources().filter(|source| !source.text.starts_with("//!"));
    silent
        .map(|source| Finding::new(source.path, 1, "does not open with `//!`"))
        .collect()
}

fn files_stay_short(tree: &Tree) -> Vec<Finding> {
    let has_reason = |path: &str| LONG_WITH_REASON.iter().any(|(named, _)| *named == path);
    let long = tree
        .sources()
        .filter(|source| source.num_lines() > LINES_MAX && !has_reason(source.path));
    long.map(|source| Finding::new(source.path, LINES_MAX, format!("has {} lines", source.num_lines())))
        .collect()
}

fn nothing_left_undone(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in tree.sources() {
        findings.extend(marks(source.path, source.comments(), &UNDONE_MARKS));
        findings.extend(marks(source.path, source.code(), &UNDONE_CODE));
    }
    for (path, text) in tree.files().filter(|(path, _)| !path.ends_with(".rs")) {
        findings.extend(marks(path, numbered(text), &UNDONE_MARKS));
    }
    findings
}

fn no_private_places(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    // The lock file names the index of every source by itself.
    for (path, text) in tree.files().filter(|(path, _)| *path != "Cargo.lock") {
        findings.extend(marks(path, numbered(text), &REGISTRY_HOSTS));
        findings.extend(marks(path, numbered(text), &HOME_FOLDERS));
    }
    findings
}

/// Finds marks that do not merely continue another word or path.
fn marks<'a>(path: &str, lines: impl Iterator<Item = (usize, &'a str)>, wanted: &[&str]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, text) in lines {
        let continues = |start: usize| {
            text[..start].ends_with(|character: char| character.is_alphanumeric() || "_~-}".contains(character))
        };
        let found = wanted
            .iter()
            .filter(|mark| text.match_indices(**mark).any(|(start, _)| !continues(start)));
        findings.extend(found.map(|mark| Finding::new(path, line, format!("holds {mark}"))));
    }
    findings
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}
