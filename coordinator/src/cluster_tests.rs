//! The machine by hand, where the simulation could not tell: what is said to whom, and in which order.

use std::time::Duration;

use kvasir_kv::{
    Epoch, FinishReason, FromWorker, GroupId, KvDtype, NumericsId, PromptLogprobs, Rank, RefusalKind, SampledToken,
    SequenceId, StepId, StepOutput, StepPlan, StepTimes, ToWorker, TokenId, Transport,
};

use crate::{
    Effect, Event, LossCause, SequenceError, SessionId, Usage,
    cluster_bench::{Bench, aborted, formed, info, lost, plans, request, scored_by},
};

#[test]
fn a_group_forms_when_all_are_there_above_every_term_that_they_know() {
    let mut bench = Bench::new(2);
    assert!(bench.join(1).is_empty());
    let effects = bench.join(2);
    let formed: Vec<_> = effects.iter().filter_map(formed).collect();
    let epoch = Epoch { term: 7, number: 1 };
    assert_eq!(formed, [(1, epoch), (2, epoch)]);
    let running = bench.connect(&effects);
    assert!(matches!(
        running[..],
        [Effect::EpochStarted {
            world_size: 2,
            transport: Transport::SharedMemory,
            num_blocks: 8,
            ..
        }]
    ));
}

#[test]
fn a_worker_of_other_numerics_block_size_or_dtype_is_refused_with_both_values() {
    let mut bench = Bench::new(2);
    let (mut other, mut coarse, mut wide) = (info(1), info(2), info(3));
    other.numerics_id = NumericsId([2; 16]);
    coarse.block_size = 64;
    // Another dtype is another numerics too; the plainer reason is given.
    (wide.kv_dtype, wide.numerics_id) = (KvDtype::F32, NumericsId([3; 16]));
    for (session, info, refused_for, values) in [
        (
            1,
            other,
            RefusalKind::Numerics,
            [NumericsId([1; 16]).to_string(), NumericsId([2; 16]).to_string()],
        ),
        (
            2,
            coarse,
            RefusalKind::BlockSize,
            ["16 tokens".to_owned(), "64".to_owned()],
        ),
        (3, wide, RefusalKind::KvDtype, ["f16".to_owned(), "f32".to_owned()]),
    ] {
        let session = SessionId(session);
        let effects = bench.on(Event::WorkerJoined { session, info });
        let [
            Effect::Send {
                message: ToWorker::Refuse { kind, reason },
                ..
            },
            Effect::CloseSession { .. },
        ] = &effects[..]
        else {
            panic!("{effects:?}");
        };
        assert_eq!(*kind, refused_for);
        assert!(values.iter().all(|value| reason.contains(value)), "{reason}");
    }
    assert!(bench.cluster.status().workers.is_empty());
}

#[test]
fn the_next_step_is_on_the_wire_before_the_output_of_this_one_is_back() {
    let mut bench = Bench::running(1);
    let sent = plans(&bench.submit(5, 20, 3));
    assert_eq!(sent.len(), 2);
    assert_eq!(
        (
            sent[0].work[0].start,
            sent[0].work[0].num_tokens,
            sent[0].work[0].samples
        ),
        (0, 20, true)
    );
    assert_eq!((sent[1].work[0].start, sent[1].work[0].num_tokens), (20, 1));
    assert!(sent[1].admitted.is_empty(), "a sequence is described once");
    let effects = bench.done(&sent[0], 1);
    assert!(matches!(effects[0], Effect::Token { index: 0, .. }));
    let third = plans(&effects);
    assert_eq!(third[0].work[0].start, 21);
    assert!(
        plans(&bench.done(&sent[1], 1)).is_empty(),
        "the last token is never computed"
    );
    let effects = bench.done(&third[0], 1);
    let finished = |effect: &Effect| matches!(effect, Effect::Finished { reason: FinishReason::Length, usage, .. } if usage.completion_tokens == 3);
    assert!(effects.iter().any(finished), "{effects:?}");
    assert_eq!(bench.cluster.status().groups[0].blocks.available(), 8);
}

