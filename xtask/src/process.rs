//! Child processes: run one to its end, or until a deadline and then end it with everything it started.
//!
//! Children stay in our process group, so that Ctrl-C reaches them as it reaches us. A process group would not do for
//! ending them either: nextest gives each test its own. Instead we adopt orphans, and what descends from us is ours.

use std::fs;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, getpid, kill_process, set_child_subreaper};

use crate::captured::Captured;

const POLL: Duration = Duration::from_millis(50);
/// nextest hands SIGTERM on to its tests, gives them ten seconds, and then names those that were running.
const GRACE: Duration = Duration::from_secs(12);
/// A process that got SIGKILL may need a moment to go, but not longer.
const KILL_ROUNDS_MAX: u32 = 100;

#[derive(Debug)]
pub enum Ended {
    Exited(ExitStatus),
    TimedOut,
}

/// Runs a command to its end. Errors if it cannot be started or does not succeed.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", line(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", line(command));
    }
    Ok(())
}

/// Like `run`, but ends the command and everything it started after `limit`, which is an error.
pub fn run_within(command: &mut Command, limit: Duration) -> Result<()> {
    match run_until(command, Instant::now() + limit)? {
        Ended::Exited(status) if status.success() => Ok(()),
        Ended::Exited(status) => bail!("{} ended with {status}", line(command)),
        Ended::TimedOut => bail!("{} took longer than {} s", line(command), limit.as_secs()),
    }
}

/// Like `run_within`, and returns what the command wrote to standard output. An error tells the last line of the other one.
pub fn output_within(command: &mut Command, limit: Duration) -> Result<String> {
    let (out, errors) = (Captured::new()?, Captured::new()?);
    command
        .stdin(Stdio::null())
        .stdout(out.stdio()?)
        .stderr(errors.stdio()?);
    run_within(command, limit).with_context(|| errors.last_line())?;
    out.text()
}

/// Waits for a command until `deadline`; past it, ends the command and every process that came from us.
pub fn run_until(command: &mut Command, deadline: Instant) -> Result<Ended> {
    adopt_orphans()?;
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {}", line(command)))?;
    if let Some(status) = wait_until(&mut child, deadline)? {
        return Ok(Ended::Exited(status));
    }
    signal(child.id(), Signal::TERM);
    wait_until(&mut child, Instant::now() + GRACE)?;
    kill_descendants();
    child.wait()?;
    Ok(Ended::TimedOut)
}

/// The living processes that came from us after waiting at most `patience` for them to go, as `(pid, command line)`.
pub fn left_behind(patience: Duration) -> Vec<(u32, String)> {
    let deadline = Instant::now() + patience;
    while !descendants().is_empty() && Instant::now() < deadline {
        sleep(POLL);
    }
    let command_line = |pid| {
        fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .unwrap_or_default()
            .replace('\0', " ")
    };
    descendants().into_iter().map(|pid| (pid, command_line(pid))).collect()
}

/// Kills whatever came from us and still lives.
pub fn kill_descendants() {
    for _ in 0..KILL_ROUNDS_MAX {
        let living = descendants();
        if living.is_empty() {
            return;
        }
        living.into_iter().for_each(|pid| signal(pid, Signal::KILL));
        sleep(POLL);
    }
}

/// What one would type to run it again.
pub fn line(command: &Command) -> String {
    let program = command.get_program().to_string_lossy();
    let name = program.rsplit('/').next().unwrap_or(&program).to_owned();
    let arguments = command
        .get_args()
        .map(|argument| argument.to_string_lossy().into_owned());
    std::iter::once(name).chain(arguments).collect::<Vec<_>>().join(" ")
}

fn adopt_orphans() -> Result<()> {
    set_child_subreaper(Some(getpid())).context("cannot adopt orphaned processes")
}

/// `None` if the child still runs at the deadline.
pub fn wait_until(child: &mut Child, deadline: Instant) -> Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        sleep(POLL);
    }
}

pub fn signal(pid: u32, signal: Signal) {
    // Failure means that it is gone already.
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let _ = pid.map(|pid| kill_process(pid, signal));
}

/// Every living process whose chain of parents leads to us. Zombies do not count: they only wait to be read.
fn descendants() -> Vec<u32> {
    let parents = living_with_parents();
    let mut found = vec![std::process::id()];
    let mut next = 0;
    while next < found.len() {
        let ancestor = found[next];
        found.extend(
            parents
                .iter()
                .filter(|(_, parent)| *parent == ancestor)
                .map(|(pid, _)| *pid),
        );
        next += 1;
    }
    found.split_off(1)
}

fn living_with_parents() -> Vec<(u32, u32)> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        Some((
            pid,
            living_parent(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?,
        ))
    })
    .collect()
}

/// The parent in a line of `/proc/PID/stat`; the command name before it may itself hold spaces and parentheses.
fn living_parent(stat: &str) -> Option<u32> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (state != "Z" && state != "X").then_some(parent)
}

#[cfg(test)]
pub mod tests {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::*;

    /// Under plain `cargo test` the tests share a process, and one would kill its neighbour's child.
    pub fn alone() -> MutexGuard<'static, ()> {
        static ALONE: Mutex<()> = Mutex::new(());
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_parent_is_found_behind_any_command_name() {
        assert_eq!(living_parent("12 (a) b (c)) S 34 5 6"), Some(34));
        assert_eq!(living_parent("12 (sh) Z 34 5 6"), None);
        assert_eq!(living_parent("nonsense"), None);
    }

    #[test]
    fn a_status_comes_back_before_the_deadline() {
        let _alone = alone();
        let ended = run_until(&mut shell("exit 7"), Instant::now() + Duration::from_secs(60)).unwrap();
        assert!(
            matches!(ended, Ended::Exited(status) if status.code() == Some(7)),
            "{ended:?}"
        );
    }

    #[test]
    fn what_it_wrote_comes_back_and_its_last_words_with_an_error() {
        let _alone = alone();
        let limit = Duration::from_secs(60);
        assert_eq!(output_within(&mut shell("echo all well"), limit).unwrap(), "all well\n");
        let failed = output_within(&mut shell("echo no such file >&2; exit 3"), limit);
        let message = format!("{:#}", failed.unwrap_err());
        assert!(
            message.contains("no such file") && message.contains("exit status: 3"),
            "{message}"
        );
    }

    #[test]
    fn a_deadline_ends_the_child_and_its_detached_grandchild() {
        let _alone = alone();
        // The grandchild leaves its parent, its session and its group: only descent still ties it to us.
        let script = "setsid sh -c 'sleep 98765' & sleep 98765";
        let before = Instant::now();
        let ended = run_until(&mut shell(script), before + Duration::from_millis(300)).unwrap();
        assert!(matches!(ended, Ended::TimedOut), "{ended:?}");
        assert!(before.elapsed() < GRACE);
        assert_eq!(left_behind(Duration::ZERO), []);
    }

    #[test]
    fn what_a_child_leaves_behind_is_seen_and_can_be_ended() {
        let _alone = alone();
        adopt_orphans().unwrap();
        run(&mut shell("setsid sleep 98764 >/dev/null 2>&1 & exit 0")).unwrap();
        let left = left_behind(Duration::from_millis(200));
        assert!(left.iter().any(|(_, command)| command.contains("98764")), "{left:?}");
        kill_descendants();
        assert_eq!(left_behind(Duration::ZERO), []);
    }
}
