//! How long one small all-reduce takes: ranks as threads of this process, joined as the ranks of a group are.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use kvasir_worker::collective::{Abort, Collective, Endpoint, EpochNonce, Listening, Seat, Terms, Transport};
use serde::Serialize;

use super::{percentiles::nearest_rank, spread::thousandths};

/// Of each transport, in turns of so many, so that what else the machine does falls on both.
const CALLS: usize = 10_000;
const CALLS_A_TURN: usize = 1_000;
/// Before what is measured, in each turn.
const WARMUP: usize = 100;
const DEADLINE: Duration = Duration::from_secs(30);
const TRANSPORTS: [Transport; 2] = [Transport::SharedMemory, Transport::Tcp];

/// As the rank 0 saw it.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Latency {
    pub transport: &'static str,
    /// Added up in each call.
    pub sums: usize,
    pub calls: usize,
    pub median_us: f64,
    pub p99_us: f64,
}

/// Over shared memory and over TCP on this host; nothing for one rank, which has nobody to add to. Can be dropped: the
/// threads then end by themselves.
pub async fn measure(ranks: usize, sums: usize) -> Result<Vec<Latency>> {
    if ranks == 1 {
        return Ok(Vec::new());
    }
    let abort = Abort::new();
    let _end = AbortOnDrop(abort.clone());
    let measuring = tokio::task::spawn_blocking(move || measure_here(ranks, sums, &abort));
    measuring.await.context("the ranks of the all-reduce panicked")?
}

struct AbortOnDrop(Abort);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn measure_here(ranks: usize, sums: usize, abort: &Abort) -> Result<Vec<Latency>> {
    let [over_memory, over_tcp] = TRANSPORTS.map(|transport| group(transport, ranks));
    let members = over_memory?.into_iter().zip(over_tcp?);
    let took: Result<Vec<_>> = std::thread::scope(|scope| {
        let threads: Vec<_> = members
            .map(|(memory, tcp)| {
                // Whoever fails keeps nobody waiting.
                scope.spawn(move || take_part([memory, tcp], sums, abort).inspect_err(|_| abort.abort()))
            })
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined
            .map(|took| took.map_err(|_| anyhow!("a rank of the all-reduce panicked"))?)
            .collect()
    });
    let first = took?.into_iter().next().context("no ranks")?;
    let latencies = TRANSPORTS.into_iter().zip(first);
    Ok(latencies
        .map(|(transport, took)| latency(transport, sums, took))
        .collect())
}

/// A rank and where it finds all of them, to be connected on a thread of its own.
type Member = (Listening, Vec<Endpoint>);

/// In rank order.
fn group(transport: Transport, world_size: usize) -> Result<Vec<Member>> {
    let seat = |rank| Seat {
        nonce: EpochNonce(1),
        rank,
        world_size,
        listen_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    let prepared: Result<Vec<_>, _> = (0..world_size)
        .map(|rank| Listening::prepare(transport, seat(rank)))
        .collect();
    let (listening, endpoints): (Vec<_>, Vec<_>) = prepared?.into_iter().unzip();
    let member = |listening| (listening, endpoints.clone());
    Ok(listening.into_iter().map(member).collect())
}

/// Connects both and calls them by turns; returns how long each call of each took.
fn take_part(members: [Member; 2], sums: usize, abort: &Abort) -> Result<[Vec<Duration>; 2]> {
    let connect = |(listening, endpoints): Member| listening.connect(&endpoints, terms(abort));
    let [memory, tcp] = members.map(connect);
    let mut collectives = [memory?, tcp?];
    let mut took = [Vec::with_capacity(CALLS), Vec::with_capacity(CALLS)];
    for _ in 0..CALLS / CALLS_A_TURN {
        for (collective, took) in collectives.iter_mut().zip(&mut took) {
            turn(collective.as_mut(), sums, took)?;
        }
    }
    Ok(took)
}

fn turn(collective: &mut dyn Collective, len: usize, took: &mut Vec<Duration>) -> Result<()> {
    let (sums, mut out) = (vec![1 << 30; len], vec![0.0; len]);
    for call in 0..WARMUP + CALLS_A_TURN {
        let begun = Instant::now();
        collective.all_reduce(&sums, &mut out)?;
        if call >= WARMUP {
            took.push(begun.elapsed());
        }
    }
    Ok(())
}

fn terms(abort: &Abort) -> Terms {
    Terms {
        connect_deadline: DEADLINE,
        call_deadline: DEADLINE,
        abort: abort.clone(),
        entered: Arc::default(),
    }
}

fn latency(transport: Transport, sums: usize, mut took: Vec<Duration>) -> Latency {
    took.sort_unstable();
    let us = |percent| thousandths(nearest_rank(&took, percent).as_secs_f64() * 1e6);
    Latency {
        transport: transport.name(),
        sums,
        calls: took.len(),
        median_us: us(50),
        p99_us: us(99),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_transports_are_called_as_often() {
        let latencies = measure(2, 17).await.unwrap();
        let counts: Vec<_> = latencies
            .iter()
            .map(|latency| (latency.transport, latency.sums, latency.calls))
            .collect();
        assert_eq!(counts, [("shm", 17, CALLS), ("tcp", 17, CALLS)]);
        assert!(latencies.iter().all(|latency| latency.median_us <= latency.p99_us));
    }

    #[tokio::test]
    async fn one_rank_adds_to_nobody() {
        assert_eq!(measure(1, 17).await.unwrap(), []);
    }
}
