//! The sixteen answers of `moving`, told again and again at the same time until a test has seen enough. Each is compared
//! with its checked-in digest as soon as it is complete.

use std::sync::atomic::{AtomicBool, Ordering};

use kvasir_proto::v1;

use crate::{
    cluster_sandbox::{ClusterSandbox, request_of},
    moving, parity,
    rank_group::Generation,
};

#[derive(Debug)]
pub struct Telling<'a> {
    sandbox: &'a ClusterSandbox,
    generations: Vec<Generation>,
    digests: Vec<String>,
    done: AtomicBool,
}

impl<'a> Telling<'a> {
    pub fn of(sandbox: &'a ClusterSandbox) -> Self {
        Self {
            sandbox,
            generations: moving::generations(),
            digests: moving::digests(),
            done: AtomicBool::new(false),
        }
    }

    /// No answer is begun any more.
    pub fn end(&self) {
        self.done.store(true, Ordering::Relaxed);
    }

    /// Tells until `end`. Returns how many answers that were.
    ///
    /// # Panics
    /// If one fails, or is not the undisturbed one.
    pub async fn run(&self) -> u64 {
        let streams = (0..self.generations.len()).map(|index| self.tell(index));
        futures::future::join_all(streams).await.into_iter().sum()
    }

    async fn tell(&self, index: usize) -> u64 {
        let mut told = 0;
        while !self.done.load(Ordering::Relaxed) {
            let request = v1::GenerateRequest {
                request_id: format!("{index}-{told}"),
                ..request_of(&self.generations[index])
            };
            let answer = self.sandbox.generate(request).await.expect("an answer");
            let digest = parity::digest(&answer.to_parity());
            assert_eq!(digest, self.digests[index], "answer {told} of stream {index}");
            told += 1;
        }
        told
    }

    /// Tokens that a sequence has still to tell.
    pub fn left(&self, sequence: &v1::SequenceStatus) -> u32 {
        let index = sequence
            .request_id
            .split_once('-')
            .and_then(|(index, _)| index.parse().ok());
        let told: Option<&Generation> = index.and_then(|index: usize| self.generations.get(index));
        let told = told.expect("requests have names that were given here");
        let all = told.prompt.len() + told.max_tokens;
        (all as u32).saturating_sub(sequence.tokens)
    }
}
