//! Several groups by hand: who goes where, and what happens to those who wait when a group ends or is full.

use kvasir_kv::{FinishReason, GroupId, PromptLogprobs, SequenceId, TokenId};

use crate::{
    Effect, Event, MigrationOutcome, OrderId, SequenceError, SessionId,
    cluster_bench::{Bench, formed, plans, plans_to, request},
    status::GroupPhase,
};

fn prompt(salt: u32, len: u32) -> Vec<TokenId> {
    (0..len).map(|position| TokenId(salt + position)).collect()
}

/// Group 0 of worker 1, group 1 of workers 2 and 3; both serve.
fn two_groups() -> Bench {
    two_groups_with(|_| {})
}

fn two_groups_with(change: impl FnOnce(&mut crate::ClusterConfig)) -> Bench {
    let mut bench = Bench::with(1, |config| {
        config.group_sizes = vec![1, 2];
        config.look_ahead = 0;
        change(config);
    });
    for session in 1..=3 {
        let effects = bench.join(session);
        bench.connect(&effects);
    }
    let phases: Vec<_> = bench.cluster.status().groups.iter().map(|group| group.phase).collect();
    assert_eq!(phases, [GroupPhase::Running; 2]);
    bench
}

/// Groups of a request's sequence.
fn home(bench: &Bench, sequence: u64) -> (GroupId, bool) {
    let status = bench.cluster.status();
    let found = status
        .sequences
        .iter()
        .find(|found| found.sequence == SequenceId(sequence));
    found.map(|found| (found.group, found.running)).unwrap()
}

fn failure(effects: &[Effect]) -> &SequenceError {
    let failed = effects.iter().find_map(|effect| match effect {
        Effect::Failed { error, .. } => Some(error),
        _ => None,
    });
    failed.unwrap_or_else(|| panic!("{effects:?}"))
}

#[test]
fn groups_of_different_sizes_form_in_turn_and_no_two_epochs_are_alike() {
    let bench = two_groups();
    let status = bench.cluster.status();
    let sizes: Vec<_> = status.groups.iter().map(|group| group.ranks.len()).collect();
    assert_eq!(sizes, [1, 2]);
    assert_ne!(status.groups[0].epoch, status.groups[1].epoch);
}

#[test]
fn a_request_goes_where_its_beginning_is_cached_although_there_is_more_to_do() {
    let mut bench = two_groups();
    // The second group is twice as fast, so it is chosen first.
    let plan = plans_to(2, &bench.submit_prompt(1, prompt(1, 40), 1)).remove(0);
    assert_eq!(home(&bench, 1), (GroupId(1), true));
    bench.done_by(&plan, &[2, 3]);
    bench.submit_prompt(2, prompt(500, 50), 2);
    assert_eq!(home(&bench, 2), (GroupId(1), true));

    // 40 tokens and 52 of the other request, for a group of two: 46. Where nothing is to be done: 40.
    bench.submit_prompt(3, prompt(700, 40), 1);
    assert_eq!(home(&bench, 3), (GroupId(0), true));
    bench.on(Event::Cancel {
        sequence: SequenceId(3),
        reason: FinishReason::Cancelled,
    });
    // 8 tokens and the same 52: 30.
    bench.submit_prompt(4, prompt(1, 40), 1);
    assert_eq!(home(&bench, 4).0, GroupId(1));
    assert_eq!(bench.cluster.status().counters.routed_by_prefix, 1);
}

#[test]
fn what_a_lost_group_computed_goes_on_in_the_other_at_once() {
    let mut bench = two_groups();
    let sent = bench.submit_prompt(1, prompt(1, 20), 9);
    let plan = plans_to(2, &sent).remove(0);
    bench.done_by(&plan, &[2, 3]);

    let effects = bench.on(Event::WorkerGone { session: SessionId(3) });

    let moved = plans_to(1, &effects).remove(0);
    assert_eq!(moved.admitted[0].tokens.len(), 21, "with the token that the client has");
    assert_eq!((moved.work[0].start, moved.work[0].num_tokens), (0, 21));
    assert_eq!(home(&bench, 1), (GroupId(0), true));
    let effects = bench.done_by(&moved, &[1]);
    let recovered = effects.iter().any(|effect| {
        matches!(
            effect,
            Effect::Recovered {
                group: GroupId(1),
                sequences: 1,
                tokens_recomputed: 20,
                ..
            }
        )
    });
    assert!(recovered, "{effects:?}");
    let counters = bench.cluster.status().counters;
    assert_eq!((counters.sequences_rerouted, counters.recoveries), (1, 1));
}

