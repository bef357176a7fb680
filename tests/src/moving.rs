//! Sixteen answers of the default model, long enough to be moved about while they are being told, each with a checked-in
//! digest of the undisturbed answer.

use std::path::{Path, PathBuf};

use crate::{
    parity,
    rank_group::{Generation, GroupOptions, RankGroup},
    request_set::RequestSet,
};

const SET: RequestSet = RequestSet {
    name: "moving",
    model: "smollm2-135m",
    num_requests: 16,
    prefix_lens: [200, 200, 120, 0],
    suffix_len_max: 40,
    answer_lens: [100, 200],
    tenants: false,
    knobs: false,
};

const VOCAB_SIZE: u32 = 49_152;

/// Greedy and random by turns; some prompts share their beginning.
pub fn generations() -> Vec<Generation> {
    let requests = SET.requests(VOCAB_SIZE).into_iter();
    requests
        .map(|request| Generation {
            prompt: request.prompt,
            max_tokens: request.max_tokens as usize,
            sampling: request.sampling,
            prompt_logprobs: None,
        })
        .collect()
}

/// In the order of `generations`. With `KVASIR_WRITE_DIGESTS` set, the file is written anew first: one rank, one thread,
/// each answer alone.
///
/// # Panics
/// If the file is not there.
pub fn digests() -> Vec<String> {
    if std::env::var_os("KVASIR_WRITE_DIGESTS").is_some() {
        write();
    }
    let text = std::fs::read_to_string(file()).expect("tests/digests/moving.json is checked in");
    serde_json::from_str(&text).expect("a list of digests")
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("digests/moving.json")
}

fn write() {
    let folder = tempfile::tempdir().expect("room for a folder");
    let checkpoint = parity::open_model(SET.model, folder.path());
    let mut group = RankGroup::start(&checkpoint, GroupOptions::default());
    let alone = |generation: Generation| {
        let answer = group.generate(&[generation], |_, _| usize::MAX).remove(0);
        parity::digest(&answer)
    };
    let digests: Vec<String> = generations().into_iter().map(alone).collect();
    let text = serde_json::to_string_pretty(&digests).expect("plain data") + "\n";
    std::fs::write(file(), text).expect("the folder takes a file");
}
