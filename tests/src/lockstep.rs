//! Some ranks of a cluster and its coordinator by turns: while the ranks run the coordinator stands, and the other way
//! round. What needs a word of each of these ranks to get from one state to the next gets no further than one state a turn.
//! So a test sees all of its states, and finds the ranks standing in each.
//!
//! It stops nobody for good: who stands when it is dropped runs on.

use std::time::{Duration, Instant};

use crate::cluster_sandbox::{freeze, is_frozen, resume};

const STOP_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Lockstep {
    coordinator: u32,
    ranks: Vec<u32>,
}

impl Lockstep {
    /// The ranks stand, by pid; the coordinator runs.
    pub fn hold(coordinator: u32, ranks: &[u32]) -> Self {
        let lockstep = Self {
            coordinator,
            ranks: ranks.to_vec(),
        };
        ranks.iter().for_each(|rank| stop(*rank));
        lockstep
    }

    /// The ranks run for so long while the coordinator stands. What they say meanwhile it reads when they stand again.
    pub async fn turn(&self, length: Duration) {
        stop(self.coordinator);
        self.ranks.iter().for_each(|rank| resume(*rank));
        tokio::time::sleep(length).await;
        self.ranks.iter().for_each(|rank| stop(*rank));
        resume(self.coordinator);
    }

    /// All but one run on.
    pub fn release_but(&mut self, kept: u32) {
        let others = self.ranks.iter().filter(|rank| **rank != kept);
        others.for_each(|rank| resume(*rank));
        self.ranks.retain(|rank| *rank == kept);
    }
}

impl Drop for Lockstep {
    fn drop(&mut self) {
        self.ranks.iter().for_each(|rank| resume(*rank));
        resume(self.coordinator);
    }
}

/// Returns when none of its threads runs any more.
///
/// # Panics
/// If that takes too long.
fn stop(pid: u32) {
    freeze(pid);
    let deadline = Instant::now() + STOP_DEADLINE;
    while !is_frozen(pid) {
        assert!(Instant::now() < deadline, "process {pid} does not stand still");
        std::thread::yield_now();
    }
}