#[test]
fn a_sequence_that_was_to_move_when_its_group_stood_still_has_not_ended() {
    let mut bench = two_groups();
    let sent = bench.submit_prompt(1, prompt(1, 20), 9);
    bench.done_by(&plans_to(2, &sent)[0], &[2, 3]);
    let (order, request) = (OrderId(1), bench.cluster.status().sequences[0].request.clone());
    let target = Some(GroupId(0));
    bench.on(Event::Migrate { order, request, target });

    let effects = bench.pass(25, &[1, 2]);

    assert_eq!(home(&bench, 1), (GroupId(0), true), "the other group goes on with it");
    let ended = effects.iter().find_map(|effect| match effect {
        Effect::OrderEnded {
            result: Ok(reports), ..
        } => Some(&reports[0].outcome),
        _ => None,
    });
    assert_eq!(ended, Some(&MigrationOutcome::SourceLost));
    let counters = bench.cluster.status().counters;
    assert_eq!((counters.migrations_failed, counters.migrations_ended), (1, 0));
}

#[test]
fn a_group_that_re_forms_keeps_its_own_workers() {
    let mut bench = two_groups();
    bench.on(Event::WorkerGone { session: SessionId(1) });
    assert_eq!(bench.cluster.status().groups[0].phase, GroupPhase::Waiting);

    let effects = bench.on(Event::WorkerGone { session: SessionId(2) });

    let formed: Vec<u64> = effects.iter().filter_map(formed).map(|(session, _)| session).collect();
    assert_eq!(formed, [3]);
    let phases: Vec<_> = bench.cluster.status().groups.iter().map(|group| group.phase).collect();
    assert_eq!(
        phases,
        [GroupPhase::Waiting, GroupPhase::Forming],
        "the group without workers does not take it"
    );
    bench.connect(&effects);
    bench.join(4);
    assert_eq!(
        bench.cluster.status().groups[0].phase,
        GroupPhase::Forming,
        "a new one is for whoever has none"
    );
}

#[test]
fn whoever_is_crowded_out_goes_where_there_is_room() {
    let mut bench = two_groups_with(|config| config.sequences_max = 1);
    let first = plans_to(2, &bench.submit_prompt(1, prompt(1, 10), 3)).remove(0);
    let second = plans_to(1, &bench.submit_prompt(2, prompt(100, 30), 2)).remove(0);
    bench.submit_prompt(3, prompt(200, 5), 3);
    assert_eq!(home(&bench, 3), (GroupId(1), false));

    // The smaller group is done first, and takes over who waits for the other.
    let last = plans_to(1, &bench.done_by(&second, &[1])).remove(0);
    let effects = bench.done_by(&last, &[1]);

    assert_eq!(home(&bench, 3), (GroupId(0), true), "{effects:?}");
    assert_eq!(bench.cluster.status().counters.sequences_rerouted, 1);
    bench.done_by(&first, &[2, 3]);
}

