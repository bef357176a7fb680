//! A seeded simulation of a whole cluster in virtual time: the real coordinator machine and the real books of the
//! ranks, driven through kills, pauses, partitions, lost tails, rejoins and cancellations.
//!
//! Everything follows from one `u64`. Network, processes, collectives and cells are models; a cell holds a hash of the
//! history that was written into it, and a token is a hash of all cells that its step read, so that any stale, foreign
//! or missing cell changes the answer. The answer is compared with one computed from the prompt alone.

mod block_watch;
mod cells;
pub(crate) mod checks;
mod clients;
pub mod dice;
mod faults;
mod forgery;
mod lives;
mod network;
mod oracle;
mod plant;
mod rank;
mod report;
mod scenario;
mod status_watch;
mod transfers;
mod world;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

pub use plant::Plant;
pub use report::Report;
pub use scenario::{
    FIRST_SEED_WITH_ELASTIC_GROUPS, FIRST_SEED_WITH_MIGRATIONS, FIRST_SEED_WITH_POLICIES, FIRST_SEED_WITH_PREFIX_COPIES,
};

/// A seed whose run broke a promise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    pub seed: u64,
    pub plant: Option<Plant>,
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plant = self
            .plant
            .map(|plant| format!(" --plant {}", plant.name()))
            .unwrap_or_default();
        writeln!(f, "seed {}: {}", self.seed, self.what)?;
        writeln!(f, "replay: cargo xtask sim --seed {} --seeds 1{plant}", self.seed)?;
        write!(
            f,
            "    or: KVASIR_SIM_SEED={} cargo nextest run -p kvasir-tests --test simulation",
            self.seed
        )
    }
}

/// Runs one seed to its end. A panic in the machines under test is a failure like any other.
pub fn run(seed: u64, plant: Option<Plant>) -> Result<Report, Box<Failure>> {
    run_traced(seed, plant, false)
}

/// As `run`; with `trace` every fault and every observable effect goes to standard error.
pub fn run_traced(seed: u64, plant: Option<Plant>, trace: bool) -> Result<Report, Box<Failure>> {
    let outcome = catch_unwind(AssertUnwindSafe(|| world::World::new(seed, plant, trace).run()));
    let what = match outcome {
        Ok(Ok(report)) => return Ok(report),
        Ok(Err(what)) => what,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            format!("panic: {}", text.unwrap_or_default())
        }
    };
    Err(Box::new(Failure { seed, plant, what }))
}
