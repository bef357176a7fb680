//! What a newcomer sees first: a local cluster of real processes that answers, loses a worker in mid-sentence, and
//! gives the same answer again.
//!
//! Everything goes through the binary's own doors, so that what is shown is what anyone can type.

use std::{
    io::{IsTerminal, Read, Write, stdout},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, test_kill_process};

use crate::cluster::{self, Cluster};
use crate::process;

const QUESTION: &str = "What is photosynthesis?";
/// Sampled, not greedy: the same random numbers must come, too.
const SAMPLING: [&str; 8] = [
    "--temperature",
    "0.7",
    "--seed",
    "3",
    "--logprobs",
    "2",
    "--max-tokens",
    "200",
];
/// Bytes of the second answer after which a worker dies.
const KILL_AFTER_BYTES: usize = 120;
const GONE_DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// Shows a cluster of `binary`'s processes serving `model`. Errors if the two answers differ or a process is left.
pub fn run(model: &Path, binary: &Path) -> Result<()> {
    let demo = Demo { model, binary };
    heading("The plan: three KV heads on two workers");
    demo.plan()?;
    heading("A cluster: one coordinator, two worker processes");
    let cluster = demo.start()?;
    let pids = cluster.pids();
    let workers: Vec<_> = cluster.workers.iter().map(u32::to_string).collect();
    println!(
        "{} serves, workers are processes {}",
        cluster.endpoint,
        workers.join(" and ")
    );
    heading(&format!("{QUESTION} (temperature 0.7, seed 3)"));
    let first = demo.ask(&cluster, |_| {})?;
    println!("{}", first.pace());
    heading("The same again, but a worker is killed in mid-sentence");
    let mut victim = cluster.workers.first().copied();
    let second = demo.ask(&cluster, |bytes| {
        if bytes >= KILL_AFTER_BYTES
            && let Some(pid) = victim.take()
        {
            process::signal(pid, Signal::KILL);
            print!("{}", bold(&format!(" [kill -9 {pid}] ")));
        }
    })?;
    println!("{}", second.pace());
    cluster.stop()?;
    require_gone(&pids)?;
    ensure!(victim.is_none(), "the answer ended before a worker could be killed");
    ensure!(first.bits == second.bits, "the two answers differ");
    heading("Same tokens, same logprobs, bit for bit. No process is left.");
    Ok(())
}

struct Demo<'a> {
    model: &'a Path,
    binary: &'a Path,
}

impl Demo<'_> {
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.binary);
        command.arg(name);
        command
    }

    fn plan(&self) -> Result<()> {
        let status = self
            .command("plan")
            .args(["--workers", "2", "--model"])
            .arg(self.model)
            .status()?;
        ensure!(status.success(), "kvasir plan ended with {status}");
        Ok(())
    }

    fn start(&self) -> Result<Cluster> {
        let cluster = Cluster::start(&mut cluster::up(self.binary, self.model, 2, 1))?;
        ensure!(
            cluster.workers.len() == 2,
            "two workers expected: {:?}",
            cluster.workers
        );
        Ok(cluster)
    }

    /// Asks the question, shows the answer as it comes, and calls `shown` with the number of bytes so far.
    fn ask(&self, cluster: &Cluster, mut shown: impl FnMut(usize)) -> Result<Answer> {
        let mut child = self
            .command("chat")
            .args(["--endpoint", &cluster.endpoint, "--json", "--echo", QUESTION])
            .args(SAMPLING)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut echo = child.stderr.take().context("no standard error")?;
        let (mut buffer, mut bytes) = ([0; 256], 0);
        loop {
            let count = echo.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            bytes += count;
            let mut out = stdout().lock();
            out.write_all(&buffer[..count])?;
            out.flush()?;
            drop(out);
            shown(bytes);
        }
        println!();
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "kvasir chat ended with {}", output.status);
        Answer::parse(&String::from_utf8(output.stdout)?)
    }
}

/// What the demo compares and shows of an answer.
struct Answer {
    /// Token ids and logprobs as they were printed: every digit counts.
    bits: String,
    tokens_per_s: f64,
    longest_pause_ms: u64,
}

impl Answer {
    fn parse(json: &str) -> Result<Self> {
        Ok(Self {
            bits: between(json, "\"token_ids\":", "\"finish_reason\":")?.to_owned(),
            tokens_per_s: between(json, "\"tokens_per_s\":", ",")?.parse()?,
            longest_pause_ms: between(json, "\"longest_pause_ms\":", "}")?.parse()?,
        })
    }

    fn pace(&self) -> String {
        let tokens = self.bits.matches("\"top\":").count();
        let (speed, pause) = (self.tokens_per_s, self.longest_pause_ms);
        dimmed(&format!(
            "[{tokens} tokens, {speed:.0} tokens/s, longest pause {pause} ms]"
        ))
    }
}

fn require_gone(pids: &[u32]) -> Result<()> {
    let deadline = Instant::now() + GONE_DEADLINE;
    for &pid in pids {
        while is_running(pid) {
            ensure!(Instant::now() < deadline, "process {pid} is left");
            std::thread::sleep(POLL);
        }
    }
    Ok(())
}

fn is_running(pid: u32) -> bool {
    Pid::from_raw(pid as i32).is_some_and(|pid| test_kill_process(pid).is_ok())
}

fn between<'a>(text: &'a str, begin: &str, end: &str) -> Result<&'a str> {
    let (_, rest) = text
        .split_once(begin)
        .with_context(|| format!("no {begin} in {text}"))?;
    let (found, _) = rest.split_once(end).with_context(|| format!("no {end} in {text}"))?;
    Ok(found)
}

fn heading(text: &str) {
    println!("\n{}", bold(text));
}

fn bold(text: &str) -> String {
    painted("1", text)
}

fn dimmed(text: &str) -> String {
    painted("2", text)
}

/// Colours are for terminals.
fn painted(code: &str, text: &str) -> String {
    match stdout().is_terminal() {
        true => format!("\x1b[{code}m{text}\x1b[0m"),
        false => text.to_owned(),
    }
}
