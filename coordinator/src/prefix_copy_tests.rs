//! Copies of cached blocks by hand: who waits for one, from when on it runs, and what becomes of it if nothing comes.

use std::time::Duration;

use kvasir_kv::{BlockCounts, CellsIn, FinishReason, FromWorker, GroupId, SequenceId, StepPlan, ToWorker, TokenId};

use crate::{
    Effect, Event, OrderId, PrefixCopying, SessionId,
    cluster_bench::{Bench, plans_to},
    status::Counters,
};

fn prompt(salt: u32) -> Vec<TokenId> {
    (0..40).map(|position| TokenId(salt + position)).collect()
}

/// Group 0 of worker 1, group 1 of workers 2 and 3, one place each. Group 1 has computed a prompt of 40 tokens in `took`,
/// two blocks of which are cached; now its place is taken.
fn cached_elsewhere(policy: PrefixCopying, took: Duration) -> (Bench, StepPlan) {
    let mut bench = Bench::with(1, |config| {
        config.group_sizes = vec![1, 2];
        config.look_ahead = 0;
        config.sequences_max = 1;
        config.prefix_copying = policy;
    });
    for session in 1..=3 {
        let effects = bench.join(session);
        bench.connect(&effects);
    }
    let plan = plans_to(2, &bench.submit_prompt(1, prompt(1), 1)).remove(0);
    bench.now += took;
    bench.done_by(&plan, &[2, 3]);
    let holds = plans_to(2, &bench.submit_prompt(2, prompt(500), 9)).remove(0);
    assert_eq!(blocks(&bench, 1).cached, 2);
    (bench, holds)
}

fn blocks(bench: &Bench, group: usize) -> BlockCounts {
    bench.cluster.status().groups[group].blocks
}

fn counters(bench: &Bench) -> Counters {
    bench.cluster.status().counters
}

/// What a rank is told to take, and who tells it to send.
fn asked(effects: &[Effect]) -> (Vec<CellsIn>, Vec<SessionId>) {
    let mut cells = Vec::new();
    let mut senders = Vec::new();
    for effect in effects {
        match effect {
            Effect::Send {
                session: SessionId(1),
                message: ToWorker::ReceiveCells(wanted),
            } => cells.push(wanted.clone()),
            Effect::Send {
                session,
                message: ToWorker::SendCells(_),
            } => senders.push(*session),
            _ => {}
        }
    }
    (cells, senders)
}

fn told_to_end(effects: &[Effect]) -> Vec<u64> {
    let told = effects.iter().filter_map(|effect| match effect {
        Effect::Send {
            session,
            message: ToWorker::EndTransfer { .. },
        } => Some(session.0),
        _ => None,
    });
    told.collect()
}

fn arrive(bench: &mut Bench, cells: &CellsIn) -> Vec<Effect> {
    let arrived = FromWorker::CellsArrived {
        epoch: cells.ticket.target,
        transfer: cells.ticket.transfer,
        round: cells.round,
        source_rank: cells.source_rank,
        cells: cells.cells.num_cells(),
        bytes: 1000,
        shared_bytes: 0,
    };
    bench.say(1, arrived)
}

#[test]
fn who_comes_waits_for_cached_blocks_of_another_group_and_starts_after_them() {
    let (mut bench, _) = cached_elsewhere(PrefixCopying::Auto, Duration::from_secs(1));
    let effects = bench.submit_prompt(3, prompt(1), 1);
    let (cells, senders) = asked(&effects);
    assert_eq!(plans_to(1, &effects), [], "it waits");
    assert_eq!(senders, [SessionId(2), SessionId(3)]);
    assert_eq!(
        cells.iter().map(|cells| cells.cells.blocks.len()).collect::<Vec<_>>(),
        [2, 2]
    );
    assert_eq!(blocks(&bench, 1).cached, 0, "what is copied cannot be evicted");
    assert_eq!(blocks(&bench, 0).held, 2);

    assert_eq!(
        plans_to(1, &arrive(&mut bench, &cells[0])),
        [],
        "half of the heads is nothing"
    );
    let effects = arrive(&mut bench, &cells[1]);

    let plan = plans_to(1, &effects).remove(0);
    assert_eq!((plan.work[0].start, plan.work[0].num_tokens), (32, 8));
    assert_eq!(plan.adopted.len(), 2);
    assert_eq!(blocks(&bench, 1).cached, 2, "they are where they were");
    bench.done_by(&plan, &[1]);
    let counters = counters(&bench);
    assert_eq!((counters.prefix_copies_adopted, counters.prefix_copied_tokens), (1, 32));
    assert_eq!(counters.prefix_hits_tokens, 32);
    assert_eq!(blocks(&bench, 0).cached, 2, "now both groups have them");
    // Whoever comes next finds them there.
    let effects = bench.submit_prompt(4, prompt(1), 1);
    assert_eq!(plans_to(1, &effects)[0].work[0].start, 32);
    assert_eq!(asked(&effects).0.len(), 0);
}

