//! The machine that figures are from: its processor, its cores, what else it does.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{checksum, paths, process};

const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Of a checksum of the processor's features.
const FINGERPRINT_DIGITS: usize = 8;

/// The cores that this process may use.
pub fn cores() -> Result<usize> {
    let cores = thread::available_parallelism().context("cannot tell the number of cores")?;
    Ok(cores.get())
}

/// The processor's name as it tells it itself.
pub fn cpu_name() -> String {
    let name = of_cpu(&cpu_info(), "model name").map(str::to_owned);
    name.unwrap_or_else(|| format!("unnamed {} processor", std::env::consts::ARCH))
}

/// Differs between processors with other instructions: native builds for one may not run on the other.
pub fn cpu_fingerprint() -> String {
    let info = cpu_info();
    let features = of_cpu(&info, "flags").or_else(|| of_cpu(&info, "Features"));
    let mut checksum = checksum::of_text(features.unwrap_or_default());
    checksum.truncate(FINGERPRINT_DIGITS);
    checksum
}

/// Over the last 1, 5 and 15 minutes.
pub fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// In UTC.
pub fn date() -> Result<String> {
    answer(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]))
}

/// The commit that is checked out, if git can tell.
pub fn commit() -> Option<String> {
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--dirty"]).current_dir(paths::root());
    answer(&mut git).ok()
}

fn answer(command: &mut Command) -> Result<String> {
    Ok(process::output_within(command, ANSWER_LIMIT)?.trim().to_owned())
}

fn cpu_info() -> String {
    fs::read_to_string("/proc/cpuinfo").unwrap_or_default()
}

/// A field of the first processor in `/proc/cpuinfo`.
fn of_cpu<'a>(info: &'a str, field: &str) -> Option<&'a str> {
    let fields = info.lines().filter_map(|line| line.split_once(':'));
    let found = fields.into_iter().find(|(name, _)| name.trim() == field);
    found.map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_that_of_the_first_processor() {
        let info = "processor\t: 0\nmodel name\t: Zen 4: fast\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t: none\n";
        assert_eq!(of_cpu(info, "model name"), Some("Zen 4: fast"));
        assert_eq!(of_cpu(info, "flags"), Some("fpu avx2"));
        assert_eq!(of_cpu(info, "Features"), None);
    }
}
