//! What the tests of all crates share: models to run, and where to find the real one.

use std::path::PathBuf;

pub mod certs;
pub mod cluster_sandbox;
pub mod cluster_watch;
pub mod engine_cluster;
pub mod etcd_cluster;
pub mod etcd_server;
pub mod gguf_writer;
pub mod golden;
pub mod gpu_bench;
pub mod http_answer;
pub mod hub_server;
pub mod lab_network;
pub mod listening_ports;
pub mod lockstep;
pub mod model_folder;
pub mod network_namespace;
pub mod quantize;
pub mod reference_models;
pub mod request_set;
pub mod schedule;
pub mod schemas;
pub mod sim;
pub mod solo_answers;
pub mod tiny_model;

/// Where the checked-in digests and reference models lie: `KVASIR_TEST_DATA`, for programs that have left this tree, or here.
pub fn data_folder() -> PathBuf {
    let moved = std::env::var_os("KVASIR_TEST_DATA").filter(|folder| !folder.is_empty());
    moved.map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

const DEFAULT_MODEL: &str = "kvasir/models/SmolLM2-135M-Instruct.Q4_1.gguf";

/// The model file that tests with real weights use: `KVASIR_MODEL`, or where `cargo xtask model` puts it.
/// Panics if there is none.
pub fn default_model() -> PathBuf {
    let path = std::env::var_os("KVASIR_MODEL")
        .map(PathBuf::from)
        .unwrap_or_else(cached_model);
    assert!(path.is_file(), "no model at {}: run cargo xtask model", path.display());
    path
}

fn cached_model() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .filter(|cache| !cache.is_empty())
        .map(PathBuf::from);
    cache.unwrap_or_else(home).join(DEFAULT_MODEL)
}
pub mod moving;
pub mod parity;
pub mod rank_group;
pub mod story;
pub mod telling;
pub mod whole_logits;
