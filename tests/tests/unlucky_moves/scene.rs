//! A cluster whose ranks meet with misfortune while it tells sixteen answers: who strikes, who mends, and what the books
//! must say at any time.

use std::time::Duration;

use kvasir_proto::v1;
use kvasir_tests::{
    cluster_sandbox::{ClusterSandbox, KvasirProcess, kill},
    cluster_watch::{ClusterWatch, count},
    lockstep::Lockstep,
    sim::dice::Dice,
    telling::Telling,
};
use tokio::task::JoinHandle;
use tonic::{Response, Status};

/// Longest time from a strike to the answer to whoever ordered the move.
const ORDER_DEADLINE: Duration = Duration::from_secs(30);
/// A state that is not seen in so many moves is not seen.
const TRIES_MAX: u32 = 20;
const TURNS_MAX: u64 = 80;
/// Turns at most for which a move is left in its stage before a rank is struck.
const LINGER_MAX: u64 = 3;
const STANDSTILL: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    Killed,
    /// Until the coordinator has given it up; then it comes back.
    Stopped,
    /// So shortly that nobody misses it.
    Paused,
}

impl Fate {
    pub fn losses(self) -> u64 {
        u64::from(self != Self::Paused)
    }
}

/// How far a move is: its stage, and the cells that have come.
pub type Seen = Option<(String, u64)>;

pub struct Scene<'a> {
    pub sandbox: &'a ClusterSandbox,
    pub watch: ClusterWatch,
    pub telling: &'a Telling<'a>,
    pub dice: Dice,
    linger_max: u64,
    added: Vec<KvasirProcess>,
}

