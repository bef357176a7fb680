//! Who is measured: Kvasir and the peer, each as it can use the cores.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// A local cluster.
    Kvasir { workers: usize, threads: usize },
    /// llama.cpp in one process.
    Peer { threads: usize },
    /// llama.cpp over RPC, with so many servers of one thread.
    PeerRpc { servers: usize },
}

/// Everyone who is measured on so many cores, in the order of the table.
pub fn all(cores: usize, rpc: bool) -> Vec<Side> {
    let mut sides = kvasir(cores);
    sides.extend(peers(cores));
    if rpc {
        sides.push(Side::PeerRpc { servers: cores });
    }
    sides
}

/// Kvasir and its peers by turns, so that what else the machine does falls on both.
pub fn by_turns(sides: &[Side]) -> Vec<Side> {
    let (ours, theirs): (Vec<Side>, Vec<Side>) = sides.iter().partition(|side| side.is_kvasir());
    let mut turns = Vec::new();
    for turn in 0..ours.len().max(theirs.len()) {
        turns.extend(ours.get(turn));
        turns.extend(theirs.get(turn));
    }
    turns
}

impl Side {
    pub fn is_kvasir(self) -> bool {
        matches!(self, Self::Kvasir { .. })
    }

    /// Whether Kvasir is compared with it, if it is the best.
    pub fn is_peer(self) -> bool {
        matches!(self, Self::Peer { .. })
    }
}

/// Many ranks, and many threads: two ways to use the same cores.
fn kvasir(cores: usize) -> Vec<Side> {
    let layout = |workers, threads| Side::Kvasir { workers, threads };
    match cores {
        1 => vec![layout(1, 1)],
        _ => vec![layout(cores, 1), layout(1, cores)],
    }
}

/// Powers of two, and all: a small model may be fastest on few threads.
fn peers(cores: usize) -> Vec<Side> {
    let powers = (0..usize::BITS).map(|power| 1 << power);
    let mut threads: Vec<usize> = powers.take_while(|&threads| threads < cores).collect();
    threads.push(cores);
    threads.into_iter().map(|threads| Side::Peer { threads }).collect()
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kvasir { workers, threads } => write!(f, "Kvasir {workers}x{threads}"),
            Self::Peer { threads: 1 } => write!(f, "llama.cpp 1 thread"),
            Self::Peer { threads } => write!(f, "llama.cpp {threads} threads"),
            Self::PeerRpc { servers } => write!(f, "llama.cpp RPC {servers}x1"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(sides: &[Side]) -> Vec<String> {
        sides.iter().map(Side::to_string).collect()
    }

    #[test]
    fn two_cores_have_two_ways_on_both_sides() {
        let sides = all(2, true);
        let expected = [
            "Kvasir 2x1",
            "Kvasir 1x2",
            "llama.cpp 1 thread",
            "llama.cpp 2 threads",
            "llama.cpp RPC 2x1",
        ];
        assert_eq!(names(&sides), expected);
        let turns = [
            "Kvasir 2x1",
            "llama.cpp 1 thread",
            "Kvasir 1x2",
            "llama.cpp 2 threads",
            "llama.cpp RPC 2x1",
        ];
        assert_eq!(names(&by_turns(&sides)), turns);
    }

    #[test]
    fn threads_of_the_peer_are_powers_of_two_and_all_cores() {
        assert_eq!(names(&all(1, false)), ["Kvasir 1x1", "llama.cpp 1 thread"]);
        let threads: Vec<_> = peers(6);
        assert_eq!(threads, [1, 2, 4, 6].map(|threads| Side::Peer { threads }));
        let threads: Vec<_> = peers(8);
        assert_eq!(threads, [1, 2, 4, 8].map(|threads| Side::Peer { threads }));
    }
}
