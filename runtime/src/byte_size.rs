//! Byte sizes as people write them: `512MiB`, `1.5GiB`, `64k`, `1000`.
//!
//! `K`, `KB`, `KiB` and so on all mean powers of 1024: memory is meant, never disk-maker's megabytes.

use std::{fmt, str::FromStr};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ByteSize(pub u64);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a size; write for example 4096, 512MiB or 1.5GiB")]
pub struct NotASize(pub String);

const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

impl FromStr for ByteSize {
    type Err = NotASize;

    fn from_str(text: &str) -> Result<Self, NotASize> {
        let refuse = || NotASize(text.to_owned());
        let trimmed = text.trim();
        let split = trimmed
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let number: f64 = number.parse().map_err(|_| refuse())?;
        let factor = factor(unit.trim()).ok_or_else(refuse)?;
        let bytes = number * factor as f64;
        // f64 holds every size up to 8 PiB exactly; nothing larger is memory.
        if bytes > (1u64 << 53) as f64 {
            return Err(refuse());
        }
        Ok(Self(bytes.round() as u64))
    }
}

fn factor(unit: &str) -> Option<u64> {
    let exponent = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        _ => return None,
    };
    Some(1 << (10 * exponent))
}

impl fmt::Display for ByteSize {
    /// Three significant digits at most, except for whole bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        let digits = match value {
            _ if unit == 0 || value.fract() == 0.0 => 0,
            v if v < 10.0 => 2,
            v if v < 100.0 => 1,
            _ => 0,
        };
        let text = format!("{value:.digits$} {}", UNITS[unit]);
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64k", 65536),
            ("512MiB", 512 << 20),
            ("512 mb", 512 << 20),
            ("1.5GiB", 3 << 29),
            ("2T", 2 << 40),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "GiB", "-1", "1.2.3", "5 parsecs", "9e9", "99999999T"] {
            assert_eq!(text.parse::<ByteSize>(), Err(NotASize(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_with_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1 << 30, "1 GiB"),
            (101_500_000, "96.8 MiB"),
            (3 << 29, "1.50 GiB"),
        ] {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }
}