impl<'a> Scene<'a> {
    /// With a spare worker, which takes the place of a lost one at once.
    pub async fn of(sandbox: &'a ClusterSandbox, telling: &'a Telling<'a>, dice: Dice) -> Self {
        let mut scene = Self {
            sandbox,
            watch: ClusterWatch::of(sandbox).await,
            telling,
            dice,
            linger_max: 0,
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

    /// Tries until one try succeeds. The first ones linger, and may miss the state that they want for it.
    ///
    /// # Panics
    /// If none of many does.
    pub async fn insist(&mut self, what: &str, mut attempt: impl AsyncFnMut(&mut Self) -> bool) {
        for attempts in 0..TRIES_MAX {
            self.linger_max = LINGER_MAX.saturating_sub(attempts.into());
            if attempt(self).await {
                return;
            }
        }
        panic!("{what} was not seen in {TRIES_MAX} moves");
    }

    pub fn hold(&self, ranks: &[u32]) -> Lockstep {
        Lockstep::hold(self.sandbox.pid(), ranks)
    }

    /// Turn by turn, and then some turns into that stage. False if the move ended without, or got past it.
    pub async fn bring_to(
        &mut self,
        stage: &str,
        lockstep: &Lockstep,
        seen: impl Fn(&v1::StatusResponse) -> Seen,
        ended: impl Fn() -> bool,
    ) -> bool {
        let begun = |status: &v1::StatusResponse| (seen(status).is_some() || ended()).then_some(());
        self.watch.until("the move to begin", begun).await;
        for turns in 0..TURNS_MAX {
            match self.watch.settled(&seen).await {
                None => return false,
                Some((now, _)) if now == stage => return self.linger(stage, lockstep, seen).await,
                Some(_) => self.turn(lockstep, 20 * (1 + turns / 6)).await,
            }
        }
        false
    }

    async fn linger(&mut self, stage: &str, lockstep: &Lockstep, seen: impl Fn(&v1::StatusResponse) -> Seen) -> bool {
        for _ in 0..self.dice.between(0, self.linger_max) {
            self.turn(lockstep, 3).await;
            if self.watch.settled(&seen).await.is_none_or(|(now, _)| now != stage) {
                return false;
            }
        }
        true
    }

    /// Ranks run for a drawn time.
    async fn turn(&mut self, lockstep: &Lockstep, ms_max: u64) {
        let length = Duration::from_millis(self.dice.between(1, ms_max));
        lockstep.turn(length).await;
    }

    /// The victim meets its fate; whoever else stands runs on. Returns what keeps it where it is.
    pub fn strike(&self, mut lockstep: Lockstep, victim: u32, fate: Fate) -> Option<Lockstep> {
        if fate == Fate::Killed {
            kill(victim);
        }
        lockstep.release_but(victim);
        (fate != Fate::Paused).then_some(lockstep)
    }

    /// Until then a rank stands still most of the time, but not for so long that it is given up.
    pub async fn slow_down(&self, rank: u32, until: impl Fn() -> bool) {
        while !until() {
            let lockstep = self.hold(&[rank]);
            tokio::time::sleep(STANDSTILL).await;
            drop(lockstep);
            tokio::time::sleep(STANDSTILL / 10).await;
        }
    }

    /// Once the coordinator knows of the loss, a stopped rank comes back, and another takes the place of one that is dead.
    pub async fn mend(&mut self, lockstep: Option<Lockstep>, fate: Fate, before: &v1::StatusResponse) {
        let lost = count(before, "ranks_lost") + fate.losses();
        let noticed = |status: &v1::StatusResponse| (count(status, "ranks_lost") >= lost).then_some(());
        self.watch.until("the loss to be noticed", noticed).await;
        drop(lockstep);
        if fate == Fate::Killed {
            self.add_worker();
        }
    }

    /// Lines of the coordinator's log in which all of this is.
    pub fn log_lines(&self, parts: &[&str]) -> Vec<String> {
        let log = self.sandbox.log();
        let of_it = |line: &&str| parts.iter().all(|part| line.contains(part));
        log.lines().filter(of_it).map(str::to_owned).collect()
    }
}

/// One that differs from run to run, unless `KVASIR_TEST_SEED` is set.
pub fn dice() -> Dice {
    let seed = match std::env::var("KVASIR_TEST_SEED") {
        Ok(seed) => seed.parse().expect("KVASIR_TEST_SEED is a number"),
        Err(_) => u64::from(std::process::id()),
    };
    println!("KVASIR_TEST_SEED={seed}");
    Dice::new(seed)
}

/// What whoever ordered a move is told.
///
/// # Panics
/// If that takes too long.
pub async fn end_of<T>(order: JoinHandle<Result<Response<T>, Status>>) -> Result<T, Status> {
    let ended = tokio::time::timeout(ORDER_DEADLINE, order).await;
    let ended = ended.expect("an end of the order").unwrap();
    ended.map(Response::into_inner)
}

/// Shared memory or connections, drawn.
pub fn transport(dice: &mut Dice) -> &'static str {
    let transport = dice.pick(&["auto", "tcp"]);
    println!("transport {transport}");
    transport
}

/// How much a counter has grown.
pub fn grown(before: &v1::StatusResponse, after: &v1::StatusResponse, name: &str) -> u64 {
    count(after, name) - count(before, name)
}

pub fn epoch(status: &v1::StatusResponse, group: u32) -> u64 {
    status.groups[group as usize].epoch
}

pub fn pids(status: &v1::StatusResponse, group: u32) -> Vec<u32> {
    let ranks = status.groups[group as usize].ranks.iter();
    ranks.flat_map(|rank| &rank.worker).map(|worker| worker.pid).collect()
}

/// Nothing moves, everybody is there, and one worker more.
pub fn is_calm(status: &v1::StatusResponse) -> bool {
    let is_whole = |group: &v1::Group| group.state == "serving" && group.ranks.len() == group.workers_wanted as usize;
    let still = status.transfers.is_empty() && status.reshards.is_empty();
    still && status.spares.len() == 1 && status.groups.iter().all(is_whole)
}

/// Whatever has happened.
pub fn assert_books(status: &v1::StatusResponse) {
    assert_eq!(count(status, "conservation_violations"), 0, "{status:#?}");
    // Only whole moves count.
    let (planned, adopted) = (count(status, "cells_planned"), count(status, "cells_adopted"));
    assert_eq!(planned, adopted, "{status:#?}");
    for group in &status.groups {
        assert_eq!(group.blocks.unwrap().unaccounted, 0, "{status:#?}");
    }
}

/// Of a rank that only stands nobody says that it is gone.
pub fn assert_fails_by_a_deadline(fate: Fate, outcome: &str, detail: &str) {
    if (fate, outcome) == (Fate::Stopped, "failed") {
        assert!(detail.contains("deadline"), "{detail}");
    }
}

/// When nobody talks any more.
pub async fn assert_nothing_is_left(watch: &ClusterWatch) {
    let is_empty = |group: &v1::Group| {
        group
            .blocks
            .is_some_and(|blocks| blocks.held == 0 && blocks.in_flight == 0)
    };
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
