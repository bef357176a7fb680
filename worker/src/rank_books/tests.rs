//! Every refusal of the books, and that a refused plan changes nothing.

use kvasir_kv::{BlockTag, GroupId, Rank, RankShare, Transport};

use super::*;

const EPOCH: Epoch = Epoch { term: 2, number: 5 };

fn books() -> RankBooks {
    RankBooks::new(&EpochSpec {
        group: GroupId(0),
        epoch: EPOCH,
        rank: Rank(0),
        transport: Transport::Solo,
        nonce: 1,
        shares: vec![RankShare::default()],
        num_blocks: 8,
        block_size: 4,
        step_tokens_max: 10,
    })
}

fn block(id: u32, tag: u32) -> TaggedBlock {
    TaggedBlock {
        id: BlockId(id),
        tag: BlockTag(tag),
    }
}

fn admitted(sequence: u64, len: u32) -> AdmittedSequence {
    AdmittedSequence {
        sequence: SequenceId(sequence),
        tokens: (0..len).map(|i| TokenId(100 + i)).collect(),
        prompt_len: len,
        sampling: Sampling::default(),
        prompt_top_logprobs: 0,
    }
}

fn work(sequence: u64, start: u32, num_tokens: u32, new_blocks: Vec<TaggedBlock>, samples: bool) -> SequenceWork {
    SequenceWork {
        sequence: SequenceId(sequence),
        start,
        num_tokens,
        new_blocks,
        samples,
        scored: 0..0,
    }
}

fn plan(step: u64, admitted: Vec<AdmittedSequence>, work: Vec<SequenceWork>) -> StepPlan {
    StepPlan {
        epoch: EPOCH,
        step: StepId(step),
        admitted,
        work,
        retired: Vec::new(),
        adopted: Vec::new(),
    }
}

/// Sequence 1, 6 tokens in blocks 0 and 1, all computed, one token sampled.
fn books_with_one_sequence() -> RankBooks {
    let mut books = books();
    let first = plan(
        0,
        vec![admitted(1, 6)],
        vec![work(1, 0, 6, vec![block(0, 1), block(1, 1)], true)],
    );
    books.apply(&first).unwrap();
    books.commit(&[(SequenceId(1), TokenId(7))]);
    books
}

/// Refused as `expected` says, and the right next step is still accepted.
fn assert_refused(bad: StepPlan, expected: StepRefused) {
    let mut books = books_with_one_sequence();
    assert_eq!(books.apply(&bad), Err(expected));
    let good = books
        .apply(&plan(1, vec![], vec![work(1, 6, 1, vec![], true)]))
        .unwrap();
    assert_eq!(good.work[0].tokens, [TokenId(7)], "a refused plan changed the books");
    assert_eq!(books.num_sequences(), 1);
}

#[test]
fn a_step_names_its_tokens_positions_and_blocks() {
    let mut books = books_with_one_sequence();
    let input = books
        .apply(&plan(1, vec![], vec![work(1, 6, 1, vec![], true)]))
        .unwrap();
    assert_eq!(
        input.work,
        [WorkInput {
            sequence: SequenceId(1),
            tokens: vec![TokenId(7)],
            start: 6,
            blocks: vec![BlockId(0), BlockId(1)],
            samples: true,
            prompt_len: 6,
            ..WorkInput::default()
        }]
    );
    assert_eq!(input.work[0].answer_index(), 1);
}

#[test]
fn a_chunk_inside_the_prompt_samples_nothing() {
    let mut books = books();
    let chunk = plan(0, vec![admitted(1, 6)], vec![work(1, 0, 4, vec![block(0, 1)], false)]);
    assert_eq!(books.apply(&chunk).unwrap().num_tokens(), 4);
    let rest = plan(1, vec![], vec![work(1, 4, 2, vec![block(1, 1)], true)]);
    assert_eq!(books.apply(&rest).unwrap().work[0].answer_index(), 0);
}

#[test]
fn a_retired_sequence_can_be_admitted_again_in_the_same_step() {
    let mut books = books_with_one_sequence();
    let mut again = plan(1, vec![admitted(1, 3)], vec![work(1, 0, 3, vec![block(2, 1)], true)]);
    again.retired = vec![SequenceId(1)];
    assert_eq!(books.apply(&again).unwrap().work[0].blocks, [BlockId(2)]);
}

