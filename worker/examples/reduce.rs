//! Measures `all_reduce` between processes: `cargo run -p kvasir-worker --example reduce [-- LEN ...]`.
//!
//! For each transport and world size it starts that many rank processes, carries their endpoints between them as a
//! coordinator would, and prints the microseconds per call that rank 0 saw: the median and the extremes of a few
//! repetitions. Ranks enter together and have nothing else to do, so this is the cost of the call alone.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use kvasir_worker::collective::{Abort, Collective, Endpoint, EpochNonce, Listening, Seat, Terms, Transport};

/// The hidden size of the default model: what one decoded token reduces.
const LEN_DEFAULT: usize = 576;

const NUM_REPETITIONS: usize = 9;

/// How long one repetition takes, roughly.
const REPETITION_TIME: Duration = Duration::from_millis(100);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["rank", transport, rank, world_size, len] => be_rank(
            parse_transport(transport),
            rank.parse()?,
            world_size.parse()?,
            len.parse()?,
        ),
        [] => measure_all(&[LEN_DEFAULT]),
        ref lens => measure_all(&lens.iter().map(|len| len.parse()).collect::<Result<Vec<usize>, _>>()?),
    }
}

fn measure_all(lens: &[usize]) -> Result<(), Box<dyn std::error::Error>> {
    println!(
        "{} cores, load average {}",
        std::thread::available_parallelism()?,
        load_average()
    );
    println!(
        "{:14} {:>5} {:>9}   microseconds per call: median (range)",
        "transport", "ranks", "len"
    );
    for &len in lens {
        for transport in [Transport::SharedMemory, Transport::Tcp] {
            for world_size in [2, 3] {
                let result = measure(transport, world_size, len)?;
                println!(
                    "{transport:14} {world_size:>5} {len:>9}   {result}",
                    transport = transport.to_string()
                );
            }
        }
    }
    Ok(())
}

fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// Starts the ranks as processes and returns what rank 0 says.
fn measure(transport: Transport, world_size: usize, len: usize) -> Result<String, Box<dyn std::error::Error>> {
    let mut ranks = (0..world_size)
        .map(|rank| start_rank(transport, rank, world_size, len))
        .collect::<Result<Vec<Child>, _>>()?;
    let mut outputs: Vec<_> = ranks
        .iter_mut()
        .map(|rank| BufReader::new(rank.stdout.take().expect("piped")).lines())
        .collect();
    let mut next_line = |rank: usize| outputs[rank].next().ok_or("a rank ended early")?.map_err(Into::into);

    let endpoints = (0..world_size)
        .map(&mut next_line)
        .collect::<Result<Vec<String>, Box<dyn std::error::Error>>>()?;
    for rank in &mut ranks {
        writeln!(rank.stdin.take().expect("piped"), "{}", endpoints.join(" "))?;
    }
    let result = next_line(0)?;
    for mut rank in ranks {
        rank.wait()?;
    }
    Ok(result)
}

fn start_rank(transport: Transport, rank: usize, world_size: usize, len: usize) -> std::io::Result<Child> {
    let numbers = [rank, world_size, len].map(|number| number.to_string());
    Command::new(std::env::current_exe()?)
        .args(["rank", &transport.to_string()])
        .args(numbers)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
}

fn parse_transport(text: &str) -> Transport {
    if text == Transport::Tcp.to_string() {
        Transport::Tcp
    } else {
        Transport::SharedMemory
    }
}

fn be_rank(transport: Transport, rank: usize, world_size: usize, len: usize) -> Result<(), Box<dyn std::error::Error>> {
    let nonce = EpochNonce(0x6d65_6173_7572_6521);
    let seat = Seat {
        nonce,
        rank,
        world_size,
        listen_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    let (listening, endpoint) = Listening::prepare(transport, seat)?;
    println!("{endpoint}");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let endpoints: Vec<Endpoint> = line.split_whitespace().map(|word| Endpoint(word.to_owned())).collect();
    let terms = Terms {
        connect_deadline: Duration::from_secs(10),
        call_deadline: Duration::from_secs(10),
        abort: Abort::new(),
        entered: Arc::new(AtomicU64::new(0)),
    };
    let mut collective = listening.connect(&endpoints, terms)?;

    let num_calls = agree_on_calls(&mut *collective, len)?;
    let mut micros = (0..NUM_REPETITIONS)
        .map(|_| Ok(time_calls(&mut *collective, len, num_calls)?.as_secs_f64() * 1e6 / num_calls as f64))
        .collect::<Result<Vec<f64>, Box<dyn std::error::Error>>>()?;
    micros.sort_by(f64::total_cmp);
    if rank == 0 {
        println!(
            "{:.2} ({:.2}-{:.2})",
            micros[NUM_REPETITIONS / 2],
            micros[0],
            micros[NUM_REPETITIONS - 1]
        );
    }
    Ok(())
}

/// As many calls as rank 0 thinks fill a repetition.
fn agree_on_calls(collective: &mut dyn Collective, len: usize) -> Result<u64, Box<dyn std::error::Error>> {
    let probe_calls = 20;
    let each = time_calls(collective, len, probe_calls)? / probe_calls as u32;
    let num_calls = (REPETITION_TIME.as_nanos() / each.as_nanos().max(1)).max(10) as u64;
    let mut gathered = Vec::new();
    collective.all_gather(&num_calls.to_le_bytes(), &mut gathered)?;
    Ok(u64::from_le_bytes(gathered[0][..].try_into()?))
}

fn time_calls(
    collective: &mut dyn Collective,
    len: usize,
    num_calls: u64,
) -> Result<Duration, Box<dyn std::error::Error>> {
    let sums: Vec<i64> = (0..len as i64).map(|value| value << 20).collect();
    let mut out = vec![0.0; len];
    let started = Instant::now();
    for _ in 0..num_calls {
        collective.all_reduce(&sums, &mut out)?;
    }
    Ok(started.elapsed())
}
