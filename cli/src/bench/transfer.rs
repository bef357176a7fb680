//! `kvasir bench transfer`: how fast cells go from rank to rank on this host, beside a plain copy of as many bytes.
//!
//! Each sample of the four ways is taken in turn, so that what else the machine does falls on all of them.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use clap::{Args, value_parser};
use kvasir_model::BackendKind;
use serde::Serialize;

use super::rank_pair::{Lane, RankPair};
use crate::engine_options::EngineOptions;

/// Before what is measured: connections are made and memory is touched.
const WARMUP: u32 = 2;

/// Measures how fast KV cells go from one rank to another on this host
///
/// Two ranks in one process copy the cells of a computed sequence over TCP and through shared memory, with all checks; by
/// turns, as many bytes are copied plainly: over a TCP connection of two threads, and from memory to memory.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  kvasir bench transfer --model model.gguf --blocks 32 --repeat 31")]
pub struct TransferArgs {
    #[command(flatten)]
    pub engine: EngineOptions,
    /// Blocks that are copied at a time, of all KV heads
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = value_parser!(u32).range(1..=4096))]
    blocks: u32,
    /// How often each way is measured
    #[arg(long, default_value_t = 31, value_name = "N", value_parser = value_parser!(u32).range(1..=10_000))]
    repeat: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &TransferArgs) -> Result<()> {
    let backend = args.engine.arithmetic.resolve()?.backend;
    ensure!(
        backend == BackendKind::Canonical,
        "cells are measured with --backend canonical, not {backend}"
    );
    let mut pair = RankPair::start(&args.engine, args.blocks)?;
    let mut plain = Plain::new(pair.bytes())?;
    let mut samples = Samples::default();
    for index in 0..WARMUP + args.repeat {
        let taken = [
            plain.over_tcp()?,
            pair.copy(Lane::Connection)?,
            plain.in_memory(),
            pair.copy(Lane::SharedMemory)?,
        ];
        if index >= WARMUP {
            samples.add(taken);
        }
    }
    Report::new(&pair, args.repeat, samples).print(args.json)
}

/// Copies without ranks, each between memory of its own.
struct Plain {
    source: Vec<u8>,
    target: Vec<u8>,
    out: TcpStream,
    back: TcpStream,
}

impl Plain {
    fn new(bytes: usize) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let out = TcpStream::connect(listener.local_addr()?)?;
        let (back, _) = listener.accept()?;
        Ok(Self {
            source: (0..bytes).map(|index| index as u8).collect(),
            target: vec![1; bytes],
            out,
            back,
        })
    }

    fn over_tcp(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        let (source, target, out, back) = (&self.source, &mut self.target, &mut self.out, &mut self.back);
        thread::scope(|scope| {
            let sent = scope.spawn(move || out.write_all(source));
            back.read_exact(target)?;
            sent.join()
                .map_err(|_| anyhow!("the thread that sends panicked"))?
                .map_err(Into::into)
        })
        .map(|()| begun.elapsed())
    }

    fn in_memory(&mut self) -> Duration {
        let begun = Instant::now();
        let (source, target) = (&self.source, &mut self.target);
        thread::scope(|scope| {
            scope.spawn(move || target.copy_from_slice(source));
        });
        begun.elapsed()
    }
}

/// By way, as they are measured by turns.
#[derive(Default)]
struct Samples([Vec<Duration>; 4]);

impl Samples {
    fn add(&mut self, taken: [Duration; 4]) {
        for (samples, taken) in self.0.iter_mut().zip(taken) {
            samples.push(taken);
        }
    }
}

#[derive(Serialize)]
struct Report {
    bytes: usize,
    cell_bytes: usize,
    repeat: u32,
    tcp_copy: Rate,
    tcp_lane: Rate,
    memory_copy: Rate,
    shared_memory_lane: Rate,
    /// The lane's median rate as a share of the plain copy's.
    tcp_share: f64,
    shared_memory_share: f64,
}

/// Gigabytes (10^9 bytes) per second.
#[derive(Serialize, Clone, Copy)]
struct Rate {
    median: f64,
    min: f64,
    max: f64,
}

impl Rate {
    fn of(bytes: usize, mut samples: Vec<Duration>) -> Self {
        samples.sort_unstable();
        let rate = |index: usize| rounded(bytes as f64 / samples[index].as_secs_f64() / 1e9);
        Self {
            median: rate(samples.len() / 2),
            min: rate(samples.len() - 1),
            max: rate(0),
        }
    }
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

impl Report {
    fn new(pair: &RankPair, repeat: u32, samples: Samples) -> Self {
        let bytes = pair.bytes();
        let [tcp_copy, tcp_lane, memory_copy, shared_memory_lane] = samples.0.map(|samples| Rate::of(bytes, samples));
        Self {
            bytes,
            cell_bytes: pair.cell_bytes,
            repeat,
            tcp_copy,
            tcp_lane,
            memory_copy,
            shared_memory_lane,
            tcp_share: rounded(tcp_lane.median / tcp_copy.median),
            shared_memory_share: rounded(shared_memory_lane.median / memory_copy.median),
        }
    }

    fn print(&self, json: bool) -> Result<()> {
        if json {
            println!("{}", serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        let (mb, cell_kb) = (self.bytes / 1_000_000, self.cell_bytes / 1000);
        println!(
            "{mb} MB in cells of {cell_kb} kB, {} times each; GB/s: median (min to max)",
            self.repeat
        );
        for (what, rate) in [
            ("TCP on this host, two threads", self.tcp_copy),
            ("cells over TCP", self.tcp_lane),
            ("memory to memory", self.memory_copy),
            ("cells through shared memory", self.shared_memory_lane),
        ] {
            println!("{what:30} {:6.2} ({:.2} to {:.2})", rate.median, rate.min, rate.max);
        }
        println!(
            "cells reach {:.0} % of TCP, and {:.0} % of a copy in memory",
            100.0 * self.tcp_share,
            100.0 * self.shared_memory_share
        );
        Ok(())
    }
}