#[test]
fn a_request_too_large_for_every_group_is_refused_with_the_roomiest() {
    // The worker of group 0 holds all heads, and has room for fewer blocks than the two of group 1.
    let mut bench = Bench::with(1, |config| {
        config.group_sizes = vec![1, 3];
        config.num_blocks_max = None;
    });
    for session in 1..=4 {
        let mut info = crate::cluster_bench::info(session);
        info.kv_memory_bytes = 3 * bench.cluster.config().cell.cell_bytes() as u64;
        let session = SessionId(session);
        let effects = bench.on(Event::WorkerJoined { session, info });
        bench.connect(&effects);
    }
    let blocks: Vec<u32> = bench
        .cluster
        .status()
        .groups
        .iter()
        .map(|group| group.blocks.total)
        .collect();
    assert_eq!(blocks, [1, 3]);

    let effects = bench.submit(1, 60, 30);
    let expected = SequenceError::TooFewBlocks {
        needed_blocks: 6,
        num_blocks: 3,
        block_size: 16,
    };
    assert_eq!(*failure(&effects), expected);

    // What fits one of them goes there, however busy it is.
    bench.submit(2, 40, 2);
    assert_eq!(home(&bench, 2).0, GroupId(1));
    bench.submit(3, 40, 2);
    assert_eq!(home(&bench, 3).0, GroupId(1));
}

#[test]
fn whoever_finds_a_free_place_does_not_queue() {
    let mut bench = Bench::alone_with(|config| {
        config.sequences_max = 2;
        config.queue_max = 1;
        config.look_ahead = 0;
    });
    // The first runs, the second runs with the next step, the third queues.
    for sequence in 1..=3 {
        bench.submit(sequence, 5, 2);
        assert!(!home(&bench, sequence).1 || sequence == 1);
    }
    let full = SequenceError::QueueFull {
        waiting: 2,
        queue_max: 1,
        num_choices: 1,
    };
    assert_eq!(*failure(&bench.submit(4, 5, 2)), full);
}

#[test]
fn the_queue_is_bounded_by_tokens_but_never_refuses_the_first() {
    let mut bench = Bench::with(1, |config| config.queue_tokens_max = 50);
    let submitted = bench.submit(1, 60, 2);
    assert!(submitted.is_empty(), "{submitted:?}");
    let effects = bench.submit(2, 5, 2);
    let expected = SequenceError::QueueTokens {
        waiting_tokens: 60,
        tokens: 5,
        queue_tokens_max: 50,
    };
    assert_eq!(*failure(&effects), expected);
    assert_eq!(bench.cluster.status().counters.rejected, 1);
}

#[test]
fn whoever_waits_too_long_for_a_first_step_is_refused_but_not_who_had_one() {
    let mut bench = Bench::alone_with(|config| {
        config.sequences_max = 1;
        config.queue_wait_max = std::time::Duration::from_secs(1);
    });
    bench.submit(1, 10, 50);
    bench.submit(2, 10, 5);
    assert!(bench.pass(9, &[1]).is_empty());
    let effects = bench.pass(2, &[1]);
    let expected = SequenceError::QueueWait {
        waited_ms: 1000,
        queue_wait_ms_max: 1000,
    };
    assert_eq!(*failure(&effects), expected);
    assert!(home(&bench, 1).1, "the one that runs goes on");
    let effects = bench.on(Event::Cancel {
        sequence: SequenceId(1),
        reason: FinishReason::Cancelled,
    });
    assert!(matches!(effects[0], Effect::Finished { .. }));
    assert_eq!(bench.cluster.status().counters.cancelled, 1);
}

#[test]
fn the_choices_of_a_request_are_taken_together_or_not_at_all() {
    let mut bench = Bench::alone_with(|config| {
        config.sequences_max = 2;
        config.queue_max = 2;
        config.look_ahead = 0;
    });
    let mut asked = request(vec![TokenId(1); 5], 2);
    asked.prompt_logprobs = Some(PromptLogprobs { top: 1, received: 0 });
    asked.sampling.choice = 3;
    let refused = bench.submit_request(&[1, 2, 3, 4, 5], asked.clone());
    let full = SequenceError::QueueFull {
        waiting: 0,
        queue_max: 2,
        num_choices: 5,
    };
    let failed = |sequence| Effect::Failed {
        sequence: SequenceId(sequence),
        error: full.clone(),
    };
    assert_eq!(refused, (1..=5).map(failed).collect::<Vec<_>>());
    assert!(full.to_string().contains("the 5 choices"), "{full}");
    assert_eq!(bench.cluster.status().counters.rejected, 5);
    assert!(bench.cluster.status().sequences.is_empty());

    let taken = bench.submit_request(&[6, 7, 8, 9], asked);
    assert_eq!(bench.cluster.status().sequences.len(), 4);
    let admitted: Vec<_> = plans(&taken).into_iter().flat_map(|plan| plan.admitted).collect();
    let choices: Vec<u32> = admitted.iter().map(|admitted| admitted.sampling.choice).collect();
    assert_eq!(choices, [3, 4]);
    let scored: Vec<_> = plans(&taken)[0].work.iter().map(|work| work.scored.clone()).collect();
    assert_eq!(scored, [1..5, 0..0], "the first choice scores the prompt for all");
}

