//! Another machine on the same network, as far as TCP knows: a network namespace with a cable to this one.
//!
//! It needs root. What it made is taken away by name when it is dropped, and before, should it have been left behind.

use std::{
    net::Ipv4Addr,
    process::{Command, Output},
};

#[derive(Debug)]
pub struct NetworkNamespace {
    name: String,
    cable: String,
    /// Of this machine, as the other one sees it.
    pub here: Ipv4Addr,
}

impl NetworkNamespace {
    /// `None` where this is not allowed. Panics if it is and fails.
    pub fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let id = std::process::id();
        // A network of two, of those set aside for measurements: hardly a machine has routes there, and none loses them.
        let network = [198, 18, (id >> 6) as u8, (id << 2) as u8];
        let address = |host: u8| Ipv4Addr::new(network[0], network[1], network[2], network[3] + host);
        let (here, there) = (address(1), address(2));
        let (name, cable) = (format!("kvasir-test-{id}"), format!("kvt{id}"));
        let namespace = Self { name, cable, here };
        namespace.remove();
        let (name, ours, theirs) = (&namespace.name, &namespace.cable, format!("{}p", namespace.cable));
        ip(&["netns", "add", name]);
        ip(&["link", "add", ours, "type", "veth", "peer", "name", &theirs]);
        ip(&["link", "set", &theirs, "netns", name]);
        ip(&["addr", "add", &format!("{here}/30"), "dev", ours]);
        ip(&["link", "set", ours, "up"]);
        ip(&["-n", name, "addr", "add", &format!("{there}/30"), "dev", &theirs]);
        ip(&["-n", name, "link", "set", &theirs, "up"]);
        Some(namespace)
    }

    /// A program's run over there.
    pub fn run(&self, program: &str, args: &[&str]) -> Output {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).args(args);
        command.output().expect("ip can be started")
    }

    fn remove(&self) {
        for args in [["link", "del", &self.cable], ["netns", "del", &self.name]] {
            // They may not be there.
            let _ = Command::new("ip").args(args).output();
        }
    }
}

impl Drop for NetworkNamespace {
    fn drop(&mut self) {
        self.remove();
    }
}

fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().expect("ip can be started");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {stderr}", args.join(" "));
}
