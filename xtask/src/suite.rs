//! `cargo xtask test`: everything CI runs, step by step, under one hard limit of time.
//!
//! A failing check does not hide the tests behind it: later steps still run wherever they can, and the exit code is that
//! of the first step that failed.

use std::env;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::Write;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::arguments::TestOptions;
use crate::junit::Report;
use crate::process::{self, Ended};
use crate::python_suite::PythonSuite;
use crate::{model, paths, tools};

const LIMIT_MINUTES: f64 = 52.0;
/// With `--all`.
const LIMIT_ALL_MINUTES: f64 = 120.0;
/// Processes of a test that just ended may need this long to notice.
const LEFT_BEHIND_PATIENCE: Duration = Duration::from_secs(3);
/// Of each target: enough to run the whole corpus and to find what is easily found.
const FUZZ_SECONDS: &str = "5";
const NUM_SLOWEST_TESTS: usize = 10;
/// What `timeout` says too.
const EXIT_TIMED_OUT: u8 = 124;

pub fn run(options: &TestOptions) -> Result<ExitCode> {
    let mut suite = Suite::new(limit(options.all)?);
    let report_path = paths::root().join("target/nextest/default/junit.xml");
    // An old report must not speak for a run that never came to its tests.
    for path in PythonSuite::ALL
        .map(PythonSuite::report_path)
        .iter()
        .chain([&report_path])
    {
        let _ = std::fs::remove_file(path);
    }
    let mut goes_on = suite.prepare("model", || model::fetch().map(|path| suite_env("KVASIR_MODEL", path)));
    goes_on = goes_on && suite.prepare("tools", || tools::ensure().map(|path| suite_env("PATH", path)));
    if goes_on {
        suite.environment.push(suite_env("KVASIR_BIN", paths::kvasir_binary()?));
        suite.environment.push(suite_env("RUSTDOCFLAGS", "-D warnings"));
        suite.configure(options);
        suite.run_checks_and_tests(options)?;
    }
    suite.summarize(Report::read(&report_path));
    Ok(ExitCode::from(suite.exit_code()))
}

type Variable = (&'static str, OsString);

fn suite_env(name: &'static str, value: impl Into<OsString>) -> Variable {
    (name, value.into())
}

fn limit(all: bool) -> Result<Duration> {
    let minutes = match env::var("KVASIR_TEST_LIMIT_MINUTES") {
        Ok(text) => text
            .parse()
            .with_context(|| format!("KVASIR_TEST_LIMIT_MINUTES is not a number: '{text}'"))?,
        Err(_) if all => LIMIT_ALL_MINUTES,
        Err(_) => LIMIT_MINUTES,
    };
    Duration::try_from_secs_f64(minutes * 60.0).context("KVASIR_TEST_LIMIT_MINUTES is not a span of time")
}

struct Suite {
    started: Instant,
    limit: Duration,
    environment: Vec<Variable>,
    steps: Vec<Step>,
}

struct Step {
    name: &'static str,
    took: Duration,
    outcome: Outcome,
}

#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    Passed,
    Failed(u8),
    TimedOut,
}

impl Suite {
    fn new(limit: Duration) -> Self {
        Self {
            started: Instant::now(),
            limit,
            environment: Vec::new(),
            steps: Vec::new(),
        }
    }

    fn configure(&mut self, options: &TestOptions) {
        if options.all {
            self.environment.push(suite_env("KVASIR_TEST_ALL", "1"));
        }
        if let Some(seed) = options.seed {
            self.environment.push(suite_env("KVASIR_TEST_SEED", seed.to_string()));
        }
    }

    /// With filters somebody looks for one test's answer, not for the checks'.
    fn run_checks_and_tests(&mut self, options: &TestOptions) -> Result<()> {
        if options.filters.is_empty() {
            self.run("fmt", &["fmt", "--all", "--check"])?;
            self.run("fmt of fuzz", &["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"])?;
            self.run(
                "clippy",
                &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
            )?;
            self.run("clippy of cuda", &["xtask", "gpu", "--check"])?;
            self.run("deny", &["deny", "check", "--hide-inclusion-graph", "bans", "licenses"])?;
        }
        // These very targets, so that nextest finds all it needs and compiles nothing again with other features.
        if !self.run(
            "build",
            &["build", "--workspace", "--lib", "--bins", "--tests", "--examples"],
        )? {
            return Ok(());
        }
        let filters: Vec<&str> = options.filters.iter().map(String::as_str).collect();
        self.run(
            "tests",
            &[&["nextest", "run", "--workspace"], filters.as_slice()].concat(),
        )?;
        self.end_processes_left_behind();
        if options.filters.is_empty() {
            for suite in PythonSuite::ALL {
                self.run(suite.name(), &["xtask", suite.name()])?;
                self.end_processes_left_behind();
            }
            self.run("fuzz", &["xtask", "fuzz", "--seconds", FUZZ_SECONDS])?;
            self.run("doc tests", &["test", "--doc", "--workspace", "--quiet"])?;
            self.run("docs", &["doc", "--workspace", "--no-deps", "--quiet"])?;
        }
        Ok(())
    }

    /// A step that is our own code. Whether it passed.
    fn prepare(&mut self, name: &'static str, step: impl FnOnce() -> Result<Variable>) -> bool {
        let started = self.announce(format_args!("{name}"));
        match step() {
            Ok(variable) => {
                self.environment.push(variable);
                self.note(name, started, Outcome::Passed)
            }
            Err(error) => {
                eprintln!("{error:#}");
                self.note(name, started, Outcome::Failed(1))
            }
        }
    }

