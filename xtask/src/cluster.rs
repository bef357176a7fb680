//! `kvasir up` as a child: a local cluster of real processes, which ends with this value.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::captured::Captured;
use crate::process;

/// Large models take their time to load.
const READY_LIMIT: Duration = Duration::from_secs(600);
const STOP_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// The command for a cluster on a free port of this machine, with a line of JSON when it serves.
pub fn up(binary: &Path, model: &Path, workers: usize, threads: usize) -> Command {
    let mut up = Command::new(binary);
    up.args(["up", "--workers", &workers.to_string()])
        .args(["--threads", &threads.to_string()])
        .args(["--grpc", "127.0.0.1:0", "--json", "--model"])
        .arg(model);
    up
}

#[derive(Debug)]
pub struct Cluster {
    child: Child,
    /// Where the coordinator listens.
    pub endpoint: String,
    pub workers: Vec<u32>,
}

impl Cluster {
    /// Starts the command and waits until it serves, or ends, or `READY_LIMIT` is over.
    pub fn start(up: &mut Command) -> Result<Self> {
        // Nothing that it says may fall into the middle of what the caller prints.
        let (out, errors) = (Captured::new()?, Captured::new()?);
        let child = up
            .stdin(Stdio::null())
            .stdout(out.stdio()?)
            .stderr(errors.stdio()?)
            .spawn()
            .with_context(|| format!("cannot start {}", up.get_program().display()))?;
        let mut cluster = Self {
            child,
            endpoint: String::new(),
            workers: Vec::new(),
        };
        let line = cluster.ready_line(&out, &errors)?;
        (cluster.endpoint, cluster.workers) = parse_ready(&line)?;
        Ok(cluster)
    }

    fn ready_line(&mut self, out: &Captured, errors: &Captured) -> Result<String> {
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            let ended = self.child.try_wait()?;
            if let Some((line, _)) = out.text()?.split_once('\n') {
                return Ok(line.to_owned());
            }
            if let Some(status) = ended {
                let why = errors.text()?;
                bail!("kvasir up ended with {status} before it was ready: {}", why.trim());
            }
            ensure!(
                Instant::now() < deadline,
                "kvasir up was not ready after {} s: {}",
                READY_LIMIT.as_secs(),
                errors.last_line()
            );
            sleep(POLL);
        }
    }

    /// Of all processes of the cluster.
    pub fn pids(&self) -> Vec<u32> {
        let mut pids = self.workers.clone();
        pids.push(self.child.id());
        pids
    }

    /// Errors if it does not end well, and in time; it ends all the same.
    pub fn stop(mut self) -> Result<()> {
        process::signal(self.child.id(), Signal::TERM);
        let status = process::wait_until(&mut self.child, Instant::now() + STOP_LIMIT)?;
        let status = status.with_context(|| format!("kvasir up did not end within {} s", STOP_LIMIT.as_secs()))?;
        ensure!(status.success(), "kvasir up ended with {status}");
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Its workers go with it. Both calls do nothing after `stop`.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The endpoint, and the workers' process ids.
fn parse_ready(line: &str) -> Result<(String, Vec<u32>)> {
    let parse = || {
        let ready: Value = serde_json::from_str(line).ok()?;
        let pid = |worker: &Value| u32::try_from(worker["pid"].as_u64()?).ok();
        let workers: Option<Vec<u32>> = ready["workers"].as_array()?.iter().map(pid).collect();
        Some((ready["grpc"].as_str()?.to_owned(), workers?))
    };
    parse().with_context(|| format!("kvasir up says it is ready in unknown words: {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ready_line_names_the_endpoint_and_the_workers() {
        let line = r#"{"grpc":"http://127.0.0.1:4711","pid":1,"workers":[{"id":"a","pid":22},{"id":"b","pid":33}]}"#;
        let (endpoint, workers) = parse_ready(line).unwrap();
        assert_eq!((endpoint.as_str(), workers), ("http://127.0.0.1:4711", vec![22, 33]));
        let message = parse_ready("ready: there").unwrap_err().to_string();
        assert!(message.contains("ready: there"), "{message}");
    }
}