#[test]
fn a_request_without_an_answer_is_taken_only_for_its_prompts_logprobs() {
    let mut bench = Bench::alone_with(|config| config.look_ahead = 0);
    let mut asked = request(vec![TokenId(1); 5], 0);
    let empty = SequenceError::Empty {
        prompt_len: 5,
        max_tokens: 0,
    };
    assert_eq!(*failure(&bench.submit_request(&[1], asked.clone())), empty);
    asked.prompt_logprobs = Some(PromptLogprobs { top: 0, received: 2 });
    let sent = plans(&bench.submit_request(&[2], asked));
    assert_eq!((sent[0].work[0].num_tokens, sent[0].work[0].samples), (4, false));
    let effects = bench.done(&sent[0], 1);
    let [
        Effect::PromptLogprobs {
            position: 3, logprobs, ..
        },
        Effect::Finished {
            reason: FinishReason::Length,
            usage,
            ..
        },
    ] = &effects[..]
    else {
        panic!("{effects:?}");
    };
    assert_eq!((logprobs.len(), usage.completion_tokens), (2, 0));
}

/// Two sequences decode in group 0, and have much to say; group 1 has nothing to do.
fn one_sided(change: impl FnOnce(&mut crate::ClusterConfig)) -> Bench {
    let mut bench = Bench::with(1, |config| {
        config.group_sizes = vec![1, 1];
        config.look_ahead = 0;
        change(config);
    });
    for session in 1..=2 {
        let effects = bench.join(session);
        bench.connect(&effects);
    }
    let sent: Vec<Effect> = (1..=4)
        .flat_map(|sequence| bench.submit_prompt(sequence, prompt(20 * sequence as u32, 10), 80))
        .collect();
    let elsewhere: Vec<u64> = (1..=4)
        .filter(|sequence| home(&bench, *sequence).0 == GroupId(1))
        .collect();
    assert_eq!(elsewhere.len(), 2);
    for sequence in elsewhere {
        bench.on(Event::Cancel {
            sequence: SequenceId(sequence),
            reason: FinishReason::Cancelled,
        });
    }
    let first = plans(&sent).remove(0);
    let second = plans(&bench.done_by(&first, &[1])).remove(0);
    bench.done_by(&second, &[1]);
    bench
}

fn moving(bench: &Bench) -> Vec<&'static str> {
    let status = bench.cluster.status();
    status.transfers.iter().map(|transfer| transfer.reason).collect()
}

#[test]
fn a_group_with_much_to_do_gives_a_group_without_one_sequence_at_a_time() {
    let mut bench = one_sided(|_| {});
    for _ in 0..3 {
        bench.pass(1, &[1, 2]);
        assert_eq!(moving(&bench), ["load"]);
    }
}

#[test]
fn nobody_moves_for_the_load_where_that_is_not_wanted_or_an_operator_has_decided() {
    let mut unwanted = one_sided(|config| config.even_load = false);
    unwanted.pass(3, &[1, 2]);
    assert_eq!(moving(&unwanted), Vec::<&str>::new());

    let mut ordered = one_sided(|_| {});
    let scheduler = &mut ordered.cluster.groups[0].scheduler;
    for id in scheduler.ids() {
        scheduler.get_mut(id).unwrap().was_ordered = true;
    }
    ordered.pass(3, &[1, 2]);
    assert_eq!(moving(&ordered), Vec::<&str>::new());
}
