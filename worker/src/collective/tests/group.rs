//! Groups of threads, and the plain definition that they are held to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::certificates::Certificates;
use crate::collective::{Abort, Collective, CollectiveError, Endpoint, EpochNonce, Listening, Seat, Terms, Transport};

pub const NONCE: EpochNonce = EpochNonce(0x0123_4567_89ab_cdef);

/// Both transports that connect anybody.
pub const TRANSPORTS: [Transport; 2] = [Transport::SharedMemory, Transport::Tcp];

/// All ways to connect anybody.
pub const LINES: [Line; 3] = [Line::SharedMemory, Line::Tcp, Line::Tls];

/// A transport, and whether it is encrypted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Line {
    SharedMemory,
    Tcp,
    Tls,
}

impl Line {
    fn transport(self) -> Transport {
        match self {
            Self::SharedMemory => Transport::SharedMemory,
            Self::Tcp | Self::Tls => Transport::Tcp,
        }
    }
}

impl From<Transport> for Line {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp,
            _ => Self::SharedMemory,
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self:?}")
    }
}

pub fn seat(rank: usize, world_size: usize) -> Seat {
    Seat {
        nonce: NONCE,
        rank,
        world_size,
        listen_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
    }
}

/// Deadlines that no working test meets.
pub fn patient_terms() -> Terms {
    Terms {
        connect_deadline: Duration::from_secs(30),
        call_deadline: Duration::from_secs(30),
        abort: Abort::new(),
        entered: Arc::new(AtomicU64::new(0)),
    }
}

/// Listening ranks and their endpoints, in rank order.
pub fn prepare(line: impl Into<Line>, world_size: usize) -> (Vec<Listening>, Vec<Endpoint>) {
    let line = line.into();
    let certificates = (line == Line::Tls).then(Certificates::new);
    let prepare = |rank| {
        let (listening, endpoint) = Listening::prepare(line.transport(), seat(rank, world_size)).unwrap();
        match &certificates {
            Some(certificates) => (listening.behind(certificates.worker(&format!("w{rank}"))), endpoint),
            None => (listening, endpoint),
        }
    };
    (0..world_size).map(prepare).unzip()
}

/// Runs `body` as every rank of a connected group, each on a thread, and returns what they return in rank order.
pub fn run_group<T: Send>(
    line: impl Into<Line>,
    world_size: usize,
    terms: &Terms,
    body: impl Fn(&mut dyn Collective) -> T + Sync,
) -> Vec<T> {
    let (listening, endpoints) = prepare(line, world_size);
    run_ranks(listening, &endpoints, terms, body)
}

/// The same for ranks that listen already.
pub fn run_ranks<T: Send>(
    listening: Vec<Listening>,
    endpoints: &[Endpoint],
    terms: &Terms,
    body: impl Fn(&mut dyn Collective) -> T + Sync,
) -> Vec<T> {
    std::thread::scope(|scope| {
        let ranks: Vec<_> = listening
            .into_iter()
            .map(|listening| {
                let body = &body;
                scope.spawn(move || {
                    let mut collective = listening.connect(endpoints, terms.clone()).unwrap();
                    body(&mut *collective)
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// What `rank` brings to round `round`: numbers of every magnitude, sums that wrap included.
pub fn sums_of(rank: usize, round: u64, len: usize) -> Vec<i64> {
    let mut random = Random::new((rank as u64) << 32 ^ round);
    (0..len)
        .map(|_| (random.next() as i64) >> (random.next() % 64))
        .collect()
}

/// The plain definition.
pub fn expected_bits(world_size: usize, round: u64, len: usize) -> Vec<u32> {
    let mut sums = vec![0_i64; len];
    for rank in 0..world_size {
        for (sum, value) in sums.iter_mut().zip(sums_of(rank, round, len)) {
            *sum = sum.wrapping_add(value);
        }
    }
    sums.into_iter()
        .map(|sum| ((sum as f64 * 2f64.powi(-30)) as f32).to_bits())
        .collect()
}

pub fn bits(floats: &[f32]) -> Vec<u32> {
    floats.iter().map(|float| float.to_bits()).collect()
}

/// What `rank` brings to a gather.
pub fn bytes_of(rank: usize, len: usize) -> Vec<u8> {
    let mut random = Random::new(rank as u64 + 77);
    (0..len).map(|_| random.next() as u8).collect()
}

/// One all-reduce, held to the plain definition.
pub fn check_all_reduce(collective: &mut dyn Collective, round: u64, len: usize) -> Result<(), CollectiveError> {
    let mut out = vec![f32::NAN; len];
    collective.all_reduce(&sums_of(collective.rank(), round, len), &mut out)?;
    let world_size = collective.world_size();
    assert!(
        bits(&out) == expected_bits(world_size, round, len),
        "{} world {world_size} len {len} round {round}",
        collective.transport()
    );
    Ok(())
}

/// SplitMix64.
pub struct Random {
    state: u64,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
