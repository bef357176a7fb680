//! A worker that joins, or a rank that was there before, is struck while a group of two becomes one of three: while units
//! are loaded, while cells are copied, when the group stands still, and when it has just switched.

use kvasir_proto::v1;
use kvasir_tests::{cluster_sandbox::ClusterSandbox, cluster_watch::count, sim::dice::Dice, telling::Telling};

use crate::scene::{
    Fate, Scene, Seen, assert_books, assert_fails_by_a_deadline, assert_nothing_is_left, dice, end_of, epoch, grown,
    is_calm, pids, transport,
};

/// So many talk before a reshard begins: else there is little to copy.
const RUNNING_MIN: usize = 8;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Victim {
    Joiner,
    Member,
}

const STAGES: [&str; 4] = ["preparing", "copying", "frozen", "switched"];
const VICTIMS: [Victim; 2] = [Victim::Joiner, Victim::Member];

#[derive(Clone, Copy, Debug)]
struct Case {
    stage: &'static str,
    victim: Victim,
    fate: Fate,
}

impl Case {
    /// Each stage with each victim killed, with one stopped, which takes seconds to be noticed; and one pause.
    fn draw(dice: &mut Dice) -> Vec<Self> {
        let mut cases = Vec::new();
        for stage in STAGES {
            let case = |victim, fate| Self { stage, victim, fate };
            cases.extend(VICTIMS.map(|victim| case(victim, Fate::Killed)));
            cases.push(case(dice.pick(&VICTIMS), Fate::Stopped));
        }
        cases.push(Self {
            stage: dice.pick(&STAGES),
            victim: dice.pick(&VICTIMS),
            fate: Fate::Paused,
        });
        cases
    }

    fn switches(self) -> bool {
        self.stage == "switched" || self.fate == Fate::Paused
    }

    /// The group goes on in another epoch: it switched, or lost a rank.
    fn changes_the_group(self) -> bool {
        self.victim == Victim::Member || self.switches()
    }

    /// The group loses nobody, only a worker that was to join, if anybody.
    fn costs_nothing(self) -> bool {
        self.fate == Fate::Paused || !self.changes_the_group()
    }

    fn outcomes(self) -> &'static [&'static str] {
        match (self.stage, self.victim, self.fate) {
            ("switched", _, _) | (_, _, Fate::Paused) => &["switched"],
            // Where steps are slow, a deadline of the reshard comes first: a rank is given up after twenty usual steps.
            (_, Victim::Joiner, Fate::Stopped) => &["target lost", "failed"],
            (_, Victim::Member, Fate::Stopped) => &["source lost", "failed"],
            // The others may report that they miss it before the loss is known.
            (_, Victim::Joiner, Fate::Killed) => &["target lost", "failed"],
            (_, Victim::Member, Fate::Killed) => &["source lost", "failed"],
        }
    }

    /// A rank that stands frozen may have sent its last cells already: then the others need no more of it to switch, and
    /// the case was not met.
    fn came_too_late(self, outcome: &str) -> bool {
        (self.stage, self.victim) == ("frozen", Victim::Member) && self.fate != Fate::Paused && outcome == "switched"
    }
}

/// Waits for a group of two that has much to copy, and a spare. After a reshard that switched it has three ranks first.
async fn two_ranks(scene: &Scene<'_>, case: Case) -> v1::StatusResponse {
    let calm = |status: &v1::StatusResponse| is_calm(status).then(|| status.groups[0].ranks.len());
    loop {
        let mended = |status: &v1::StatusResponse| {
            let three = status.groups[0].ranks.len() == 3 && status.groups[0].state == "serving";
            (three && status.reshards.is_empty())
                .then_some(3)
                .or_else(|| calm(status))
        };
        if scene.watch.until("a group that is whole", mended).await == 2 {
            break;
        }
        let order = v1::ReshardRequest { group: 0, ranks: 2 };
        // It may have begun to change again.
        let _whatever = scene.watch.admin.clone().reshard(order).await;
    }
    let ready = |status: &v1::StatusResponse| {
        let runs = |sequence: &&v1::SequenceStatus| sequence.state == "running" && sequence.computed > 64;
        let many = status.sequences.iter().filter(runs).count() >= RUNNING_MIN;
        // What an earlier loss still costs would look like a cost of this one.
        let ready = many && (!case.costs_nothing() || all_have_caught_up(status));
        (ready && calm(status) == Some(2)).then(|| status.clone())
    };
    scene.watch.until("much to copy", ready).await
}

