//! Ranks as processes: this test binary, started again for each rank.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, waitpid};

use super::group::*;
use crate::collective::{Collective, CollectiveError, Endpoint, Listening, Terms, Transport};

const SEAT_VARIABLE: &str = "KVASIR_COLLECTIVE_TEST_SEAT";
const RANK_TEST: &str = "collective::tests::processes::as_a_rank_of_another_process";
const NUM_ROUNDS: u64 = 2_000;

/// Does nothing unless started by the tests below, as one rank.
#[test]
fn as_a_rank_of_another_process() {
    let Ok(text) = std::env::var(SEAT_VARIABLE) else { return };
    let words: Vec<&str> = text.split(' ').collect();
    let [transport, rank, world_size] = words[..] else {
        panic!("{text}")
    };
    let transport = if transport == "tcp" {
        Transport::Tcp
    } else {
        Transport::SharedMemory
    };
    let seat = seat(rank.parse().unwrap(), world_size.parse().unwrap());

    let (listening, endpoint) = Listening::prepare(transport, seat).unwrap();
    tell(&format!("endpoint {endpoint}"));
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let endpoints: Vec<Endpoint> = line.split_whitespace().map(|word| Endpoint(word.to_owned())).collect();
    let mut collective = listening.connect(&endpoints, patient_terms()).unwrap();

    run_rounds(&mut *collective);
    tell("done");
    // Until the parent has ended us or wants one more round.
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    match check_all_reduce(&mut *collective, NUM_ROUNDS, 576) {
        Ok(()) => tell("done"),
        Err(error) => tell(&format!("failed: {error}")),
    }
}

fn run_rounds(collective: &mut dyn Collective) {
    for round in 0..NUM_ROUNDS {
        check_all_reduce(collective, round, if round % 100 == 0 { 100_000 } else { 576 }).unwrap();
    }
}

/// On a line of its own: the harness prints without line ends.
fn tell(text: &str) {
    println!("\n{text}");
    std::io::stdout().flush().unwrap();
}

struct RankProcess {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl RankProcess {
    fn start(transport: Transport, rank: usize, world_size: usize) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", RANK_TEST, "--nocapture", "--test-threads=1"])
            .env(SEAT_VARIABLE, format!("{transport} {rank} {world_size}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdin, stdout }
    }

    fn send(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
    }

    /// Returns once all its threads stand still.
    fn stop(&self) {
        self.signal(Signal::STOP);
        let process = Pid::from_child(&self.child);
        let (_, status) = waitpid(Some(process), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped());
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The rest of the line that begins with `word`.
    fn wait_for(&mut self, word: &str) -> String {
        let lines = self.stdout.by_ref().lines();
        for line in lines {
            if let Some(rest) = line.unwrap().strip_prefix(word) {
                return rest.trim().to_owned();
            }
        }
        panic!("the rank ended before it said {word}");
    }
}

impl Drop for RankProcess {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}

fn start_group(transport: Transport, world_size: usize) -> Vec<RankProcess> {
    let mut ranks: Vec<_> = (0..world_size)
        .map(|rank| RankProcess::start(transport, rank, world_size))
        .collect();
    let endpoints: Vec<String> = ranks.iter_mut().map(|rank| rank.wait_for("endpoint ")).collect();
    ranks.iter_mut().for_each(|rank| rank.send(&endpoints.join(" ")));
    ranks
}

#[test]
fn processes_agree_on_the_plain_definition() {
    for (transport, world_size) in [
        (Transport::SharedMemory, 2),
        (Transport::SharedMemory, 3),
        (Transport::Tcp, 2),
    ] {
        let mut ranks = start_group(transport, world_size);
        ranks.iter_mut().for_each(|rank| drop(rank.wait_for("done")));
        ranks.iter_mut().for_each(|rank| rank.send("again"));
        for rank in &mut ranks {
            rank.wait_for("done");
            assert!(rank.child.wait().unwrap().success());
        }
    }
}

/// This process as rank 0 and another as rank 1, after the rounds.
fn connect_to_process(transport: Transport, call_deadline: Duration) -> (Box<dyn Collective>, RankProcess) {
    let (listening, endpoint) = Listening::prepare(transport, seat(0, 2)).unwrap();
    let mut peer = RankProcess::start(transport, 1, 2);
    let endpoints = [endpoint, Endpoint(peer.wait_for("endpoint "))];
    peer.send(&format!("{} {}", endpoints[0], endpoints[1]));
    let mut collective = listening
        .connect(
            &endpoints,
            Terms {
                call_deadline,
                ..patient_terms()
            },
        )
        .unwrap();
    run_rounds(&mut *collective);
    peer.wait_for("done");
    (collective, peer)
}

#[test]
fn a_rank_that_wakes_up_in_an_old_epoch_disturbs_nobody() {
    let transport = Transport::SharedMemory;
    let (mut old, mut sleeper) = connect_to_process(transport, Duration::from_secs(1));
    sleeper.stop();
    sleeper.send("again");
    let outcome = old.all_reduce(&[1; 9], &mut [0.0; 9]);
    assert!(
        matches!(outcome, Err(CollectiveError::DeadlineExceeded { .. })),
        "{outcome:?}"
    );
    drop(old);
    run_group(transport, 2, &patient_terms(), |collective| {
        for round in 0..3_000 {
            if round == 100 && collective.rank() == 0 {
                sleeper.signal(Signal::CONT);
            }
            check_all_reduce(collective, round, 2_100).unwrap();
        }
    });
    sleeper.wait_for("failed: ");
}

/// Shared memory does not notice a killed peer: the deadline does, and names it.
#[test]
fn a_killed_process_is_missing_from_shared_memory_and_gone_from_tcp() {
    for transport in TRANSPORTS {
        let (listening, endpoint) = Listening::prepare(transport, seat(0, 2)).unwrap();
        let mut peer = RankProcess::start(transport, 1, 2);
        let endpoints = [endpoint, Endpoint(peer.wait_for("endpoint "))];
        peer.send(&format!("{} {}", endpoints[0], endpoints[1]));
        let call_deadline = std::time::Duration::from_secs(2);
        let mut collective = listening
            .connect(
                &endpoints,
                Terms {
                    call_deadline,
                    ..patient_terms()
                },
            )
            .unwrap();
        for round in 0..NUM_ROUNDS {
            check_all_reduce(&mut *collective, round, if round % 100 == 0 { 100_000 } else { 576 }).unwrap();
        }
        peer.wait_for("done");
        peer.child.kill().unwrap();
        peer.child.wait().unwrap();
        let outcome = collective.all_reduce(&[1; 9], &mut [0.0; 9]);
        match (transport, &outcome) {
            (Transport::Tcp, Err(CollectiveError::PeerGone { rank: 1 })) => {}
            (Transport::SharedMemory, Err(CollectiveError::DeadlineExceeded { missing, .. })) if *missing == [1] => {}
            _ => panic!("{transport} {outcome:?}"),
        }
    }
}
