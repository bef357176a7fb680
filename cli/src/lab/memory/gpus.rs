//! GPUs and the memory that their vendors publish for them.
//!
//! A published GB is taken as 10^9 bytes, the smaller of its readings. What a driver, a context and activations take of it
//! is `--reserve`'s matter.

use anyhow::{Result, bail};
use kvasir_runtime::ByteSize;

const GB: u64 = 1_000_000_000;

/// Name and GB, by memory, from the data sheets of NVIDIA and AMD. B200 is the one of an HGX or DGX board: eight of them
/// are 1,440 GB in the data sheet of DGX B200; the chip was announced with 192.
const PUBLISHED: [(&str, u64); 13] = [
    ("T4", 16),
    ("L4", 24),
    ("A10", 24),
    ("RTX 4090", 24),
    ("RTX 5090", 32),
    ("A100 40GB", 40),
    ("L40S", 48),
    ("A100 80GB", 80),
    ("H100", 80),
    ("H200", 141),
    ("B200", 180),
    ("MI300X", 192),
    ("MI325X", 256),
];

/// GPUs of equal memory: what fits on one fits on all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryClass {
    /// As people call that memory.
    pub label: String,
    /// Empty of a size that was given.
    pub names: Vec<&'static str>,
    pub memory_bytes: u64,
}

impl MemoryClass {
    pub fn given(size: ByteSize) -> Self {
        Self {
            label: size.to_string(),
            names: Vec::new(),
            memory_bytes: size.0,
        }
    }

    /// Of the GPUs of these names, or of all if there are none; by memory. Errors at a name that no GPU has.
    pub fn of_names(names: &[String]) -> Result<Vec<Self>> {
        if let Some(unknown) = names
            .iter()
            .find(|name| !PUBLISHED.iter().any(|(gpu, _)| is_called(gpu, name)))
        {
            let known: Vec<&str> = PUBLISHED.iter().map(|(gpu, _)| *gpu).collect();
            bail!(
                "unknown GPU `{unknown}`; known: {}; or give --memory SIZE",
                known.join(", ")
            );
        }
        let wanted = |gpu: &str| names.is_empty() || names.iter().any(|name| is_called(gpu, name));
        let mut classes: Vec<Self> = Vec::new();
        for (gpu, gb) in PUBLISHED.into_iter().filter(|(gpu, _)| wanted(gpu)) {
            match classes.last_mut() {
                Some(last) if last.memory_bytes == gb * GB => last.names.push(gpu),
                _ => classes.push(Self {
                    label: format!("{gb} GB"),
                    names: vec![gpu],
                    memory_bytes: gb * GB,
                }),
            }
        }
        Ok(classes)
    }

    /// What is left of each GPU when a share of it is set aside.
    pub fn usable_bytes(&self, reserve_percent: f64) -> u64 {
        (self.memory_bytes as f64 * (1.0 - reserve_percent / 100.0)) as u64
    }
}

/// `A100 80GB` is also `a100-80gb`, and `a100` is each of its kinds.
fn is_called(gpu: &str, name: &str) -> bool {
    let letters = |text: &str| -> String {
        let letters = text.chars().filter(char::is_ascii_alphanumeric);
        letters.map(|letter| letter.to_ascii_lowercase()).collect()
    };
    let kind = gpu.split_once(' ').filter(|(_, rest)| rest.ends_with("GB"));
    letters(gpu) == letters(name) || kind.is_some_and(|(kind, _)| letters(kind) == letters(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(names: &[&str]) -> Result<Vec<MemoryClass>> {
        MemoryClass::of_names(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn gpus_are_found_however_people_write_them() {
        for name in ["h100", "H100", " H-100"] {
            assert_eq!(classes(&[name]).unwrap()[0].names, ["H100"], "{name}");
        }
        assert_eq!(classes(&["rtx4090"]).unwrap()[0].memory_bytes, 24 * GB);
        let both: Vec<u64> = classes(&["a100"])
            .unwrap()
            .iter()
            .map(|class| class.memory_bytes)
            .collect();
        assert_eq!(both, [40 * GB, 80 * GB]);
        let error = classes(&["H100", "H1000"]).unwrap_err().to_string();
        assert!(error.contains("`H1000`") && error.contains("MI300X"), "{error}");
    }

    #[test]
    fn all_gpus_are_classed_by_memory() {
        let all = classes(&[]).unwrap();
        assert!(all.is_sorted_by(|a, b| a.memory_bytes < b.memory_bytes), "{all:?}");
        assert_eq!(
            all.iter().map(|class| class.names.len()).sum::<usize>(),
            PUBLISHED.len()
        );
        assert_eq!(all[1].names, ["L4", "A10", "RTX 4090"]);
    }
}
