//! What each request of a set gets alone: the expected side of tests that serve it amid others.
//!
//! An answer is checked in as one line: four digits for each token, which depend on every bit up to it, then the digest
//! of the whole. So one that was cut short can be checked as well. They were computed in the plainest way: one rank,
//! one thread, no other sequence, the prompt in one step, no prefix cache, no preemption.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use kvasir_kv::Request;
use kvasir_model::Checkpoint;

use crate::{
    parity,
    rank_group::{Answer, Generation, GroupOptions, RankGroup},
    request_set::{KNOBS, REAL, RequestSet, THOUSAND, TINY},
};

const DIGITS_PER_TOKEN: usize = 4;

/// By name of the set, in the order of its requests.
type Lines = BTreeMap<String, Vec<String>>;

/// The checked-in answers of a set.
#[derive(Debug)]
pub struct SoloAnswers(&'static [String]);

impl SoloAnswers {
    /// With `KVASIR_WRITE_DIGESTS` set, the file is written anew first. Panics if it lacks the set.
    pub fn of(set: &RequestSet) -> Self {
        static LINES: OnceLock<Lines> = OnceLock::new();
        Self(&LINES.get_or_init(read_or_write)[set.name])
    }

    /// Whether this is the whole answer to the request of that index, bit by bit.
    pub fn is_whole(&self, index: usize, answer: &Answer) -> bool {
        self.0[index] == line(answer)
    }

    /// Whether this is a beginning of it, bit by bit.
    pub fn begins_with(&self, index: usize, answer: &Answer) -> bool {
        let (expected, _) = self.0[index].split_once(' ').expect("digits and a digest");
        expected.starts_with(&trail(answer))
    }

    pub fn lines(&self) -> &[String] {
        self.0
    }
}

fn line(answer: &Answer) -> String {
    format!("{} {}", trail(answer), parity::digest(answer))
}

fn trail(answer: &Answer) -> String {
    let lens = 1..=answer.tokens.len();
    lens.map(|len| parity::digest(&first(answer, len))[..DIGITS_PER_TOKEN].to_owned())
        .collect()
}

fn first(answer: &Answer, len: usize) -> Answer {
    Answer {
        tokens: answer.tokens[..len].to_vec(),
        logprobs: answer.logprobs[..len].to_vec(),
        top_logprobs: answer.top_logprobs[..len].to_vec(),
        prompt_logprobs: answer.prompt_logprobs.clone(),
        poisoned: answer.poisoned,
    }
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("digests/schedules.json")
}

fn read_or_write() -> Lines {
    if std::env::var_os("KVASIR_WRITE_DIGESTS").is_some() {
        write();
    }
    let text = std::fs::read_to_string(file()).expect("tests/digests/schedules.json is checked in");
    serde_json::from_str(&text).expect("a map of lists")
}

/// Replaced in one go: each test is a process, and they do this at the same time.
fn write() {
    let folder = tempfile::tempdir_in(file().parent().expect("it lies in a folder")).expect("room for a folder");
    let all = TINY.into_iter().chain([REAL, THOUSAND, KNOBS]);
    let lines: Lines = all
        .map(|set| (set.name.to_owned(), compute(&set, folder.path())))
        .collect();
    let draft = folder.path().join("draft");
    let text = serde_json::to_string_pretty(&lines).expect("plain data") + "\n";
    std::fs::write(&draft, text).expect("the folder takes a file");
    std::fs::rename(draft, file()).expect("both are in one file system");
}

fn compute(set: &RequestSet, folder: &Path) -> Vec<String> {
    let checkpoint: Arc<Checkpoint> = parity::open_model(set.model, folder);
    let mut group = RankGroup::start(&checkpoint, GroupOptions::default());
    let requests = set.requests(checkpoint.spec().vocab_size);
    requests
        .iter()
        .map(|request| line(&alone(&mut group, request)))
        .collect()
}

fn alone(group: &mut RankGroup, request: &Request) -> Answer {
    let generation = Generation {
        prompt: request.prompt.clone(),
        max_tokens: request.max_tokens as usize,
        sampling: request.sampling.clone(),
        prompt_logprobs: request.prompt_logprobs.map(|wanted| wanted.top),
    };
    let whole = group.generate(&[generation], |_, _| usize::MAX).remove(0);
    let is_stop = |token| request.stop_tokens.contains(token);
    let len = whole
        .tokens
        .iter()
        .position(is_stop)
        .map_or(whole.tokens.len(), |stop| stop + 1);
    first(&whole, len)
}
