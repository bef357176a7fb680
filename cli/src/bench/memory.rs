//! `kvasir bench memory`: how fast this host's memory is read. Each token that is decoded reads all weights once, so this
//! bounds how many of them a second can bring.

use std::{
    hint::black_box,
    num::NonZero,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use clap::{Args, value_parser};
use kvasir_worker::arith::HugeBuffer;
use serde::Serialize;

use super::spread::Spread;

/// Read by each thread in each sample: more than caches hold.
const BYTES: usize = 256 << 20;
/// Samples before those that count.
const WARMUP: u32 = 1;

/// Measures how fast this host's memory can be read, which no decoding exceeds
///
/// Each thread reads 256 MiB of its own from beginning to end, all at once, as a worker reads its weights: from huge pages,
/// where the system gives them.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  kvasir bench memory --threads 2")]
pub struct MemoryArgs {
    /// Threads that read at once [default: one for each core]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=4096))]
    threads: Option<u32>,
    /// How often it is measured
    #[arg(long, default_value_t = 9, value_name = "N", value_parser = value_parser!(u32).range(1..=10_000))]
    runs: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    threads: usize,
    bytes_per_thread: usize,
    /// All threads together, 10^9 bytes a second.
    gb_per_s: Spread,
}

pub fn run(args: &MemoryArgs) -> Result<()> {
    let threads = match args.threads {
        Some(threads) => threads as usize,
        None => thread::available_parallelism().map_or(1, NonZero::get),
    };
    let rates = read_gb_per_s(threads, args.runs)?;
    let report = Report {
        threads,
        bytes_per_thread: BYTES,
        gb_per_s: Spread::of(&rates).context("nothing was measured")?,
    };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    let Spread { median, min, max, .. } = report.gb_per_s;
    let readers = if threads == 1 { "thread reads" } else { "threads read" };
    println!("{threads} {readers} {median:.1} GB/s ({min:.1}-{max:.1})");
    Ok(())
}

/// All threads together, 10^9 bytes a second, of each run.
pub fn read_gb_per_s(threads: usize, runs: u32) -> Result<Vec<f64>> {
    let rate = |took: &Duration| (threads * BYTES) as f64 / took.as_secs_f64() / 1e9;
    Ok(read(threads, runs)?.iter().map(rate).collect())
}

/// How long each run took, until the last thread had read its bytes.
fn read(threads: usize, runs: u32) -> Result<Vec<Duration>> {
    let buffer = || HugeBuffer::new(BYTES).context("cannot get 256 MiB of memory for each thread");
    let buffers: Vec<HugeBuffer> = (0..threads).map(|_| buffer()).collect::<Result<_>>()?;
    let (all, begun) = (Barrier::new(threads), Instant::now());
    let times = thread::scope(|scope| {
        let readers: Vec<_> = buffers
            .into_iter()
            .map(|buffer| scope.spawn(|| read_alone(buffer, runs, &all, begun)))
            .collect();
        let joined = readers.into_iter().map(|reader| reader.join());
        joined
            .map(|times| times.map_err(|_| anyhow!("a thread that reads panicked")))
            .collect::<Result<Vec<_>>>()
    })?;
    let slowest = |run: usize| {
        let begun = times.iter().map(|times| times[run][0]).min();
        let ended = times.iter().map(|times| times[run][1]).max();
        ended.unwrap_or_default().saturating_sub(begun.unwrap_or_default())
    };
    Ok((WARMUP as usize..times[0].len()).map(slowest).collect())
}

/// When each run began and ended on this thread, counted from `origin`.
fn read_alone(mut buffer: HugeBuffer, runs: u32, all: &Barrier, origin: Instant) -> Vec<[Duration; 2]> {
    // Pages become real, near the thread that reads them.
    buffer.fill(1);
    let once = |_| {
        all.wait();
        let begun = origin.elapsed();
        black_box(buffer.read_through());
        [begun, origin.elapsed()]
    };
    (0..WARMUP + runs).map(once).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_counts_but_the_first() {
        let took = read(2, 3).unwrap();
        assert_eq!(took.len(), 3);
        assert!(took.iter().all(|took| !took.is_zero()), "{took:?}");
    }
}
