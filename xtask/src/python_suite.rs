//! The tests that are written in Python, because what they hold Kvasir against speaks it, or is a program of its own:
//! `cargo xtask clients`, `page`, `telemetry` and `deploy`.
//!
//! Their packages go to the cache, by the checksum of the list of them, and touch no Python environment. Programs come from
//! the system's packages, helm and kubectl from the cache.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::download::Download;
use crate::{checksum, kubernetes_tools, model, paths, pip, process, tools};

/// A folder of tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PythonSuite {
    /// Other people's clients (OpenAI's for Python, grpcio, grpcurl) against a running cluster.
    Clients,
    /// The live page in a browser.
    Page,
    /// Metrics, traces and logs, as a collector and Prometheus get them.
    Telemetry,
    /// What is in `deploy/`, as helm, Kubernetes' schemas and promtool see it, and a rolling update of it.
    Deploy,
}

impl PythonSuite {
    pub const ALL: [Self; 4] = [Self::Clients, Self::Page, Self::Telemetry, Self::Deploy];

    /// Of its folder in `tests`, and of the chore.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clients => "clients",
            Self::Page => "page",
            Self::Telemetry => "telemetry",
            Self::Deploy => "deploy",
        }
    }

    /// What pytest writes of a run.
    pub fn report_path(self) -> PathBuf {
        paths::root().join("target/pytest").join(format!("{}.xml", self.name()))
    }

    /// Programs that it needs, with the system's packages that have them.
    fn programs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Clients => &[],
            Self::Page => &[("chromium", "chromium")],
            Self::Telemetry => &[("prometheus", "prometheus"), ("promtool", "prometheus")],
            Self::Deploy => &[
                ("prometheus", "prometheus"),
                ("promtool", "prometheus"),
                ("etcd", "etcd-server"),
                ("etcdctl", "etcd-client"),
            ],
        }
    }
}

/// Runs the tests of a folder; `filters` go to pytest as they are. The binary must be built.
pub fn run(suite: PythonSuite, filters: &[String]) -> Result<ExitCode> {
    let tests = paths::root().join("tests").join(suite.name());
    for (program, package) in suite.programs() {
        tools::ensure_program(program, package)?;
    }
    let packages = ensure_packages(suite.name(), &tests.join("requirements.txt"))?;
    let mut folders = vec![packages.join("bin")];
    if suite == PythonSuite::Deploy {
        folders.push(kubernetes_tools::ensure()?);
    }
    let model = match paths::non_empty("KVASIR_MODEL") {
        Some(model) => model,
        None => model::fetch()?,
    };
    let mut report = OsString::from("--junit-xml=");
    report.push(suite.report_path());
    let mut pytest = Command::new("python3");
    pytest
        .args(["-m", "pytest", "-q", "-p", "no:cacheprovider"])
        .arg(report)
        .args(named(&tests, filters))
        .env("PYTHONPATH", &packages)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PATH", path_with(folders)?)
        .env("KVASIR_BIN", paths::kvasir_binary()?)
        .env("KVASIR_MODEL", model);
    process::run(&mut pytest)?;
    Ok(ExitCode::SUCCESS)
}

/// Files of the folder by their names, flags as they are; the whole folder where no file is named.
fn named(tests: &Path, filters: &[String]) -> Vec<OsString> {
    let file = |filter: &String| {
        let name = filter.split("::").next().unwrap_or(filter);
        (!name.is_empty() && tests.join(name).is_file()).then(|| tests.join(filter).into_os_string())
    };
    let all = (!filters.iter().any(|filter| file(filter).is_some())).then(|| tests.as_os_str().to_owned());
    let filters = filters
        .iter()
        .map(|filter| file(filter).unwrap_or_else(|| filter.into()));
    all.into_iter().chain(filters).collect()
}

/// Where they are importable from.
fn ensure_packages(suite: &str, requirements: &Path) -> Result<PathBuf> {
    let list = fs::read_to_string(requirements);
    let list = list.with_context(|| format!("cannot read {}", requirements.display()))?;
    let sum = checksum::of_text(&list);
    let place = paths::cache()?.join("tools").join(format!("{suite}-{}", &sum[..16]));
    if place.is_dir() {
        return Ok(place);
    }
    eprintln!("fetching Python packages for {suite}");
    let download = Download::beside(&place)?;
    let unpacked = download.folder().join("packages");
    pip::install_listed(requirements, &unpacked)?;
    download.replace(&unpacked, &place)?;
    Ok(place)
}

fn path_with(mut folders: Vec<PathBuf>) -> Result<OsString> {
    folders.extend(env::var_os("PATH").iter().flat_map(env::split_paths));
    Ok(env::join_paths(folders)?)
}