#[test]
fn survivors_are_told_to_abort_before_they_form_anew() {
    let mut bench = Bench::running(3);
    let effects = bench.on(Event::WorkerGone { session: SessionId(2) });
    assert_eq!(lost(&effects), [("w2", LossCause::Closed)]);
    assert_eq!(aborted(&effects), [1, 3]);
    let abort = effects
        .iter()
        .rposition(|effect| !aborted(std::slice::from_ref(effect)).is_empty());
    let form = effects.iter().position(|effect| formed(effect).is_some());
    assert!(abort < form, "{effects:?}");
    let again: Vec<_> = effects.iter().filter_map(formed).collect();
    let epoch = Epoch { term: 7, number: 2 };
    assert_eq!(again, [(1, epoch), (3, epoch)]);
}

#[test]
fn whoever_was_missed_in_a_collective_is_given_up_and_not_the_reporter() {
    let mut bench = Bench::running(3);
    let epoch = Epoch { term: 7, number: 1 };
    let missing = vec![Rank(0), Rank(2)];
    let reason = "collective deadline".to_owned();
    let effects = bench.say(1, FromWorker::EpochFailed { epoch, reason, missing });
    assert_eq!(lost(&effects), [("w3", LossCause::Blamed)]);
    assert_eq!(aborted(&effects), [1, 2]);
}

#[test]
fn a_rank_that_fails_by_itself_stays_until_it_has_failed_too_often() {
    let mut bench = Bench::running(2);
    for failures in 1..=3 {
        let epoch = bench.cluster.status().groups[0].epoch;
        let reason = "no memory".to_owned();
        let missing = Vec::new();
        let effects = bench.say(2, FromWorker::EpochFailed { epoch, reason, missing });
        let expected: &[_] = if failures == 3 {
            &[("w2", LossCause::Failed)]
        } else {
            &[]
        };
        assert_eq!(lost(&effects), expected, "failure {failures}");
        let later = bench.pass(60, &[1, 2]);
        bench.connect(&[effects, later].concat());
    }
}

#[test]
fn a_corrupt_cell_ends_the_epoch_with_its_reason_and_is_counted() {
    let mut bench = Bench::running(2);
    bench.submit(5, 20, 3);
    let epoch = Epoch { term: 7, number: 1 };
    let reason = format!("{}: block 3", kvasir_kv::CORRUPT_CELL);
    let missing = Vec::new();
    let effects = bench.say(2, FromWorker::EpochFailed { epoch, reason, missing });
    let ended = |effect: &Effect| matches!(effect, Effect::EpochEnded { reason, .. } if reason.contains("block 3"));
    assert!(effects.iter().any(ended), "{effects:?}");
    assert_eq!(aborted(&effects), [1, 2]);
    assert_eq!(bench.cluster.status().counters.cells_corrupt, 1);
}

#[test]
fn a_rank_that_does_not_answer_in_time_is_given_up() {
    let mut bench = Bench::new(2);
    bench.join(1);
    let effects = bench.join(2);
    let epoch = effects.iter().find_map(formed).unwrap().1;
    let endpoint = "here".to_owned();
    bench.say(1, FromWorker::EndpointReady { epoch, endpoint });
    let effects = bench.pass(110, &[1, 2]);
    assert_eq!(lost(&effects), [("w2", LossCause::Stalled)]);
}

#[test]
fn a_pause_of_our_own_is_held_against_nobody() {
    let mut bench = Bench::running(2);
    bench.submit(5, 20, 3);
    bench.now += Duration::from_secs(60);
    assert_eq!(lost(&bench.on(Event::Tick)), []);
    assert_eq!(
        lost(&bench.pass(25, &[])).len(),
        2,
        "silence while we are awake is noticed"
    );
}

#[test]
fn a_first_step_that_stood_still_does_not_delay_the_next_detection() {
    let mut bench = Bench::running(2);
    let sent = plans(&bench.submit(5, 20, 3));
    bench.pass(10, &[1, 2]);
    let further = plans(&bench.done(&sent[0], 2));
    assert!(!further.is_empty(), "there is work to do");
    assert_eq!(lost(&bench.pass(20, &[1])), []);
    assert_eq!(lost(&bench.pass(1, &[1])), [("w2", LossCause::Stalled)]);
}

