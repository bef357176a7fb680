//! A rank of the source or of the target is struck while a sequence is copied, frozen, or adopted.

use kvasir_proto::v1;
use kvasir_tests::{cluster_sandbox::ClusterSandbox, sim::dice::Dice, telling::Telling};

use crate::scene::{
    Fate, Scene, Seen, assert_books, assert_fails_by_a_deadline, assert_nothing_is_left, dice, end_of, epoch, grown,
    is_calm, pids, transport,
};

/// A sequence with fewer tokens left may end before its move does.
const TOKENS_LEFT_MIN: u32 = 60;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Source,
    Target,
}

const STAGES: [&str; 3] = ["copying", "frozen", "adopted"];
const VICTIMS: [End; 2] = [End::Source, End::Target];

#[derive(Clone, Copy, Debug)]
struct Case {
    stage: &'static str,
    victim: End,
    fate: Fate,
}

impl Case {
    /// Each stage with each victim killed and stopped; and one pause.
    fn draw(dice: &mut Dice) -> Vec<Self> {
        let mut cases = Vec::new();
        for stage in STAGES {
            for victim in VICTIMS {
                cases.extend([Fate::Killed, Fate::Stopped].map(|fate| Self { stage, victim, fate }));
            }
        }
        cases.push(Self {
            stage: dice.pick(&STAGES),
            victim: dice.pick(&VICTIMS),
            fate: Fate::Paused,
        });
        cases
    }

    /// Who is only copied is told on while nobody knows that the target stands still.
    fn may_outlast_its_sequence(self) -> bool {
        (self.stage, self.victim, self.fate) == ("copying", End::Target, Fate::Stopped)
    }

    /// Once it is adopted, its source is nothing to it, and it counts as moved whatever becomes of the target.
    fn outcomes(self) -> &'static [&'static str] {
        match (self.stage, self.victim, self.fate) {
            ("adopted", _, _) | (_, _, Fate::Paused) => &["moved"],
            // Where steps are slow, the deadline of the transfer comes first: a rank is given up after twenty usual steps.
            (_, End::Source, Fate::Stopped) => &["source lost", "failed"],
            (_, End::Target, Fate::Stopped) => &["target lost", "failed"],
            // The other end may report the connection before the loss is known.
            (_, End::Source, Fate::Killed) => &["source lost", "failed"],
            (_, End::Target, Fate::Killed) => &["target lost", "failed"],
        }
    }

    /// A source that stands frozen may have sent its last cells already: then its target needs no more of it, and the case
    /// was not met.
    fn came_too_late(self, outcome: &str) -> bool {
        (self.stage, self.victim) == ("frozen", End::Source) && self.fate != Fate::Paused && outcome == "moved"
    }
}

/// A migration that is to be disturbed.
struct Plan {
    request: String,
    source: u32,
    target: u32,
    victim: u32,
    /// A rank of the other group.
    other: u32,
    /// The victim, and who else must not get on before it is struck.
    held: Vec<u32>,
}

impl Plan {
    /// Waits for a cluster in which a sequence can be moved, and draws one.
    async fn draw(scene: &mut Scene<'_>, case: Case) -> (Self, v1::StatusResponse) {
        let source = scene.dice.between_u32(0, 1);
        let target = 1 - source;
        let movable = |status: &v1::StatusResponse| {
            let runs = |sequence: &&v1::SequenceStatus| {
                sequence.group == source && sequence.state == "running" && sequence.computed > 0
            };
            let sequences = status.sequences.iter().filter(runs);
            let longest = sequences.max_by_key(|sequence| scene.telling.left(sequence))?;
            let moves = is_calm(status) && scene.telling.left(longest) > TOKENS_LEFT_MIN;
            moves.then(|| (longest.request_id.clone(), status.clone()))
        };
        let (request, status) = scene.watch.until("a sequence to move", movable).await;
        let ends = [source, target].map(|group| scene.dice.pick(&pids(&status, group)));
        let (victim, other) = match case.victim {
            End::Source => (ends[0], ends[1]),
            End::Target => (ends[1], ends[0]),
        };
        // The target goes on by itself once it has adopted.
        let held = match (case.stage, case.victim) {
            ("adopted", End::Source) => vec![victim, other],
            _ => vec![victim],
        };
        let plan = Self {
            request,
            source,
            target,
            victim,
            other,
            held,
        };
        (plan, status)
    }

    fn seen(&self, status: &v1::StatusResponse) -> Seen {
        let of_it = |transfer: &&v1::Transfer| transfer.request_id == self.request;
        let transfer = status.transfers.iter().find(of_it)?;
        Some((transfer.stage.clone(), transfer.cells_arrived))
    }