#[test]
fn another_epochs_step_is_refused() {
    let mut bad = plan(1, vec![], vec![]);
    bad.epoch = Epoch { term: 2, number: 4 };
    let found = bad.epoch;
    assert_refused(bad, StepRefused::WrongEpoch { expected: EPOCH, found });
}

#[test]
fn a_repeated_or_skipped_step_is_refused() {
    for found in [StepId(0), StepId(2)] {
        let expected = StepRefused::WrongStep {
            expected: StepId(1),
            found,
        };
        assert_refused(plan(found.0, vec![], vec![]), expected);
    }
}

#[test]
fn work_or_retirement_of_an_unknown_sequence_is_refused() {
    let expected = StepRefused::UnknownSequence(SequenceId(9));
    assert_refused(plan(1, vec![], vec![work(9, 0, 1, vec![], true)]), expected.clone());
    let mut retire = plan(1, vec![], vec![]);
    retire.retired = vec![SequenceId(9)];
    assert_refused(retire, expected);
    let mut retired_and_worked = plan(1, vec![], vec![work(1, 6, 1, vec![], true)]);
    retired_and_worked.retired = vec![SequenceId(1)];
    assert_refused(retired_and_worked, StepRefused::UnknownSequence(SequenceId(1)));
}

#[test]
fn a_held_sequence_is_not_admitted_again() {
    let expected = StepRefused::AlreadyHeld(SequenceId(1));
    assert_refused(plan(1, vec![admitted(1, 3)], vec![]), expected);
    let twice = plan(1, vec![admitted(2, 3), admitted(2, 3)], vec![]);
    assert_refused(twice, StepRefused::AlreadyHeld(SequenceId(2)));
}

#[test]
fn a_wrong_start_is_refused() {
    for found in [5, 7] {
        let expected = StepRefused::WrongStart {
            sequence: SequenceId(1),
            expected: 6,
            found,
        };
        assert_refused(plan(1, vec![], vec![work(1, found, 1, vec![], true)]), expected);
    }
}

#[test]
fn tokens_that_nobody_sampled_are_refused() {
    let expected = StepRefused::UnknownTokens {
        sequence: SequenceId(1),
        end: 8,
        known: 7,
    };
    assert_refused(plan(1, vec![], vec![work(1, 6, 2, vec![], true)]), expected);
    let endless = StepRefused::TooManyTokens {
        max: 10,
        found: u32::MAX,
    };
    assert_refused(plan(1, vec![], vec![work(1, 6, u32::MAX, vec![], true)]), endless);
}

#[test]
fn sampling_anywhere_but_at_the_last_known_token_is_refused() {
    let expected = StepRefused::WrongSamples {
        sequence: SequenceId(1),
        samples: false,
        end: 7,
        known: 7,
    };
    assert_refused(plan(1, vec![], vec![work(1, 6, 1, vec![], false)]), expected);
    let inside = plan(1, vec![admitted(2, 4)], vec![work(2, 0, 2, vec![block(2, 1)], true)]);
    let expected = StepRefused::WrongSamples {
        sequence: SequenceId(2),
        samples: true,
        end: 2,
        known: 4,
    };
    assert_refused(inside, expected);
}

#[test]
fn too_few_blocks_are_refused() {
    let expected = StepRefused::TooFewBlocks {
        sequence: SequenceId(2),
        blocks: 1,
        end: 5,
    };
    let bad = plan(1, vec![admitted(2, 5)], vec![work(2, 0, 5, vec![block(2, 1)], true)]);
    assert_refused(bad, expected);
}

#[test]
fn a_block_with_an_older_tag_or_out_of_range_is_refused() {
    let with = |block| plan(1, vec![admitted(2, 3)], vec![work(2, 0, 3, vec![block], true)]);
    let old = block(0, 0);
    assert_refused(with(old), StepRefused::StaleBlock { block: old, newest: 1 });
    let outside = block(8, 1);
    let expected = StepRefused::StaleBlock {
        block: outside,
        newest: 0,
    };
    assert_refused(with(outside), expected);
}