#[test]
fn a_rank_that_waited_for_a_slow_one_is_not_blamed_when_that_one_comes() {
    let mut bench = Bench::running(3);
    bench.submit(5, 20, 3);
    bench.progress(&[(1, 7), (2, 6), (3, 7)]);
    assert_eq!(lost(&bench.pass(19, &[1, 3])), []);
    // It has come, and is through; what it waited for is not heard of in the same moment.
    bench.progress(&[(2, 8)]);
    assert_eq!(lost(&bench.pass(2, &[1, 2, 3])), []);
    bench.progress(&[(1, 8)]);
    // Of those who could go on, one did not: in its own window it is given up, alone.
    assert_eq!(lost(&bench.pass(20, &[1, 2, 3])), []);
    assert_eq!(lost(&bench.pass(1, &[1, 2, 3])), [("w3", LossCause::Stalled)]);
}

#[test]
fn without_a_worker_a_request_waits_and_then_fails_with_the_numbers() {
    let mut bench = Bench::with(2, |config| config.unavailable_wait_max = Duration::from_secs(3));
    bench.join(1);
    bench.submit(5, 20, 3);
    assert!(bench.pass(29, &[1]).is_empty());
    let effects = bench.pass(1, &[1]);
    let error = SequenceError::Unavailable {
        workers_live: 1,
        workers_wanted: 2,
        waited_ms: 3000,
        cause: None,
    };
    let sequence = SequenceId(5);
    assert_eq!(effects, [Effect::Failed { sequence, error }]);
}

#[test]
fn what_can_never_fit_is_refused_at_once_with_the_numbers() {
    let mut bench = Bench::with(1, |config| config.num_blocks_max = Some(2));
    let effects = bench.join(1);
    bench.connect(&effects);
    let refused = |effects: &[Effect]| match effects {
        [Effect::Failed { error, .. }] => error.clone(),
        other => panic!("{other:?}"),
    };
    let too_long = SequenceError::TooLong {
        prompt_len: 99,
        max_tokens: 2,
        context_len: 100,
    };
    assert_eq!(refused(&bench.submit(5, 99, 2)), too_long);
    let too_few = SequenceError::TooFewBlocks {
        needed_blocks: 3,
        num_blocks: 2,
        block_size: 16,
    };
    assert_eq!(refused(&bench.submit(6, 30, 4)), too_few);
    assert!(!plans(&bench.submit(7, 30, 3)).is_empty(), "32 positions fit 2 blocks");
}

#[test]
fn a_recovery_is_reported_when_the_last_interrupted_sequence_has_gone_on() {
    let mut bench = Bench::running(2);
    let sent = plans(&bench.submit(5, 20, 9));
    bench.done(&sent[0], 2);
    let effects = bench.on(Event::WorkerGone { session: SessionId(2) });
    bench.now += Duration::from_millis(70);
    let replay = plans(&bench.connect(&effects));
    assert_eq!(
        replay[0].admitted[0].tokens.len(),
        21,
        "prompt and what had been sampled"
    );
    assert_eq!(replay[0].step, StepId(0));
    let effects = bench.done(&replay[0], 1);
    assert!(
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::Token { index: 1, .. })),
        "{effects:?}"
    );
    let recovered = Effect::Recovered {
        group: GroupId(0),
        epoch: Epoch { term: 7, number: 2 },
        stall_ms: 70,
        tokens_recomputed: 20,
        sequences: 1,
    };
    assert!(effects.contains(&recovered), "{effects:?}");
}

#[test]
fn the_newest_is_preempted_and_the_oldest_gets_on() {
    let mut bench = Bench::with(1, |config| config.num_blocks_max = Some(4));
    let effects = bench.join(1);
    bench.connect(&effects);
    // Each needs 3 blocks in the end: together they do not fit.
    let mut sent: Vec<StepPlan> = plans(&bench.submit(5, 15, 30));
    sent.extend(plans(&bench.submit(6, 15, 30)));
    let mut finished = Vec::new();
    let mut next = 0;
    while next < sent.len() {
        let effects = bench.done(&sent[next].clone(), 1);
        next += 1;
        sent.extend(plans(&effects));
        finished.extend(effects.iter().filter_map(|effect| match effect {
            Effect::Finished { sequence, .. } => Some(sequence.0),
            _ => None,
        }));
        assert!(next < 500, "it does not end");
    }
    assert_eq!(finished, [5, 6]);
    assert_eq!(bench.cluster.status().counters.preemptions, 1);
    assert_eq!(bench.cluster.status().groups[0].blocks.available(), 4);
}