    /// The group that loses a rank, and the other one.
    fn hit(&self, case: Case) -> (u32, u32) {
        match case.victim {
            End::Source => (self.source, self.target),
            End::Target => (self.target, self.source),
        }
    }
}

/// One migration, disturbed as wanted if it got there. False if it did not.
async fn disturb(scene: &mut Scene<'_>, case: Case) -> bool {
    let (plan, before) = Plan::draw(scene, case).await;
    let lockstep = scene.hold(&plan.held);
    let mut admin = scene.watch.admin.clone();
    let order = v1::MigrateRequest {
        request_id: plan.request.clone(),
        target_group: Some(plan.target),
    };
    let order = tokio::spawn(async move { admin.migrate(order).await });
    let seen = |status: &v1::StatusResponse| plan.seen(status);
    let got_there = scene.bring_to(case.stage, &lockstep, seen, || order.is_finished());
    if !got_there.await {
        drop(lockstep);
        let _whatever = end_of(order).await;
        return false;
    }
    let lockstep = scene.strike(lockstep, plan.victim, case.fate);
    if case.may_outlast_its_sequence() {
        scene.slow_down(plan.other, || order.is_finished()).await;
    }
    let report = end_of(order).await.unwrap().migrations.remove(0);
    let (source, target, cells) = (plan.source, plan.target, report.cells);
    println!("{case:?} of {source} to {target}, {cells} cells: {}", report.detail);
    check_report(scene, case, &plan, &report, &before).await;
    scene.mend(lockstep, case.fate, &before).await;
    check_groups(scene, case, &plan, &before).await;
    !case.came_too_late(&report.outcome)
}

async fn check_report(scene: &Scene<'_>, case: Case, plan: &Plan, report: &v1::Migration, before: &v1::StatusResponse) {
    let outcome = report.outcome.as_str();
    let expected = case.outcomes().contains(&outcome) || case.came_too_late(outcome);
    assert!(expected, "{case:?}: {report:?}");
    assert_fails_by_a_deadline(case.fate, outcome, &report.detail);
    let after = scene.watch.status().await;
    assert_books(&after);
    let moved = u64::from(outcome == "moved");
    let counted = ["begun", "moved", "failed"].map(|name| grown(before, &after, &format!("migrations_{name}")));
    assert_eq!(counted, [1, moved, 1 - moved], "{case:?}: {after:#?}");
    // The cells of a sequence that moved count, all of them, and of another one none.
    let adopted = grown(before, &after, "cells_adopted");
    assert_eq!(adopted, moved * report.cells, "{case:?}: {report:?}");
    assert!(after.transfers.is_empty(), "{case:?}: {after:#?}");
    let names = [
        format!("transfer={} ", report.transfer),
        format!("request={} ", plan.request),
    ];
    let told = scene.log_lines(&["sequence ", &names[0], &names[1]]);
    let wanted = if moved == 1 { "sequence moved" } else { &report.detail };
    assert!(told.len() == 1 && told[0].contains(wanted), "{case:?}: {told:#?}");
}

/// A group that lost a rank goes on in another epoch, another one in its own.
async fn check_groups(scene: &Scene<'_>, case: Case, plan: &Plan, before: &v1::StatusResponse) {
    let (hit, other) = plan.hit(case);
    let again = |status: &v1::StatusResponse| {
        let changed = epoch(status, hit) > epoch(before, hit);
        let serves = status.groups[hit as usize].state == "serving";
        (serves && u64::from(changed) == case.fate.losses()).then(|| status.clone())
    };
    let after = scene.watch.until("the group to serve again", again).await;
    assert_eq!(epoch(&after, other), epoch(before, other), "{case:?}: {after:#?}");
    let lost = grown(before, &after, "ranks_lost");
    assert_eq!(lost, case.fate.losses(), "{case:?}: {after:#?}");
    assert_books(&after);
}

#[tokio::test]
async fn a_rank_that_dies_or_stands_still_in_any_state_of_a_migration_costs_no_bit_and_leaves_nothing() {
    let model = kvasir_tests::default_model();
    let mut dice = dice();
    // Prefixes that are copied would be counted with the cells of those who move.
    let alone = ["--no-rebalance", "--prefix-copy", "never"];
    let flags = [&alone[..], &["--groups", "1,2", "--transport", transport(&mut dice)]].concat();
    let sandbox = ClusterSandbox::start(&model, 3, &flags);
    let telling = Telling::of(&sandbox);
    let mut scene = Scene::of(&sandbox, &telling, dice).await;
    let disturbed = async {
        for case in Case::draw(&mut scene.dice) {
            scene
                .insist(&format!("{case:?}"), async |scene| disturb(scene, case).await)
                .await;
        }
        telling.end();
    };
    let (told, ()) = tokio::join!(telling.run(), disturbed);
    println!("{told} answers");
    assert_nothing_is_left(&scene.watch).await;
}