#[test]
fn nothing_is_copied_where_computing_is_sooner_or_where_that_is_not_wanted() {
    let quick = (PrefixCopying::Auto, Duration::from_micros(40));
    let unwanted = (PrefixCopying::Never, Duration::from_secs(1));
    for (policy, took) in [quick, unwanted] {
        let (mut bench, _) = cached_elsewhere(policy, took);
        let effects = bench.submit_prompt(3, prompt(1), 1);
        assert_eq!(plans_to(1, &effects)[0].work[0].start, 0, "{policy}");
        assert_eq!(counters(&bench).prefix_copies_begun, 0, "{policy}");
    }
    let (mut bench, _) = cached_elsewhere(PrefixCopying::Always, quick.1);
    bench.submit_prompt(3, prompt(1), 1);
    assert_eq!(counters(&bench).prefix_copies_begun, 1);
}

#[test]
fn what_does_not_come_is_computed_and_the_next_one_does_not_wait_for_it() {
    let (mut bench, _) = cached_elsewhere(PrefixCopying::Auto, Duration::from_millis(80));
    bench.submit_prompt(3, prompt(1), 1);
    assert_eq!(counters(&bench).prefix_copies_begun, 1);

    // A group of half the speed would need 128 ms.
    let effects = bench.pass(3, &[1, 2, 3]);

    let mut told = told_to_end(&effects);
    told.sort_unstable();
    assert_eq!(told, [1, 2, 3]);
    let plan = plans_to(1, &effects).remove(0);
    assert_eq!((plan.work[0].start, plan.work[0].num_tokens), (0, 40));
    assert_eq!((blocks(&bench, 0).held, blocks(&bench, 1).cached), (3, 2));
    assert_eq!(counters(&bench).prefix_copies_failed, 1);
    bench.done_by(&plan, &[1]);

    // The same again, with what was learned.
    let (mut again, _) = cached_elsewhere(PrefixCopying::Auto, Duration::from_millis(80));
    again.cluster.copy_costs = std::mem::take(&mut bench.cluster.copy_costs);
    let effects = again.submit_prompt(3, prompt(1), 1);
    assert_eq!(plans_to(1, &effects)[0].work[0].start, 0, "the last copy took too long");
}

#[test]
fn a_request_that_ends_while_it_waits_leaves_nothing_behind() {
    let (mut bench, _) = cached_elsewhere(PrefixCopying::Always, Duration::from_secs(1));
    bench.submit_prompt(3, prompt(1), 1);
    let effects = bench.on(Event::Cancel {
        sequence: SequenceId(3),
        reason: FinishReason::Cancelled,
    });
    assert_eq!(told_to_end(&effects).len(), 3);
    assert_eq!((blocks(&bench, 0).held, blocks(&bench, 1).cached), (0, 2));
}

#[test]
fn a_source_that_is_lost_is_not_waited_for() {
    let (mut bench, _) = cached_elsewhere(PrefixCopying::Always, Duration::from_secs(1));
    bench.submit_prompt(3, prompt(1), 1);
    let effects = bench.on(Event::WorkerGone { session: SessionId(3) });
    assert_eq!(plans_to(1, &effects)[0].work[0].start, 0);
}

#[test]
fn an_operator_moves_a_request_that_waits_for_a_copy() {
    let (mut bench, _) = cached_elsewhere(PrefixCopying::Always, Duration::from_secs(1));
    bench.submit_prompt(3, prompt(1), 1);
    // The other group has its place free again.
    bench.on(Event::Cancel {
        sequence: SequenceId(2),
        reason: FinishReason::Cancelled,
    });
    let request = bench.cluster.status().sequences.remove(0).request;
    let effects = bench.on(Event::Migrate {
        order: OrderId(1),
        request,
        target: Some(GroupId(1)),
    });
    let at_once = Effect::OrderEnded {
        order: OrderId(1),
        result: Ok(Vec::new()),
    };
    assert!(effects.contains(&at_once), "{effects:?}");
    assert_eq!(told_to_end(&effects).len(), 3);
    assert_eq!(blocks(&bench, 0).held, 0);
    assert_eq!(bench.cluster.status().sequences[0].group, GroupId(1));
}