#[test]
fn a_sequence_whose_block_was_given_to_another_is_refused() {
    let both = vec![work(2, 0, 3, vec![block(1, 2)], true), work(1, 6, 1, vec![], true)];
    let expected = StepRefused::StaleBlock {
        block: block(1, 1),
        newest: 2,
    };
    assert_refused(plan(1, vec![admitted(2, 3)], both), expected);
}

/// Block 0 is full, of block 1 half is written.
fn after_one_block(sequence: u64, blocks: Vec<TaggedBlock>, start: u32, num_tokens: u32) -> StepPlan {
    let len = start + num_tokens;
    plan(
        1,
        vec![admitted(sequence, len)],
        vec![work(sequence, start, num_tokens, blocks, true)],
    )
}

#[test]
fn a_new_sequence_may_start_after_a_full_block_of_another() {
    let mut books = books_with_one_sequence();
    let input = books
        .apply(&after_one_block(2, vec![block(0, 1), block(2, 1)], 4, 3))
        .unwrap();
    assert_eq!(input.shared, [BlockId(0)]);
    assert_eq!(input.work[0].start, 4);
    assert_eq!(input.work[0].tokens, [104, 105, 106].map(TokenId));
    assert_eq!(input.work[0].blocks, [BlockId(0), BlockId(2)]);
    assert!(input.filled.is_empty());
}

#[test]
fn a_step_names_the_blocks_that_it_fills() {
    let mut books = books_with_one_sequence();
    let full = after_one_block(2, vec![block(2, 1), block(3, 1)], 0, 6);
    assert_eq!(books.apply(&full).unwrap().filled, [BlockId(2)]);
    books.commit(&[(SequenceId(2), TokenId(7))]);
    let last = plan(2, vec![], vec![work(2, 6, 1, vec![], true)]);
    assert!(books.apply(&last).unwrap().filled.is_empty());
}

#[test]
fn a_start_after_what_was_never_written_to_its_end_is_refused() {
    let refused = |plan, block, written| {
        let sequence = SequenceId(2);
        assert_refused(
            plan,
            StepRefused::UnwrittenBlock {
                sequence,
                block,
                written,
            },
        );
    };
    let after = |block| after_one_block(2, vec![block, self::block(4, 1)], 4, 3);
    refused(after(block(1, 1)), block(1, 1), 2);
    refused(after(block(3, 1)), block(3, 1), 0);
    // Given anew: what was written under the old tag is not what is meant.
    let mut again = after(block(0, 2));
    again.retired = vec![SequenceId(1)];
    refused(again, block(0, 2), 0);
    // Written in this very step, which not every rank need have done.
    let mut same_step = after(block(5, 1));
    same_step.admitted.push(admitted(3, 4));
    same_step.work.insert(0, work(3, 0, 4, vec![block(5, 1)], true));
    refused(same_step, block(5, 1), 0);
    let stale = StepRefused::StaleBlock {
        block: block(0, 0),
        newest: 1,
    };
    assert_refused(after(block(0, 0)), stale);
}

#[test]
fn a_start_inside_a_block_is_refused() {
    let expected = StepRefused::WrongStart {
        sequence: SequenceId(2),
        expected: 4,
        found: 5,
    };
    assert_refused(after_one_block(2, vec![block(0, 1), block(2, 1)], 5, 2), expected);
}

#[test]
fn a_write_over_what_is_written_is_refused() {
    let over = |block, offset, written| StepRefused::WrittenBlock {
        sequence: SequenceId(2),
        block,
        offset,
        written,
    };
    let shared = after_one_block(2, vec![block(0, 1)], 0, 3);
    assert_refused(shared, over(block(0, 1), 0, 4));
    let half = after_one_block(2, vec![block(0, 1), block(1, 1)], 4, 1);
    assert_refused(half, over(block(1, 1), 0, 2));
    let mut twice = after_one_block(2, vec![block(4, 1)], 0, 3);
    twice.admitted.push(admitted(3, 3));
    twice.work.insert(0, work(3, 0, 3, vec![block(4, 1)], true));
    assert_refused(twice, over(block(4, 1), 0, 3));
}

