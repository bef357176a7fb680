//! Builds the fuzz targets and runs each for a while, from the checked-in corpus and what earlier runs here have found.
//!
//! Needs no tool beyond the toolchain: the flags are those that cargo-fuzz would give. Everything that a run leaves
//! lies in `target/fuzz`; the corpus in the tree is changed by nobody but people.

use std::fmt::Display;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::arguments::FuzzOptions;
use crate::{paths, process};

const SECONDS: u64 = 10;
/// Of one input; far above what the slowest sound one takes.
const INPUT_SECONDS_MAX: u64 = 20;
const MEMORY_MB_MAX: u64 = 1024;
/// Coverage counters for libFuzzer, and the name by which code knows that it is fuzzed.
const RUST_FLAGS: [&str; 6] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
const LOG_LINES_SHOWN: usize = 40;

/// Fails if a target does; the others run all the same.
pub fn run(options: &FuzzOptions) -> Result<ExitCode> {
    let places = Places::new();
    let targets = places.targets(options.target.as_deref())?;
    build(&places)?;
    let mut exit_code = ExitCode::SUCCESS;
    for target in &targets {
        let report = places.fuzz(target, options.seconds.unwrap_or(SECONDS))?;
        println!("{target:<15} {report}");
        if !report.passed {
            println!("{}", report.failure);
            println!("to see it again: {} CRASH-FILE", places.binary(target).display());
            exit_code = ExitCode::FAILURE;
        }
    }
    Ok(exit_code)
}

fn build(places: &Places) -> Result<()> {
    let mut cargo = paths::cargo();
    // A target that is named keeps the flags away from build scripts.
    cargo.args(["build", "--quiet", "--bins", "--target", &places.triple]);
    cargo.arg("--manifest-path").arg(places.source.join("Cargo.toml"));
    cargo.arg("--target-dir").arg(&places.output);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", RUST_FLAGS.join("\x1f"));
    process::run(&mut cargo)
}

struct Places {
    source: PathBuf,
    output: PathBuf,
    triple: String,
}

impl Places {
    fn new() -> Self {
        Self {
            source: paths::root().join("fuzz"),
            output: paths::root().join("target/fuzz"),
            triple: format!("{}-unknown-linux-gnu", std::env::consts::ARCH),
        }
    }

    /// All of them, or the one that is wanted. Errors if there is no such one.
    fn targets(&self, wanted: Option<&str>) -> Result<Vec<String>> {
        let mut targets = Vec::new();
        let folder = self.source.join("targets");
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let path = entry?.path();
            targets.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
        targets.sort();
        match wanted {
            None => Ok(targets),
            Some(wanted) if targets.iter().any(|target| target == wanted) => Ok(vec![wanted.to_owned()]),
            Some(wanted) => bail!("no fuzz target is called '{wanted}'; there are: {}", targets.join(", ")),
        }
    }

    fn binary(&self, target: &str) -> PathBuf {
        self.output.join(&self.triple).join("debug").join(target)
    }

    fn fuzz(&self, target: &str, seconds: u64) -> Result<Report> {
        let found = self.made(&["found", target])?;
        let crashes = self.made(&["crashes", target])?;
        let log_path = self.made(&["logs"])?.join(target).with_extension("txt");
        let log = File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
        let mut fuzzer = Command::new(self.binary(target));
        fuzzer
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
            .arg(format!("-rss_limit_mb={MEMORY_MB_MAX}"))
            .arg(format!("-artifact_prefix={}/", crashes.display()))
            .arg("-print_final_stats=1")
            .args(self.dictionary(target))
            .args([found, self.source.join("corpus").join(target)])
            .env("RUST_BACKTRACE", "1")
            .stdout(log.try_clone()?)
            .stderr(log);
        let line = process::line(&fuzzer);
        let status = fuzzer.status().with_context(|| format!("cannot start {line}"))?;
        let log = fs::read(&log_path)?;
        Ok(Report::new(status.success(), &String::from_utf8_lossy(&log)))
    }

