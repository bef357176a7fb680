//! A real etcd of one member for one test, on ports that the system picks, with its data in a folder of its own.

use std::{
    fs::File,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use kvasir_runtime::{
    registry::{EtcdConfig, Registry, RegistryConfig},
    tls::KeyPairFiles,
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::certs::Certs;

const START_DEADLINE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);
/// Somebody else may take a port between our look and etcd's.
const ATTEMPTS: u32 = 5;

#[derive(Debug)]
pub struct EtcdServer {
    child: Option<Child>,
    folder: TempDir,
    /// For clients, for other members, and for whoever asks how it is.
    ports: [u16; 3],
    data: u32,
    /// Clients need certificates.
    certs: Option<Certificates>,
}

#[derive(Clone, Debug)]
struct Certificates {
    authority: PathBuf,
    pair: KeyPairFiles,
}

impl EtcdServer {
    /// Waits until it answers. Panics if it does not.
    pub fn start() -> Self {
        let mut server = Self::absent();
        for _ in 0..ATTEMPTS {
            if server.try_start() {
                return server;
            }
            server.ports = free_ports();
        }
        panic!("no etcd: {}", server.log());
    }

    /// As `start`, for those who show a certificate of this authority; it shows the coordinator's.
    pub fn start_encrypted(certs: &Certs) -> Self {
        let mut server = Self::absent();
        server.certs = Some(Certificates {
            authority: certs.path("ca.pem"),
            pair: certs.pair("coordinator"),
        });
        assert!(server.try_start(), "no etcd: {}", server.log());
        server
    }

    /// Has an address, and does not run yet.
    pub fn absent() -> Self {
        Self {
            child: None,
            folder: tempfile::tempdir().expect("a temporary folder"),
            ports: free_ports(),
            data: 0,
            certs: None,
        }
    }

    /// Again at the same address, with what it knew. Panics if it does not answer.
    pub fn restart(&mut self) {
        self.kill();
        assert!(self.try_start(), "no etcd: {}", self.log());
    }

    /// Again at the same address, knowing nothing.
    pub fn restart_empty(&mut self) {
        self.data += 1;
        self.restart();
    }

    pub fn url(&self) -> String {
        let scheme = if self.certs.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.ports[0])
    }

    pub fn config(&self) -> EtcdConfig {
        EtcdConfig::parse(&self.url(), "kvasir", None).expect("a plain address")
    }

    pub fn registry(&self) -> Registry {
        Registry::open(&RegistryConfig::Etcd(self.config())).expect("nothing to read")
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// It keeps its connections and says nothing, until `wake`.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    pub fn wake(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        let pid = Pid::from_child(child);
        kill_process(pid, signal).expect("a child of ours");
    }

    fn try_start(&mut self) -> bool {
        let log = File::create(self.log_path()).expect("a folder of our own");
        let metrics = format!("http://127.0.0.1:{}", self.ports[2]);
        let peer = format!("http://127.0.0.1:{}", self.ports[1]);
        let mut command = Command::new(binary());
        if let Some(certs) = &self.certs {
            command.arg("--client-cert-auth");
            command.arg("--trusted-ca-file").arg(&certs.authority);
            command.arg("--cert-file").arg(&certs.pair.certificate);
            command.arg("--key-file").arg(&certs.pair.key);
        }
        let child = command
            .args(["--name", "one", "--logger", "zap", "--log-level", "warn"])
            .arg("--data-dir")
            .arg(self.folder.path().join(self.data.to_string()))
            .args([
                "--listen-client-urls",
                &self.url(),
                "--advertise-client-urls",
                &self.url(),
            ])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("one={peer}")])
            .args(["--listen-metrics-urls", &metrics])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap_or_else(|error| panic!("cannot start {}: {error}", binary().display())));
        let deadline = Instant::now() + START_DEADLINE;
        while Instant::now() < deadline {
            let child = self.child.as_mut().expect("started above");
            if !matches!(child.try_wait(), Ok(None)) {
                return false;
            }
            let health = ureq::get(format!("{metrics}/health")).call();
            if health.is_ok() {
                return true;
            }
            std::thread::sleep(POLL);
        }
        false
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("etcd.log")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `KVASIR_ETCD_BIN`, or what PATH has; `cargo xtask test` installs one where there is none.
fn binary() -> PathBuf {
    std::env::var_os("KVASIR_ETCD_BIN").map_or_else(|| "etcd".into(), PathBuf::from)
}

/// Of this moment.
fn free_ports() -> [u16; 3] {
    let listeners = [(), (), ()].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("it is bound").port())
}
