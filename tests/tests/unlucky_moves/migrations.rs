//! Ranks of real clusters are killed and stopped in every state of a migration and of a reshard, while sixteen streams
//! talk: no answer changes by a bit, the books say what became of the move, and nothing is left of it.
//!
//! No state is hit by luck: the rank to be struck and the coordinator run by turns (`Lockstep`), and what is under way is
//! looked at while the rank stands. `KVASIR_TEST_SEED` draws other ranks, sequences, and lengths of turns.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use kvasir_proto::v1;
use kvasir_tests::{
    cluster_sandbox::{ClusterSandbox, KvasirProcess, kill},
    cluster_watch::{ClusterWatch, count},
    lockstep::Lockstep,
    sim::dice::Dice,
    telling::Telling,
};

/// Longest time from a strike to the answer to whoever ordered the move.
const ORDER_DEADLINE: Duration = Duration::from_secs(30);
/// A state that is not seen in so many moves is not seen.
const TRIES_MAX: u32 = 20;
const TURNS_MAX: u64 = 80;
/// A sequence with fewer tokens left may end before its move does.
const TOKENS_LEFT_MIN: u32 = 60;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Killed,
    /// Until the coordinator has given it up; then it comes back.
    Stopped,
}

const FATES: [Fate; 2] = [Fate::Killed, Fate::Stopped];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Source,
    Target,
}

/// A cluster, who looks at it, and who is drawn.
struct Scene<'a> {
    sandbox: &'a ClusterSandbox,
    watch: ClusterWatch,
    telling: &'a Telling<'a>,
    dice: Dice,
    added: Vec<KvasirProcess>,
}

impl<'a> Scene<'a> {
    async fn of(sandbox: &'a ClusterSandbox, telling: &'a Telling<'a>) -> Self {
        let mut scene = Self {
            sandbox,
            watch: ClusterWatch::of(sandbox).await,
            telling,
            dice: dice(),
            added: Vec::new(),
        };
        scene.add_worker();
        scene
    }

    fn add_worker(&mut self) {
        let id = format!("added-{}", self.added.len());
        let worker = self.sandbox.add_worker(&kvasir_tests::default_model(), &id);
        self.added.push(worker);
    }

    /// Ranks run for a drawn time; for longer ones where many turns were not enough.
    async fn turn(&mut self, lockstep: &Lockstep, turns: u64) {
        let length = self.dice.between(1, 20) * (1 + turns / 6);
        lockstep.turn(Duration::from_millis(length)).await;
    }

    /// The victim meets its fate; whoever else stands runs on.
    fn strike(&self, lockstep: &mut Lockstep, victim: u32, fate: Fate) {
        if fate == Fate::Killed {
            kill(victim);
        }
        lockstep.release_but(victim);
    }

    /// Once the coordinator knows of the loss, a stopped rank comes back, and another takes the place of one that is dead.
    async fn mend(&mut self, lockstep: Lockstep, fate: Fate, before: &v1::StatusResponse) {
        let lost = count(before, "ranks_lost");
        let noticed = |status: &v1::StatusResponse| (count(status, "ranks_lost") > lost).then_some(());
        self.watch.until("the loss to be noticed", noticed).await;
        drop(lockstep);
        if fate == Fate::Killed {
            self.add_worker();
        }
    }

    /// What the coordinator's log says of a move; there is one line.
    fn log_line(&self, names: &[&str]) -> String {
        let log = self.sandbox.log();
        let of_it = |line: &&str| names.iter().all(|name| line.contains(name));
        let lines: Vec<&str> = log.lines().filter(of_it).collect();
        assert_eq!(lines.len(), 1, "lines with {names:?}: {lines:#?}");
        lines[0].to_owned()
    }
}

/// One that differs from run to run, unless `KVASIR_TEST_SEED` is set.
fn dice() -> Dice {
    let seed = match std::env::var("KVASIR_TEST_SEED") {
        Ok(seed) => seed.parse().expect("KVASIR_TEST_SEED is a number"),
        Err(_) => u64::from(std::process::id()),
    };
    println!("KVASIR_TEST_SEED={seed}");
    Dice::new(seed)
}

fn grown(before: &v1::StatusResponse, after: &v1::StatusResponse, name: &str) -> u64 {
    count(after, name) - count(before, name)
}

fn epoch(status: &v1::StatusResponse, group: u32) -> u64 {
    status.groups[group as usize].epoch
}

fn pids(group: &v1::Group) -> Vec<u32> {
    group.ranks.iter().flat_map(|rank| &rank.worker).map(|worker| worker.pid).collect()
}