    /// A folder of the output that is there after this.
    fn made(&self, names: &[&str]) -> Result<PathBuf> {
        let folder = names.iter().fold(self.output.clone(), |folder, name| folder.join(name));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }

    fn dictionary(&self, target: &str) -> Option<String> {
        let path = self.source.join("dictionaries").join(target).with_extension("dict");
        path.exists().then(|| format!("-dict={}", Path::display(&path)))
    }
}

/// What libFuzzer wrote of a run.
#[derive(Debug)]
struct Report {
    passed: bool,
    num_runs: u64,
    /// Edges of the program that were taken.
    coverage: u64,
    crash_file: Option<String>,
    /// The panic or libFuzzer's verdict, and where it was; empty if there is none.
    failure: String,
}

impl Report {
    fn new(passed: bool, log: &str) -> Self {
        let number_after = |mark: &str| {
            let text = log.rsplit_once(mark)?.1.trim_start();
            let end = text.find(|character: char| !character.is_ascii_digit());
            text[..end.unwrap_or(text.len())].parse().ok()
        };
        let crash_file = log.rsplit_once("Test unit written to ");
        // Every new input has a line, and none is of interest here.
        let lines = log.lines().filter(|line| !line.starts_with('#'));
        let says_why = |line: &&str| line.contains("panicked") || line.contains("ERROR: libFuzzer");
        let failure: Vec<&str> = lines.skip_while(|line| !says_why(line)).take(LOG_LINES_SHOWN).collect();
        Self {
            passed,
            num_runs: number_after("stat::number_of_executed_units:").unwrap_or(0),
            coverage: number_after(" cov:").unwrap_or(0),
            crash_file: crash_file.and_then(|(_, rest)| Some(rest.lines().next()?.to_owned())),
            failure: failure.join("\n"),
        }
    }
}

impl Display for Report {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let outcome = if self.passed { "ok" } else { "FAILED" };
        write!(
            formatter,
            "{outcome:<6} {:>9} runs, coverage {:>6}",
            self.num_runs, self.coverage
        )?;
        match &self.crash_file {
            Some(path) => write!(formatter, ", the input lies in {path}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_says_runs_coverage_and_where_the_crash_lies() {
        let log = "#2\tINITED cov: 12 ft: 13 corp: 1/2b\n#9\tNEW    cov: 340 ft: 13 corp: 1/2b\nthread panicked\n\
                   artifact_prefix='a/'; Test unit written to a/crash-1f\nBase64: AA==\n\
                   stat::number_of_executed_units: 9801\nstat::peak_rss_mb: 40\n";
        let report = Report::new(false, log);
        assert_eq!((report.num_runs, report.coverage), (9801, 340));
        assert_eq!(report.crash_file.as_deref(), Some("a/crash-1f"));
        assert!(report.failure.starts_with("thread panicked"), "{}", report.failure);
        let line = "FAILED      9801 runs, coverage    340, the input lies in a/crash-1f";
        assert_eq!(report.to_string(), line);
    }

    #[test]
    fn a_log_without_runs_is_none() {
        let report = Report::new(true, "");
        assert_eq!(report.to_string(), "ok             0 runs, coverage      0");
    }

    #[test]
    fn every_target_has_a_corpus_and_unknown_ones_are_named() {
        let places = Places::new();
        let targets = places.targets(None).unwrap();
        assert!(targets.len() >= 6, "{targets:?}");
        for target in &targets {
            let corpus = places.source.join("corpus").join(target);
            assert!(corpus.is_dir(), "{target} has no corpus");
        }
        let error = places.targets(Some("ggfu")).unwrap_err().to_string();
        assert!(
            error.starts_with("no fuzz target is called 'ggfu'; there are: chat_template, "),
            "{error}"
        );
    }
}