/// Does all steps that come of `sent`; returns the plans and the usage of what finished.
fn play(bench: &mut Bench, mut sent: Vec<StepPlan>, ranks: u64) -> (Vec<StepPlan>, Vec<Usage>) {
    let (mut next, mut usages) = (0, Vec::new());
    while next < sent.len() {
        let effects = bench.done(&sent[next].clone(), ranks);
        next += 1;
        sent.extend(plans(&effects));
        usages.extend(effects.iter().filter_map(|effect| match effect {
            Effect::Finished { usage, .. } => Some(*usage),
            _ => None,
        }));
    }
    (sent, usages)
}

#[test]
fn usage_says_how_long_a_request_waited_for_its_first_step() {
    let mut bench = Bench::alone_with(|config| config.sequences_max = 1);
    let first = plans(&bench.submit(5, 10, 1)).remove(0);
    bench.submit_prompt(6, vec![TokenId(2); 10], 1);
    bench.now += Duration::from_millis(300);
    let second = plans(&bench.done(&first, 1)).remove(0);
    bench.now += Duration::from_millis(50);
    let (_, usages) = play(&mut bench, vec![second], 1);
    assert_eq!(usages[0].queued, Duration::from_millis(300));
}

#[test]
fn a_second_request_starts_after_the_full_blocks_of_the_first() {
    let mut bench = Bench::running(2);
    let sent = bench.submit(5, 40, 2);
    let (first, usages) = play(&mut bench, plans(&sent), 2);
    assert_eq!(usages[0].cached_tokens, 0);
    let sent = bench.submit(6, 40, 2);
    let (second, usages) = play(&mut bench, plans(&sent), 2);
    assert_eq!(second[0].work[0].start, 32);
    assert_eq!(second[0].work[0].new_blocks[..2], first[0].work[0].new_blocks[..2]);
    assert_ne!(second[0].work[0].new_blocks[2], first[0].work[0].new_blocks[2]);
    assert_eq!(usages[0].cached_tokens, 32);
    let counters = bench.cluster.status().counters;
    assert_eq!((counters.prefix_queries_tokens, counters.prefix_hits_tokens), (80, 32));
    assert_eq!(counters.tokens_recomputed, 0);
}

#[test]
fn the_last_token_is_computed_also_where_its_block_is_cached() {
    let mut bench = Bench::running(1);
    let sent = bench.submit(5, 32, 2);
    play(&mut bench, plans(&sent), 1);
    let sent = plans(&bench.submit(6, 32, 2));
    assert_eq!((sent[0].work[0].start, sent[0].work[0].num_tokens), (16, 16));
}

#[test]
fn a_block_is_found_only_when_every_rank_has_acknowledged_the_step_that_filled_it() {
    let mut bench = Bench::running(2);
    let sent = plans(&bench.submit(5, 20, 9));
    let output = StepOutput {
        epoch: sent[0].epoch,
        step: sent[0].step,
        sampled: vec![SampledToken {
            sequence: SequenceId(5),
            token: TokenId(9),
            logprob: 0.0,
            top_logprobs: Vec::new(),
        }],
        scored: Vec::new(),
        poisoned: Vec::new(),
        times: StepTimes::default(),
    };
    let done = |output| FromWorker::StepDone {
        epoch: sent[0].epoch,
        step: sent[0].step,
        output,
    };
    let third = plans(&bench.say(1, done(Some(output)))).remove(0);
    bench.submit(6, 20, 9);
    let start = |effects: &[Effect], sequence: u64| {
        let plans = plans(effects);
        let mut work = plans.iter().flat_map(|plan| &plan.work);
        work.find(|work| work.sequence.0 == sequence).map(|work| work.start)
    };
    // Rank 1 has done nothing yet.
    assert_eq!(start(&bench.done(&sent[1], 1), 6), Some(0));
    bench.say(2, done(None));
    bench.submit(7, 20, 9);
    assert_eq!(start(&bench.done(&third, 1), 7), Some(16));
}