#[test]
fn two_work_entries_or_an_empty_one_are_refused() {
    let twice = vec![work(1, 6, 1, vec![], true), work(1, 6, 1, vec![], true)];
    assert_refused(plan(1, vec![], twice), StepRefused::WorkedTwice(SequenceId(1)));
    let empty = plan(1, vec![], vec![work(1, 6, 0, vec![], false)]);
    assert_refused(empty, StepRefused::NoTokens(SequenceId(1)));
}

#[test]
fn too_many_tokens_are_refused() {
    let blocks = vec![block(2, 1), block(3, 1), block(4, 1)];
    let bad = plan(1, vec![admitted(2, 11)], vec![work(2, 0, 11, blocks, true)]);
    assert_refused(bad, StepRefused::TooManyTokens { max: 10, found: 11 });
}

#[test]
fn a_tag_that_wrapped_around_is_newer() {
    assert!(is_older(u32::MAX, 0));
    assert!(!is_older(0, u32::MAX));
}

#[test]
fn tokens_are_counted_for_penalties_from_what_was_told_and_from_what_was_sampled() {
    let penalized = |answer: &[u32]| {
        let mut admitted = admitted(1, 4);
        admitted.tokens = [100, 101, 100, 102]
            .iter()
            .chain(answer)
            .copied()
            .map(TokenId)
            .collect();
        admitted.sampling.frequency_penalty = 0.5;
        admitted
    };
    let seen = |input: StepInput| {
        let seen = input.work[0].seen.iter().map(|(token, count)| (token.0, *count));
        seen.collect::<Vec<_>>()
    };
    let mut books = books();
    let blocks = vec![block(0, 1), block(1, 1)];
    let chunk = plan(0, vec![penalized(&[])], vec![work(1, 0, 3, blocks, false)]);
    assert_eq!(seen(books.apply(&chunk).unwrap()), [], "nothing is sampled");
    let last = plan(1, vec![], vec![work(1, 3, 1, vec![], true)]);
    assert_eq!(seen(books.apply(&last).unwrap()), [(100, 0), (101, 0), (102, 0)]);
    for (step, token) in [(2, 102), (3, 7), (4, 102)] {
        books.commit(&[(SequenceId(1), TokenId(token))]);
        let next = plan(step, vec![], vec![work(1, step as u32 + 2, 1, vec![], true)]);
        let found = seen(books.apply(&next).unwrap());
        if step == 4 {
            assert_eq!(found, [(7, 1), (100, 0), (101, 0), (102, 2)]);
        }
    }
    // One that comes back is told all of it.
    let mut again = self::books();
    let blocks = vec![block(0, 1), block(1, 1)];
    let whole = plan(0, vec![penalized(&[102, 7, 102])], vec![work(1, 0, 7, blocks, true)]);
    assert_eq!(
        seen(again.apply(&whole).unwrap()),
        [(7, 1), (100, 0), (101, 0), (102, 2)]
    );
}

#[test]
fn scored_rows_are_named_with_the_tokens_that_come_next() {
    let mut books = books();
    let scores = |step, start, num_tokens, samples, scored| {
        let mut work = work(1, start, num_tokens, vec![], samples);
        work.scored = scored;
        if step == 0 {
            work.new_blocks = vec![block(0, 1), block(1, 1)];
        }
        work
    };
    let mut asked = admitted(1, 6);
    asked.prompt_top_logprobs = 3;
    let first = plan(0, vec![asked], vec![scores(0, 0, 4, false, 2..5)]);
    let input = books.apply(&first).unwrap();
    let rows: Vec<_> = input.work[0].scored_rows().collect();
    assert_eq!(rows, [(1, TokenId(102)), (2, TokenId(103)), (3, TokenId(104))]);
    assert_eq!(input.work[0].prompt_top_logprobs, 3);
    for scored in [4..5, 5..7, 6..6, 0..6] {
        let refused = books.apply(&plan(1, vec![], vec![scores(1, 4, 2, true, scored.clone())]));
        let expected = StepRefused::WrongScores {
            sequence: SequenceId(1),
            begin: scored.start,
            end: scored.end,
            start: 4,
            num_tokens: 2,
            prompt_len: 6,
        };
        assert_eq!(refused, Err(expected));
    }
    let last = books
        .apply(&plan(1, vec![], vec![scores(1, 4, 2, true, 5..6)]))
        .unwrap();
    assert_eq!(last.work[0].targets, [TokenId(105)]);
}
