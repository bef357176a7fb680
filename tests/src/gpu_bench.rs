//! What a GPU is measured by, on the device that `KVASIR_GPU` names; on the host's device in sizes that only show that the
//! measurements themselves work.
//!
//! Times are the GPU's own, between events; each is a median after a warm-up. Inputs are random, and rotate where they
//! would fit the cache.

mod attention;
mod decode;
mod device_data;
mod large_model;
mod roofline;

use std::collections::BTreeMap;

use kvasir_model::BackendKind;
use kvasir_worker::gpu::{device::GpuError, test_device};

/// Numbers by name; the name ends with the unit.
pub type Numbers = BTreeMap<String, f64>;

/// What can be measured, and by what name.
pub const NAMES: [&str; 4] = ["roofline", "attention", "decode-exact", "decode-fast"];

/// Runs one measurement.
///
/// # Panics
/// If it has another name than those of [`NAMES`], or if the device fails: the caller is a program that does nothing else.
pub fn measure(name: &str) -> Numbers {
    let scale = match test_device::is_gpu() {
        true => Scale::Real,
        false => Scale::Tiny,
    };
    match name {
        "roofline" => or_panic(roofline::measure(scale)),
        "attention" => or_panic(attention::measure(scale)),
        "decode-exact" => decode::measure(scale, BackendKind::CudaExact),
        "decode-fast" => decode::measure(scale, BackendKind::CudaFast),
        other => panic!("nothing to measure is called {other}; there are: {}", NAMES.join(", ")),
    }
}

fn or_panic<T>(outcome: Result<T, GpuError>) -> T {
    outcome.unwrap_or_else(|error| panic!("{error}"))
}

/// Sizes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scale {
    /// For the host's device: seconds.
    Tiny,
    /// What fills a GPU.
    Real,
}

impl Scale {
    fn pick<T>(self, tiny: T, real: T) -> T {
        match self {
            Self::Tiny => tiny,
            Self::Real => real,
        }
    }

    /// Timed runs.
    fn repeats(self) -> usize {
        self.pick(2, 25)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The median of some runs, after one that does not count. `work` gets the run's number.
fn median_us<E>(repeats: usize, mut work: impl FnMut(usize) -> Result<f64, E>) -> Result<f64, E> {
    work(0)?;
    let times: Result<Vec<f64>, E> = (1..=repeats).map(work).collect();
    times.map(median)
}