#[test]
fn what_went_out_of_range_is_not_found_again() {
    let mut bench = Bench::running(1);
    let sent = plans(&bench.submit(5, 20, 2));
    let output = StepOutput {
        epoch: sent[0].epoch,
        step: sent[0].step,
        sampled: Vec::new(),
        scored: Vec::new(),
        poisoned: vec![SequenceId(5)],
        times: StepTimes::default(),
    };
    let (epoch, step) = (sent[0].epoch, sent[0].step);
    let output = Some(output);
    bench.say(1, FromWorker::StepDone { epoch, step, output });
    let again = plans(&bench.submit(6, 20, 2));
    assert_eq!(again[0].work[0].start, 0);
}

#[test]
fn a_new_epoch_finds_nothing_and_without_the_cache_nothing_is_found_either() {
    let mut bench = Bench::running(2);
    let sent = bench.submit(5, 40, 2);
    play(&mut bench, plans(&sent), 2);
    let effects = bench.on(Event::WorkerGone { session: SessionId(2) });
    bench.connect(&effects);
    assert_eq!(plans(&bench.submit(6, 40, 2))[0].work[0].start, 0);

    let mut bench = Bench::with(1, |config| config.prefix_cache = false);
    let effects = bench.join(1);
    bench.connect(&effects);
    for sequence in [5, 6] {
        let sent = bench.submit(sequence, 40, 2);
        let (sent, _) = play(&mut bench, plans(&sent), 1);
        assert_eq!(sent[0].work[0].start, 0);
    }
    let status = bench.cluster.status();
    assert_eq!(status.groups[0].blocks.cached, 0);
    assert_eq!(status.counters.prefix_queries_tokens, 0);
}

#[test]
fn a_rank_whose_scores_are_not_those_asked_for_is_lost() {
    for spoil in [
        |output: &mut StepOutput| output.scored.clear(),
        |output: &mut StepOutput| output.scored[0].start += 1,
        |output: &mut StepOutput| drop(output.scored[0].logprobs.pop()),
        |output: &mut StepOutput| output.scored.push(output.scored[0].clone()),
    ] {
        let mut bench = Bench::running(1);
        let mut asked = request(vec![TokenId(1); 5], 1);
        asked.prompt_logprobs = Some(PromptLogprobs { top: 0, received: 0 });
        let sent = plans(&bench.submit_request(&[5], asked));
        let mut output = StepOutput {
            epoch: sent[0].epoch,
            step: sent[0].step,
            sampled: vec![SampledToken {
                sequence: SequenceId(5),
                token: TokenId(9),
                logprob: 0.0,
                top_logprobs: Vec::new(),
            }],
            scored: scored_by(&sent[0]),
            poisoned: Vec::new(),
            times: StepTimes::default(),
        };
        spoil(&mut output);
        let message = FromWorker::StepDone {
            epoch: sent[0].epoch,
            step: sent[0].step,
            output: Some(output),
        };
        let effects = bench.say(1, message);
        assert_eq!(lost(&effects), [("w1", LossCause::Failed)], "{effects:?}");
    }
}

/// Rank 0 brings each output; the others may tell of several steps at once, and of none twice.
#[test]
fn a_rank_without_output_acknowledges_all_steps_up_to_the_one_it_names() {
    let mut bench = Bench::running(2);
    let sent = plans(&bench.submit(5, 20, 9));
    let second = &sent[1];
    assert_eq!((sent[0].step, second.step), (StepId(0), StepId(1)));
    let third = plans(&bench.done_by(&sent[0], &[1])).remove(0);
    bench.done_by(second, &[1]);
    let acknowledge = |step| FromWorker::StepDone {
        epoch: second.epoch,
        step,
        output: None,
    };
    bench.say(2, acknowledge(second.step));
    bench.submit(6, 20, 9);
    let next = plans(&bench.done_by(&third, &[1]));
    let mut work = next.iter().flat_map(|plan| &plan.work);
    let found = work.find(|work| work.sequence == SequenceId(6)).map(|work| work.start);
    assert_eq!(found, Some(16), "the block that the first step filled");
    let effects = bench.say(2, acknowledge(second.step));
    assert_eq!(lost(&effects), [("w2", LossCause::Failed)], "{effects:?}");
}
