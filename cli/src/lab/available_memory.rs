//! How much memory this machine could give.

use std::fs;

/// As Linux estimates it; `None` where it does not say.
pub fn bytes() -> Option<u64> {
    parse(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_is_in_bytes() {
        assert_eq!(parse("MemTotal:  24 kB\nMemAvailable:   16 kB\n"), Some(16 << 10));
        assert_eq!(parse("MemTotal:  24 kB\n"), None);
    }
}