fn is_whole(group: &v1::Group) -> bool {
    group.state == "serving" && group.ranks.len() == group.workers_wanted as usize
}

/// Nothing moves, everybody is there, and one worker more.
fn is_calm(status: &v1::StatusResponse) -> bool {
    let still = status.transfers.is_empty() && status.reshards.is_empty();
    still && status.spares.len() == 1 && status.groups.iter().all(is_whole)
}

/// In any state of the cluster.
fn assert_books(status: &v1::StatusResponse) {
    assert_eq!(count(status, "conservation_violations"), 0, "{status:#?}");
    // Only whole moves count.
    assert_eq!(count(status, "cells_planned"), count(status, "cells_adopted"), "{status:#?}");
    for group in &status.groups {
        assert_eq!(group.blocks.unwrap().unaccounted, 0, "{status:#?}");
    }
}

/// When nobody talks any more.
async fn assert_nothing_is_left(watch: &ClusterWatch) {
    let is_empty = |group: &v1::Group| group.blocks.is_some_and(|blocks| blocks.held == 0 && blocks.in_flight == 0);
    let empty = |status: &v1::StatusResponse| {
        let still = status.transfers.is_empty() && status.reshards.is_empty() && status.sequences.is_empty();
        (still && status.groups.iter().all(is_empty)).then(|| status.clone())
    };
    let status = watch.until("all blocks to come back", empty).await;
    assert_books(&status);
    for none in ["failed", "cells_corrupt"] {
        assert_eq!(count(&status, none), 0, "{none}: {status:#?}");
    }
}

#[derive(Clone, Copy, Debug)]
struct MigrationCase {
    stage: &'static str,
    victim: End,
    fate: Fate,
}

impl MigrationCase {
    fn all() -> Vec<Self> {
        let mut cases = Vec::new();
        for stage in ["copying", "frozen", "adopted"] {
            for victim in [End::Source, End::Target] {
                cases.extend(FATES.map(|fate| Self { stage, victim, fate }));
            }
        }
        cases
    }

    /// Once it is adopted, its source is nothing to it, and it counts as moved whatever becomes of the target.
    fn outcomes(self) -> &'static [&'static str] {
        match (self.stage, self.victim) {
            ("adopted", _) => &["moved"],
            // The other end may report the connection before the loss is known.
            (_, End::Source) => &["source lost", "failed"],
            (_, End::Target) => &["target lost", "failed"],
        }
    }
}

/// A migration that is to be disturbed.
struct Plan {
    request: String,
    source: u32,
    target: u32,
    victim: u32,
    /// The victim, and who else must not get on before it is struck.
    held: Vec<u32>,
}

