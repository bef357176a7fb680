//! Machines on one network, as far as TCP knows: network namespaces with a cable each to a bridge on this one.
//!
//! It needs root. What it made is taken away by name when it is dropped, and before, should it have been left behind.

use std::{
    ffi::OsStr,
    net::Ipv4Addr,
    process::{Command, Stdio},
};

/// Of those set aside for measurements: hardly a machine has routes there.
const NETWORK: [u8; 3] = [198, 19, 7];
const BRIDGE: &str = "kvlab";
const FIRST_NODE: u8 = 10;

/// One at a time on a machine.
#[derive(Debug)]
pub struct LabNetwork {
    nodes: u8,
}

/// One machine of it.
#[derive(Debug)]
pub struct LabNode {
    namespace: String,
    cable: String,
    pub address: Ipv4Addr,
}

impl LabNetwork {
    /// Panics where this is not allowed.
    pub fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "networks are made by root alone");
        let _ = try_ip(&["link", "del", BRIDGE]);
        ip(&["link", "add", BRIDGE, "type", "bridge"]);
        ip(&["addr", "add", &format!("{}/24", address(1)), "dev", BRIDGE]);
        ip(&["link", "set", BRIDGE, "up"]);
        Self { nodes: 0 }
    }

    pub fn add(&mut self) -> LabNode {
        let number = self.nodes;
        self.nodes += 1;
        let (namespace, cable) = (format!("kvlab-{number}"), format!("kvlab{number}"));
        let node = LabNode {
            address: address(FIRST_NODE + number),
            namespace,
            cable,
        };
        node.remove();
        let (name, ours, theirs) = (&node.namespace, &node.cable, format!("{}p", node.cable));
        ip(&["netns", "add", name]);
        ip(&["link", "add", ours, "type", "veth", "peer", "name", &theirs]);
        ip(&["link", "set", &theirs, "netns", name]);
        ip(&["link", "set", ours, "master", BRIDGE]);
        ip(&["link", "set", ours, "up"]);
        ip(&[
            "-n",
            name,
            "addr",
            "add",
            &format!("{}/24", node.address),
            "dev",
            &theirs,
        ]);
        ip(&["-n", name, "link", "set", &theirs, "up"]);
        ip(&["-n", name, "link", "set", "lo", "up"]);
        node
    }
}

impl Default for LabNetwork {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for LabNetwork {
    fn drop(&mut self) {
        let _ = try_ip(&["link", "del", BRIDGE]);
    }
}

impl LabNode {
    /// A program that runs over there, under the pid of this command.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).arg(program);
        command
    }

    /// Nothing comes there or from there any more, and nobody is told.
    pub fn cut(&self) {
        ip(&["link", "set", &self.cable, "down"]);
    }

    pub fn mend(&self) {
        ip(&["link", "set", &self.cable, "up"]);
    }

    fn remove(&self) {
        // They may not be there.
        let _ = try_ip(&["link", "del", &self.cable]);
        let _ = try_ip(&["netns", "del", &self.namespace]);
    }
}

impl Drop for LabNode {
    fn drop(&mut self) {
        self.remove();
    }
}

fn address(host: u8) -> Ipv4Addr {
    let [a, b, c] = NETWORK;
    Ipv4Addr::new(a, b, c, host)
}

fn try_ip(args: &[&str]) -> bool {
    let mut command = Command::new("ip");
    command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().expect("ip can be started");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {stderr}", args.join(" "));
}
