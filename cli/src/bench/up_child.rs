//! A whole cluster as a child: `kvasir up` of this very binary, on a port of the system's choice.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    task::JoinHandle,
};

/// Models are loaded by then.
const READY_MAX: Duration = Duration::from_secs(300);
/// A cluster that does not end by then is killed.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// To be stopped; killed when it is dropped, and its workers with it.
#[derive(Debug)]
pub struct UpChild {
    pub grpc: String,
    child: Child,
    /// Kept open: it may have more to say.
    _stdout: Lines<BufReader<ChildStdout>>,
    /// Reads what it has to say to people, so that it never waits for a reader.
    last_words: JoinHandle<String>,
}

#[derive(Deserialize)]
struct Ready {
    grpc: String,
}

impl UpChild {
    /// Returns when the cluster serves. Called on the main thread: the kernel ties the child's life to the thread that
    /// starts it.
    pub async fn start(flags: Vec<String>) -> Result<Self> {
        let mut child = command(flags)?.spawn().context("cannot start `kvasir up`")?;
        let stdout = child.stdout.take().context("`kvasir up` has no output")?;
        let stderr = child.stderr.take().context("`kvasir up` has no error output")?;
        let last_words = tokio::spawn(last_line(stderr));
        let mut stdout = BufReader::new(stdout).lines();
        let line = tokio::time::timeout(READY_MAX, stdout.next_line()).await;
        let line = line.with_context(|| format!("`kvasir up` does not serve after {} s", READY_MAX.as_secs()))??;
        let Some(line) = line else {
            bail!("`kvasir up` does not serve: {}", in_time(last_words).await??);
        };
        let ready: Ready = serde_json::from_str(&line).with_context(|| format!("`kvasir up` says {line}"))?;
        Ok(Self {
            grpc: ready.grpc,
            child,
            _stdout: stdout,
            last_words,
        })
    }

    pub async fn stop(mut self) -> Result<()> {
        if let Some(pid) = self.child.id().and_then(|pid| Pid::from_raw(pid as i32)) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::TERM);
        }
        match in_time(self.child.wait()).await?? {
            status if status.success() => Ok(()),
            status => bail!("`kvasir up` ended with {status}: {}", in_time(self.last_words).await??),
        }
    }
}

async fn in_time<T>(end: impl Future<Output = T>) -> Result<T> {
    let ended = tokio::time::timeout(STOP_GRACE, end).await;
    ended.context("`kvasir up` did not end in time, and is killed")
}

fn command(flags: Vec<String>) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("cannot find the kvasir binary")?);
    command
        .args(["up", "--json", "--grpc", "127.0.0.1:0"])
        .args(["--parent-pid", &std::process::id().to_string()])
        .args(flags)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    Ok(command)
}

/// Until nobody writes any more.
async fn last_line(stderr: impl AsyncRead + Unpin) -> String {
    let (mut lines, mut last) = (BufReader::new(stderr).lines(), String::new());
    while let Ok(Some(line)) = lines.next_line().await {
        last = line;
    }
    last
}