impl Scene<'_> {
    /// Waits for a cluster in which a sequence can be moved, and draws one.
    async fn plan(&mut self, case: MigrationCase) -> (Plan, v1::StatusResponse) {
        let source = self.dice.between_u32(0, 1);
        let target = 1 - source;
        let movable = |status: &v1::StatusResponse| {
            let runs = |sequence: &&v1::SequenceStatus| {
                sequence.group == source && sequence.state == "running" && sequence.computed > 0
            };
            let sequences = status.sequences.iter().filter(runs);
            let longest = sequences.max_by_key(|sequence| self.telling.left(sequence))?;
            let moves = is_calm(status) && self.telling.left(longest) > TOKENS_LEFT_MIN;
            moves.then(|| (longest.request_id.clone(), status.clone()))
        };
        let (request, status) = self.watch.until("a sequence to move", movable).await;
        let ends = [source, target].map(|group| self.dice.pick(&pids(&status.groups[group as usize])));
        let (victim, other) = match case.victim {
            End::Source => (ends[0], ends[1]),
            End::Target => (ends[1], ends[0]),
        };
        // The target goes on by itself once it has adopted.
        let held = match (case.stage, case.victim) {
            ("adopted", End::Source) => vec![victim, other],
            _ => vec![victim],
        };
        let plan = Plan {
            request,
            source,
            target,
            victim,
            held,
        };
        (plan, status)
    }

    /// One migration, disturbed as wanted if it got there. False if it did not.
    async fn disturb_migration(&mut self, case: MigrationCase) -> bool {
        let (plan, before) = self.plan(case).await;
        let mut lockstep = Lockstep::hold(self.sandbox.pid(), &plan.held);
        let mut admin = self.watch.admin.clone();
        let order = v1::MigrateRequest {
            request_id: plan.request.clone(),
            target_group: Some(plan.target),
        };
        let order = tokio::spawn(async move { admin.migrate(order).await });
        if !self.bring_migration_to(case.stage, &plan, &lockstep, || order.is_finished()).await {
            drop(lockstep);
            let _ended = tokio::time::timeout(ORDER_DEADLINE, order).await.expect("an end of the order");
            return false;
        }
        self.strike(&mut lockstep, plan.victim, case.fate);
        let report = tokio::time::timeout(ORDER_DEADLINE, order).await;
        let report = report.unwrap_or_else(|_| panic!("{case:?}: no end of the order"));
        let report = report.unwrap().unwrap().into_inner().migrations.remove(0);
        println!("{case:?} of {} to {}: {}", plan.source, plan.target, report.detail);
        self.check_migration(case, &plan, &report, &before).await;
        self.mend(lockstep, case.fate, &before).await;
        self.check_groups(case, &plan, &before).await;
        true
    }

    /// Turn by turn. False if it got past it, or ended.
    async fn bring_migration_to(
        &mut self,
        wanted: &str,
        plan: &Plan,
        lockstep: &Lockstep,
        ended: impl Fn() -> bool,
    ) -> bool {
        let seen = |status: &v1::StatusResponse| {
            let of_it = |transfer: &&v1::Transfer| transfer.request_id == plan.request;
            let transfer = status.transfers.iter().find(of_it);
            transfer.map(|transfer| (transfer.stage.clone(), transfer.cells_arrived))
        };
        let begun = |status: &v1::StatusResponse| (seen(status).is_some() || ended()).then_some(());
        self.watch.until("the migration to begin", begun).await;
        for turns in 0..TURNS_MAX {
            match self.watch.settled(seen).await {
                None => return false,
                Some((stage, _)) if stage == wanted => return true,
                Some(_) => self.turn(lockstep, turns).await,
            }
        }
        false
    }

    async fn check_migration(
        &self,
        case: MigrationCase,
        plan: &Plan,
        report: &v1::Migration,
        before: &v1::StatusResponse,
    ) {
        assert!(
            case.outcomes().contains(&report.outcome.as_str()),
            "{case:?}: {report:?}"
        );
        let after = self.watch.status().await;
        assert_books(&after);
        let moved = u64::from(report.outcome == "moved");
        let counted = ["begun", "moved", "failed"].map(|name| grown(before, &after, &format!("migrations_{name}")));
        assert_eq!(counted, [1, moved, 1 - moved], "{case:?}: {after:#?}");
        // What it had of the blocks of its sequence counts if it moved, and else not.
        let adopted = grown(before, &after, "cells_adopted");
        assert_eq!(adopted, moved * report.cells, "{case:?}: {report:?}");
        assert!(after.transfers.is_empty(), "{case:?}: {after:#?}");
        let (transfer, request) = (
            format!("transfer={} ", report.transfer),
            format!("request={} ", plan.request),
        );
        let line = self.log_line(&["sequence ", &transfer, &request]);
        let told = if moved == 1 { "sequence moved" } else { &report.detail };
        assert!(line.contains(told), "{case:?}: {line}");
    }

    /// The group that lost a rank goes on in another epoch, the other one in its own.
    async fn check_groups(&self, case: MigrationCase, plan: &Plan, before: &v1::StatusResponse) {
        let (hit, other) = match case.victim {
            End::Source => (plan.source, plan.target),
            End::Target => (plan.target, plan.source),
        };
        let again = |status: &v1::StatusResponse| {
            let serves = status.groups[hit as usize].state == "serving";
            (serves && epoch(status, hit) > epoch(before, hit)).then(|| status.clone())
        };
        let after = self.watch.until("the group to serve again", again).await;
        assert_eq!(epoch(&after, other), epoch(before, other), "{case:?}: {after:#?}");
        assert_eq!(grown(before, &after, "ranks_lost"), 1, "{case:?}: {after:#?}");
        assert_books(&after);
    }

    async fn disturb_migrations(&mut self) {
        for case in MigrationCase::all() {
            let mut tries = 1;
            while !self.disturb_migration(case).await {
                tries += 1;
                assert!(tries <= TRIES_MAX, "{case:?} was not seen");
            }
            println!("{case:?}: try {tries}");
        }
        self.telling.end();
    }
}

#[tokio::test]
async fn a_rank_that_dies_or_stands_still_in_any_state_of_a_migration_costs_no_bit_and_leaves_nothing() {
    let model = kvasir_tests::default_model();
    let sandbox = ClusterSandbox::start(&model, 3, &["--groups", "1,2"]);
    let telling = Telling::of(&sandbox);
    let mut scene = Scene::of(&sandbox, &telling).await;
    let (told, ()) = tokio::join!(telling.run(), scene.disturb_migrations());
    println!("{told} answers");
    assert_nothing_is_left(&scene.watch).await;
}
