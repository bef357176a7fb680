//! llama.cpp's RPC servers on this machine, one thread each. They end with this value.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::programs::Programs;
use crate::captured::Captured;
use crate::process;

const HOST: &str = "127.0.0.1";
const READY_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
pub struct RpcServers {
    servers: Vec<Server>,
}

#[derive(Debug)]
struct Server {
    child: Child,
    port: u16,
    errors: Captured,
    line: String,
}

impl RpcServers {
    /// Waits until all of them listen.
    pub fn start(programs: &Programs, count: usize) -> Result<Self> {
        let mut started = Self::default();
        for _ in 0..count {
            started.servers.push(Server::start(programs)?);
            // One after the other: each has taken its port when the next one looks for a free one.
            started.servers.iter_mut().try_for_each(Server::wait)?;
        }
        Ok(started)
    }

    /// As the client wants them.
    pub fn addresses(&self) -> String {
        let addresses = self.servers.iter().map(|server| format!("{HOST}:{}", server.port));
        addresses.collect::<Vec<_>>().join(",")
    }

    /// What was typed to start them.
    pub fn line(&self) -> String {
        let lines = self.servers.iter().map(|server| server.line.as_str());
        lines.collect::<Vec<_>>().join(" & ")
    }
}

impl Server {
    fn start(programs: &Programs) -> Result<Self> {
        let port = free_port()?;
        let (out, errors) = (Captured::new()?, Captured::new()?);
        let mut command = programs.rpc_server();
        command
            .args(["-t", "1", "-H", HOST, "-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(out.stdio()?)
            .stderr(errors.stdio()?);
        let line = process::line(&command);
        let child = command.spawn().with_context(|| format!("cannot start {line}"))?;
        Ok(Self {
            child,
            port,
            errors,
            line,
        })
    }

    fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_LIMIT;
        while TcpStream::connect((HOST, self.port)).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}: {}", self.line, self.errors.last_line());
            }
            ensure!(Instant::now() < deadline, "{} does not listen", self.line);
            sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It holds nothing that would have to be saved.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Free now: the server takes no port 0.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((HOST, 0))?.local_addr()?.port())
}
