//! The rules that manifests can break: who may depend on whom, and on what.

use super::manifest::{Dependency, dependencies};
use super::tree::Tree;
use super::{Finding, Rule};

pub const RULES: &[Rule] = &[
    Rule {
        name: "imports-point-one-way",
        why: "kv <- model <- proto <- runtime <- {coordinator, worker, client <- gateway} <- cli, so that each can be read without those above",
        check: imports_point_one_way,
    },
    Rule {
        name: "kv-stands-alone",
        why: "the books have no async, clock, tensor, I/O or randomness: then a seed replays them exactly",
        check: kv_stands_alone,
    },
    Rule {
        name: "tensors-stay-in-worker",
        why: "only worker does arithmetic and links CUDA",
        check: tensors_stay_in_worker,
    },
    Rule {
        name: "anyhow-at-the-rim",
        why: "libraries say with types what can fail",
        check: anyhow_at_the_rim,
    },
];

/// The crates and how high each stands; equals never import each other.
const HEIGHTS: [(&str, &str, u32); 11] = [
    ("kv", "kvasir-kv", 0),
    ("model", "kvasir-model", 1),
    ("proto", "kvasir-proto", 2),
    ("runtime", "kvasir-runtime", 3),
    ("coordinator", "kvasir-coordinator", 4),
    ("worker", "kvasir-worker", 4),
    ("client", "kvasir-client", 4),
    ("gateway", "kvasir-gateway", 5),
    ("cli", "kvasir", 6),
    ("tests", "kvasir-tests", 7),
    ("xtask", "xtask", 8),
];
const KV_MAY_USE: [&str; 3] = ["blake3", "crc32c", "thiserror"];
const TENSOR_CRATES: [&str; 4] = ["candle", "cudarc", "nccl", "tch"];
const RIM: [&str; 3] = ["cli", "xtask", "tests"];

fn imports_point_one_way(tree: &Tree) -> Vec<Finding> {
    in_manifests(tree, |folder, dependency| {
        let own = HEIGHTS.iter().find(|(crate_folder, ..)| *crate_folder == folder)?.2;
        let theirs = HEIGHTS.iter().find(|(_, package, _)| *package == dependency.name)?.2;
        // kvasir-tests holds the models that every crate's own tests run on.
        let shared_test_data = dependency.only_for_tests && dependency.name == "kvasir-tests";
        (theirs >= own && !shared_test_data).then(|| format!("{folder} must not depend on {}", dependency.name))
    })
}

fn kv_stands_alone(tree: &Tree) -> Vec<Finding> {
    in_manifests(tree, |folder, dependency| {
        let refused = folder == "kv" && !dependency.only_for_tests && !KV_MAY_USE.contains(&dependency.name);
        refused.then(|| format!("kv must not depend on {}", dependency.name))
    })
}

fn tensors_stay_in_worker(tree: &Tree) -> Vec<Finding> {
    in_manifests(tree, |folder, dependency| {
        let is_tensor = TENSOR_CRATES.iter().any(|name| dependency.name.starts_with(name));
        (is_tensor && folder != "worker").then(|| format!("{folder} must not depend on {}", dependency.name))
    })
}

fn anyhow_at_the_rim(tree: &Tree) -> Vec<Finding> {
    in_manifests(tree, |folder, dependency| {
        let refused = dependency.name == "anyhow" && !dependency.only_for_tests && !RIM.contains(&folder);
        refused.then(|| format!("{folder} must not use anyhow outside its tests"))
    })
}

fn in_manifests(tree: &Tree, refusal: impl Fn(&str, &Dependency) -> Option<String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (folder, manifest) in tree.manifests() {
        for dependency in dependencies(manifest) {
            let what = refusal(folder, &dependency);
            findings.extend(what.map(|what| Finding::new(&format!("{folder}/Cargo.toml"), dependency.line, what)));
        }
    }
    findings
}