fn all_have_caught_up(status: &v1::StatusResponse) -> bool {
    let mut sequences = status.sequences.iter();
    sequences.all(|sequence| sequence.computed + 1 >= sequence.tokens)
}

fn seen(status: &v1::StatusResponse) -> Seen {
    let reshard = status.reshards.first()?;
    Some((reshard.stage.clone(), reshard.cells_arrived))
}

/// One reshard, disturbed as wanted if it got there. False if it did not.
async fn disturb(scene: &mut Scene<'_>, case: Case) -> bool {
    let before = two_ranks(scene, case).await;
    let victim = match case.victim {
        Victim::Joiner => before.spares[0].pid,
        Victim::Member => scene.dice.pick(&pids(&before, 0)),
    };
    let lockstep = scene.hold(&[victim]);
    let mut admin = scene.watch.admin.clone();
    let order = v1::ReshardRequest { group: 0, ranks: 3 };
    let order = tokio::spawn(async move { admin.reshard(order).await });
    let got_there = scene.bring_to(case.stage, &lockstep, seen, || order.is_finished());
    if !got_there.await {
        drop(lockstep);
        let _whatever = end_of(order).await;
        return false;
    }
    let lockstep = scene.strike(lockstep, victim, case.fate);
    let report = end_of(order).await.unwrap();
    println!("{case:?}, {} cells: {}", report.cells, report.detail);
    check_report(scene, case, &report, &before).await;
    scene.mend(lockstep, case.fate, &before).await;
    check_group(scene, case, &before).await;
    !case.came_too_late(&report.outcome)
}

async fn check_report(scene: &Scene<'_>, case: Case, report: &v1::ReshardResponse, before: &v1::StatusResponse) {
    let outcome = report.outcome.as_str();
    let expected = case.outcomes().contains(&outcome) || case.came_too_late(outcome);
    assert!(expected, "{case:?}: {report:?}");
    assert_fails_by_a_deadline(case.fate, outcome, &report.detail);
    let after = scene.watch.status().await;
    assert_books(&after);
    let switched = u64::from(outcome == "switched");
    let counted = ["begun", "switched", "failed"].map(|name| grown(before, &after, &format!("reshards_{name}")));
    assert_eq!(counted, [1, switched, 1 - switched], "{case:?}: {after:#?}");
    let adopted = grown(before, &after, "cells_adopted");
    assert_eq!(adopted, switched * report.cells, "{case:?}: {report:?}");
    assert!(after.reshards.is_empty(), "{case:?}: {after:#?}");
    let told = scene.log_lines(&["group not resharded", "group=0 "]);
    assert_eq!(told.len() as u64, count(&after, "reshards_failed"), "{told:#?}");
    if switched == 0 {
        assert!(told[told.len() - 1].contains(&report.detail), "{case:?}: {told:#?}");
    }
}

/// A group that switched or lost a rank goes on in another epoch; one that lost only what was to come goes on as it was.
async fn check_group(scene: &Scene<'_>, case: Case, before: &v1::StatusResponse) {
    let goes_on = |status: &v1::StatusResponse| {
        let changed = epoch(status, 0) > epoch(before, 0);
        let serves = status.groups[0].state == "serving";
        (serves && changed == case.changes_the_group()).then(|| status.clone())
    };
    let after = scene.watch.until("the group to serve", goes_on).await;
    let lost = grown(before, &after, "ranks_lost");
    assert_eq!(lost, case.fate.losses(), "{case:?}: {after:#?}");
    if !case.changes_the_group() {
        assert_eq!(pids(&after, 0), pids(before, 0), "{case:?}");
    }
    if case.costs_nothing() {
        assert_eq!(grown(before, &after, "tokens_recomputed"), 0, "{case:?}: {after:#?}");
    }
    assert_books(&after);
}

#[tokio::test]
async fn a_rank_that_dies_or_stands_still_in_any_state_of_a_reshard_costs_no_bit_and_leaves_nothing() {
    let model = kvasir_tests::default_model();
    let mut dice = dice();
    let sandbox = ClusterSandbox::start(&model, 2, &["--transport", transport(&mut dice)]);
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
    let status = scene.watch.status().await;
    assert!(count(&status, "reshards_switched") >= 4, "{status:#?}");
}