    /// A step that is a cargo command. Whether it passed; once the time is up, none is started.
    fn run(&mut self, name: &'static str, arguments: &[&str]) -> Result<bool> {
        if self.steps.iter().any(|step| step.outcome == Outcome::TimedOut) {
            return Ok(false);
        }
        let mut command = self.cargo(arguments);
        let started = self.announce(format_args!("{name}: {}", process::line(&command)));
        let outcome = match process::run_until(&mut command, self.started + self.limit)? {
            Ended::Exited(status) if status.success() => Outcome::Passed,
            Ended::Exited(status) => {
                Outcome::Failed(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
            }
            Ended::TimedOut => Outcome::TimedOut,
        };
        Ok(self.note(name, started, outcome))
    }

    fn cargo(&self, arguments: &[&str]) -> Command {
        let mut cargo = paths::cargo();
        cargo
            .args(arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        cargo
    }

    /// A test that leaves a process behind has failed, whatever it says.
    fn end_processes_left_behind(&mut self) {
        let started = Instant::now();
        let left = process::left_behind(LEFT_BEHIND_PATIENCE);
        if left.is_empty() {
            return;
        }
        for (pid, command) in left {
            println!("left behind by a test: process {pid}: {command}");
        }
        process::kill_descendants();
        self.note("no process left behind", started, Outcome::Failed(1));
    }

    fn announce(&self, heading: impl Display) -> Instant {
        say(format_args!("\n== {heading}"));
        Instant::now()
    }

    fn note(&mut self, name: &'static str, started: Instant, outcome: Outcome) -> bool {
        let step = Step {
            name,
            took: started.elapsed(),
            outcome,
        };
        say(format_args!("-- {step}"));
        self.steps.push(step);
        outcome == Outcome::Passed
    }

    fn summarize(&self, report: Option<Report>) {
        say("\n== summary");
        for step in &self.steps {
            say(step);
        }
        for report in PythonSuite::ALL
            .map(PythonSuite::report_path)
            .iter()
            .filter_map(|path| Report::read(path))
        {
            report.failures().for_each(say);
        }
        let seconds = self.started.elapsed().as_secs_f64();
        match report {
            Some(report) => {
                say(format_args!("the {NUM_SLOWEST_TESTS} slowest tests:"));
                report.slowest(NUM_SLOWEST_TESTS).for_each(say);
                report.failures().for_each(say);
                say(format_args!("{report}; {seconds:.1} s in all"));
            }
            None => say(format_args!("0 passed, 0 failed: no test ran; {seconds:.1} s in all")),
        }
        for step in self.steps.iter().filter(|step| step.outcome == Outcome::TimedOut) {
            let minutes = self.limit.as_secs_f64() / 60.0;
            say(format_args!(
                "the limit of {minutes} minutes ended the step '{}', which ran for {:.1} s",
                step.name,
                step.took.as_secs_f64()
            ));
        }
    }

    /// That of the first step that failed.
    fn exit_code(&self) -> u8 {
        let failures = self.steps.iter().filter_map(|step| match step.outcome {
            Outcome::Passed => None,
            Outcome::Failed(code) => Some(code),
            Outcome::TimedOut => Some(EXIT_TIMED_OUT),
        });
        failures.take(1).sum()
    }
}

impl Display for Step {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let outcome = match self.outcome {
            Outcome::Passed => "ok",
            Outcome::Failed(_) => "FAILED",
            Outcome::TimedOut => "TIMED OUT",
        };
        write!(
            formatter,
            "{outcome:<9} {:>7.1} s  {}",
            self.took.as_secs_f64(),
            self.name
        )
    }
}

/// Standard output, at once: the children write to it as well, and the order must hold. A closed pipe is no failure.
fn say(line: impl Display) {
    let mut output = std::io::stdout().lock();
    let _ = writeln!(output, "{line}").and_then(|()| output.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_decides_the_exit_code() {
        let mut suite = Suite::new(Duration::ZERO);
        for outcome in [Outcome::Passed, Outcome::Failed(7), Outcome::TimedOut] {
            suite.note("step", Instant::now(), outcome);
        }
        assert_eq!(suite.exit_code(), 7);
    }

    #[test]
    fn a_suite_without_failures_succeeds() {
        let mut suite = Suite::new(Duration::ZERO);
        assert!(suite.note("step", Instant::now(), Outcome::Passed));
        assert_eq!(suite.exit_code(), 0);
    }

    #[test]
    fn once_the_time_is_up_no_step_starts() {
        let _alone = crate::process::tests::alone();
        let mut suite = Suite::new(Duration::ZERO);
        assert!(!suite.run("slow", &["--version"]).unwrap());
        let num_steps = suite.steps.len();
        assert!(!suite.run("late", &["--version"]).unwrap());
        assert_eq!(
            (num_steps, suite.steps.len(), suite.exit_code()),
            (1, 1, EXIT_TIMED_OUT)
        );
    }

    #[test]
    fn a_failed_preparation_is_a_failed_step() {
        let mut suite = Suite::new(Duration::ZERO);
        assert!(!suite.prepare("model", || anyhow::bail!("no network")));
        assert_eq!(suite.exit_code(), 1);
    }
}
