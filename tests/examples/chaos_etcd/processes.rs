//! The processes of the chaos runner: each in a network of its own, known by its pid from its start to its end.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kvasir_runtime::registry::{EtcdConfig, Registry, RegistryConfig};
use kvasir_tests::{
    cluster_sandbox::{freeze, kvasir_binary, resume},
    lab_network::{LabNetwork, LabNode},
};
use serde_json::Value;
use tempfile::TempDir;

const WORKERS: u32 = 5;
const MEMBERS: usize = 3;
const COORDINATORS: usize = 2;
const START_DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// Of the first attempt. A member that has fallen behind takes a few seconds.
const ASK_DEADLINE: Duration = Duration::from_secs(2);

/// Ends with this value.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(command: &mut Command, log: PathBuf) -> Result<Self> {
        let file = File::options().create(true).append(true).open(&log)?;
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("KVASIR_")) {
            command.env_remove(name);
        }
        let child = command
            .env("KVASIR_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()?;
        Ok(Self { child, log })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn stop(&self) {
        freeze(self.pid());
    }

    pub fn go_on(&self) {
        resume(self.pid());
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Of etcd.
pub struct Member {
    pub process: Process,
    pub node: LabNode,
    name: String,
    initial: String,
    data: PathBuf,
}

pub struct Coordinator {
    pub process: Process,
    node: LabNode,
    pub name: String,
    pub url: String,
}

/// Dropped in this order: processes, networks, files.
pub struct Processes {
    pub workers: Vec<(Process, LabNode)>,
    pub coordinators: Vec<Coordinator>,
    pub members: Vec<Member>,
    model: PathBuf,
    _network: LabNetwork,
    folder: TempDir,
}

impl Processes {
    pub fn start(model: &Path) -> Result<Self> {
        let mut network = LabNetwork::new();
        let folder = tempfile::tempdir()?;
        let nodes: Vec<LabNode> = (0..MEMBERS).map(|_| network.add()).collect();
        let peer = |(index, node): (usize, &LabNode)| format!("e{index}=http://{}:2380", node.address);
        let initial = nodes.iter().enumerate().map(peer).collect::<Vec<_>>().join(",");
        let mut all = Self {
            workers: Vec::new(),
            coordinators: Vec::new(),
            members: Vec::new(),
            model: model.to_owned(),
            _network: network,
            folder,
        };
        for (index, node) in nodes.into_iter().enumerate() {
            let name = format!("e{index}");
            let data = all.folder.path().join(&name);
            let process = start_member(&node, &name, &initial, &data)?;
            all.members.push(Member {
                process,
                node,
                name,
                initial: initial.clone(),
                data,
            });
        }
        all.wait_for_etcd()?;
        for index in 0..COORDINATORS {
            let node = all._network.add();
            let (name, url) = (format!("c{index}"), format!("http://{}:50051", node.address));
            let process = all.start_coordinator(&node, &name)?;
            all.coordinators.push(Coordinator {
                process,
                node,
                name,
                url,
            });
        }
        for index in 0..WORKERS {
            let node = all._network.add();
            let (id, address) = (format!("w{index}"), node.address.to_string());
            let mut command = node.command(kvasir_binary());
            command
                .args(["worker", "--id", &id, "--advertise", &address, "--insecure"])
                .args(["--etcd", &all.etcd_urls(), "--kv-memory", "128MiB", "--model"])
                .arg(&all.model);
            let process = Process::start(&mut command, all.folder.path().join(format!("{id}.log")))?;
            all.workers.push((process, node));
        }
        Ok(all)
    }

    fn start_coordinator(&self, node: &LabNode, name: &str) -> Result<Process> {
        let grpc = format!("{}:50051", node.address);
        let mut command = node.command(kvasir_binary());
        command
            .args(["coordinator", "--name", name, "--grpc", &grpc, "--insecure"])
            .args(["--groups", "3,2", "--etcd", &self.etcd_urls(), "--model"])
            .arg(&self.model);
        Process::start(&mut command, self.folder.path().join(format!("{name}.log")))
    }

    /// In place of one that was killed.
    pub fn replace_coordinator(&mut self, index: usize) -> Result<()> {
        let process = self.start_coordinator(&self.coordinators[index].node, &self.coordinators[index].name)?;
        self.coordinators[index].process = process;
        Ok(())
    }

    pub fn etcd_urls(&self) -> String {
        let url = |member: &Member| member.url();
        self.members.iter().map(url).collect::<Vec<_>>().join(",")
    }

    /// One that asks the members in their order.
    pub fn registry(&self) -> Result<Registry> {
        let config = EtcdConfig::parse(&self.etcd_urls(), "kvasir", None)?;
        Ok(Registry::open(&RegistryConfig::Etcd(config))?)
    }

    /// Of all processes but those of etcd.
    pub fn pids(&self) -> Vec<u32> {
        let coordinators = self.coordinators.iter().map(|coordinator| coordinator.process.pid());
        coordinators
            .chain(self.workers.iter().map(|(process, _)| process.pid()))
            .collect()
    }

    /// All of them but those of etcd.
    pub fn ensure_running(&mut self) -> Result<()> {
        let coordinators = self.coordinators.iter_mut().map(|coordinator| &mut coordinator.process);
        for process in coordinators.chain(self.workers.iter_mut().map(|(process, _)| process)) {
            ensure!(process.is_running(), "a process has ended: {}", process.log());
        }
        Ok(())
    }

    pub fn wait_for_etcd(&self) -> Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        while self.etcd_leader().is_none() {
            ensure!(
                Instant::now() < deadline,
                "etcd does not come up: {}",
                self.members[0].process.log()
            );
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// The member that leads, as it says itself.
    pub fn etcd_leader(&self) -> Option<usize> {
        self.members.iter().position(|member| {
            let Ok(status) = member.status() else { return false };
            status["leader"].is_string() && status["leader"] == status["header"]["member_id"]
        })
    }

    /// What all members know, as it is now. They must have been killed.
    pub fn copy_data(&self, to: &str) -> Result<()> {
        for member in &self.members {
            copy(&member.data, &self.folder.path().join(to).join(&member.name))?;
        }
        Ok(())
    }

    /// What was copied before, or nothing. They must have been killed.
    pub fn restore_data(&self, from: Option<&str>) -> Result<()> {
        for member in &self.members {
            std::fs::remove_dir_all(&member.data)?;
            if let Some(from) = from {
                copy(&self.folder.path().join(from).join(&member.name), &member.data)?;
            }
        }
        Ok(())
    }

    pub fn logs(&self) -> String {
        let coordinators = self.coordinators.iter().map(|coordinator| &coordinator.process);
        let workers = self.workers.iter().map(|(process, _)| process);
        let log = |process: &Process| format!("--- {}:\n{}", process.log.display(), process.log());
        coordinators.chain(workers).map(log).collect::<Vec<_>>().join("\n")
    }
}

impl Member {
    fn url(&self) -> String {
        format!("http://{}:2379", self.node.address)
    }

    fn status(&self) -> Result<Value> {
        let config = ureq::Agent::config_builder().timeout_global(Some(ASK_DEADLINE)).build();
        let agent = ureq::Agent::new_with_config(config);
        let url = format!("{}/v3/maintenance/status", self.url());
        let answer = agent.post(url).send("{}")?.body_mut().read_to_string()?;
        serde_json::from_str(&answer).context("etcd speaks JSON")
    }

    pub fn restart(&mut self) -> Result<()> {
        self.process.kill();
        self.process = start_member(&self.node, &self.name, &self.initial, &self.data)?;
        Ok(())
    }
}

fn start_member(node: &LabNode, name: &str, initial: &str, data: &Path) -> Result<Process> {
    let (clients, peers) = (
        format!("http://{}:2379", node.address),
        format!("http://{}:2380", node.address),
    );
    let mut command = node.command("etcd");
    command
        .args([
            "--name",
            name,
            "--initial-cluster",
            initial,
            "--logger",
            "zap",
            "--log-level",
            "error",
        ])
        .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
        .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
        .arg("--data-dir")
        .arg(data);
    Process::start(&mut command, data.with_extension("log"))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &target)?,
            false => drop(std::fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}
