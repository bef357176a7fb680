//! Starts the simulation runner of the tests crate; it alone knows what is simulated.

use anyhow::Result;

use crate::arguments::SimulationOptions;
use crate::{paths, process};

pub fn run(options: &SimulationOptions) -> Result<()> {
    let mut cargo = paths::cargo();
    cargo.args(["run", "--package", "kvasir-tests", "--example", "sim", "--"]);
    if let Some(num_seeds) = options.num_seeds {
        cargo.args(["--seeds", &num_seeds.to_string()]);
    }
    if let Some(first_seed) = options.first_seed {
        cargo.args(["--start", &first_seed.to_string()]);
    }
    if let Some(plant) = &options.plant {
        cargo.args(["--plant", plant]);
    }
    process::run(&mut cargo)
}
