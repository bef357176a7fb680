//! What simulated ranks compute: a cell is a hash of the history that was written into it, and what attention reads is a hash
//! of cells.

use std::collections::BTreeMap;

use kvasir_kv::{BlockId, PromptLogprob, ScoredPrompt};
use kvasir_worker::rank_books::WorkInput;

use super::oracle;

pub(super) fn slot_of(block: BlockId, offset: u32, block_size: u32) -> usize {
    (block.0 * block_size + offset) as usize
}

fn slot(work: &WorkInput, block_size: u32, position: u32) -> usize {
    let block = work.blocks[(position / block_size) as usize];
    slot_of(block, position % block_size, block_size)
}

/// Each position's cell follows from the cell before it, as read.
pub(super) fn write_cells(cells: &mut [u64], block_size: u32, work: &WorkInput, lose_last: bool) {
    for (position, token) in (work.start..).zip(&work.tokens) {
        if lose_last && position + 1 == work.end() {
            continue;
        }
        let before = match position.checked_sub(1) {
            Some(before) => cells[slot(work, block_size, before)],
            None => 0,
        };
        cells[slot(work, block_size, position)] = oracle::cell(before, position, *token);
    }
}

/// What attention has read at each row that scores, then at the one that samples.
pub(super) fn read_cells(cells: &[u64], block_size: u32, work: &WorkInput) -> Vec<u64> {
    let mut digest = 0;
    let mut digests = Vec::new();
    for position in 0..work.end() {
        digest = oracle::read(digest, cells[slot(work, block_size, position)]);
        if work.scored.contains(&(position + 1)) {
            digests.push(digest);
        }
    }
    digests.extend(work.samples.then_some(digest));
    digests
}

pub(super) fn score<'a>(work: &WorkInput, digests: &mut impl Iterator<Item = &'a u64>) -> Option<ScoredPrompt> {
    let scored = work.targets.iter().zip(digests);
    let logprobs = scored.map(|(token, digest)| PromptLogprob {
        logprob: oracle::score(*digest, *token),
        top_logprobs: Vec::new(),
    });
    (!work.targets.is_empty()).then(|| ScoredPrompt {
        sequence: work.sequence,
        start: work.scored.start,
        logprobs: logprobs.collect(),
    })
}

/// What the ranks agree on; where they differ, something that is nobody's answer.
pub(super) fn reduce(digests: &BTreeMap<u32, Option<Vec<u64>>>) -> Vec<u64> {
    let mut of_ranks = digests.values().flatten();
    let Some(first) = of_ranks.next() else {
        return Vec::new();
    };
    let mut outcome = first.clone();
    for other in of_ranks {
        for (mine, theirs) in outcome.iter_mut().zip(other) {
            if *mine != *theirs {
                *mine = oracle::read(*mine, *theirs);
            }
        }
    }
    outcome
}
