//! Every .cu file through compiler and assembler, and what each kernel takes of a multiprocessor, against limits.
//!
//! A spilled register or a stack frame is memory traffic that no profile of the source shows, so there may be none.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::toolkit::Toolkit;
use crate::{paths, process};

/// Of 255: two blocks of 256 threads on a multiprocessor, which has 65,536 of them.
const REGISTERS_MAX: u32 = 128;
/// Of kernels whose names hold this; each with its reason.
const WIDER: [(&str, u32); 2] = [
    // f32 weights are twice as wide: one such block on a multiprocessor has to do.
    ("_f32_", 160),
    // Blocks of 128 threads: two of them fit all the same.
    ("attend_fast_", 255),
];
/// A kernel that takes more must ask for it at the launch.
const SHARED_BYTES_MAX: u32 = 48 << 10;

/// The sources, in order.
pub struct Kernels {
    sources: Vec<PathBuf>,
}

/// What the assembler says of one kernel.
#[derive(Debug, PartialEq, Eq)]
struct Usage {
    name: String,
    registers: u32,
    /// Static; a launch may add dynamic.
    shared_bytes: u32,
    stack_bytes: u32,
    /// Stored and loaded.
    spill_bytes: u32,
}

/// A table for people, and the verdict.
pub struct Compiled {
    usages: Vec<(String, Usage)>,
}

impl Kernels {
    pub fn in_tree() -> Result<Self> {
        let folder = paths::root().join("worker/cuda");
        let mut sources = Vec::new();
        for entry in folder
            .read_dir()
            .with_context(|| format!("cannot list {}", folder.display()))?
        {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "cu") {
                sources.push(path);
            }
        }
        if sources.is_empty() {
            bail!("{} holds no .cu file", folder.display());
        }
        sources.sort();
        Ok(Self { sources })
    }

    pub fn compile(&self, toolkit: &Toolkit) -> Result<Compiled> {
        let output = paths::root().join("target/cuda/kernels");
        fs::create_dir_all(&output).with_context(|| format!("cannot make {}", output.display()))?;
        let mut usages = Vec::new();
        for source in &self.sources {
            let stem = stem(source);
            process::run(
                nvcc(toolkit, source, "sm_90")
                    .arg("--ptx")
                    .arg("-o")
                    .arg(output.join(&stem).with_extension("ptx")),
            )?;
            let cubin = output.join(&stem).with_extension("cubin");
            let said = assemble(
                nvcc(toolkit, source, "sm_90a")
                    .args(["--cubin", "-Xptxas", "-v", "-o"])
                    .arg(cubin),
            )?;
            usages.extend(parse(&said).into_iter().map(|usage| (stem.clone(), usage)));
        }
        Ok(Compiled { usages })
    }
}

fn stem(source: &Path) -> String {
    source
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// The flags of the worker's build script: IEEE arithmetic, no contraction.
fn nvcc(toolkit: &Toolkit, source: &Path, arch: &str) -> Command {
    let mut nvcc = Command::new(toolkit.nvcc());
    nvcc.args(["-std=c++17", "-O3", "-fmad=false"]);
    nvcc.arg(format!("-arch={arch}")).arg(source);
    nvcc
}

/// What ptxas reports, which goes to standard error.
fn assemble(nvcc: &mut Command) -> Result<String> {
    let output = nvcc
        .output()
        .with_context(|| format!("cannot start {}", process::line(nvcc)))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        bail!("{} ended with {}:\n{said}", process::line(nvcc), output.status);
    }
    Ok(said)
}

/// The lines that `-Xptxas -v` prints, kernel by kernel.
fn parse(said: &str) -> Vec<Usage> {
    let mut usages: Vec<Usage> = Vec::new();
    for line in said.lines() {
        if let Some(name) = between(line, "Compiling entry function '", "'") {
            usages.push(Usage {
                name: name.to_owned(),
                registers: 0,
                shared_bytes: 0,
                stack_bytes: 0,
                spill_bytes: 0,
            });
        }
        let Some(usage) = usages.last_mut() else { continue };
        // A function that is not inlined reports its own frame, after the kernel's; the largest counts.
        if let Some(bytes) = number_before(line, " bytes stack frame") {
            usage.stack_bytes = usage.stack_bytes.max(bytes);
            let stored = number_before(line, " bytes spill stores").unwrap_or(0);
            usage.spill_bytes += stored + number_before(line, " bytes spill loads").unwrap_or(0);
        }
        if let Some(registers) = number_before(line, " registers") {
            usage.registers = registers;
            usage.shared_bytes = number_before(line, " bytes smem").unwrap_or(0);
        }
    }
    usages
}

fn between<'a>(line: &'a str, before: &str, after: &str) -> Option<&'a str> {
    line.split_once(before)?.1.split_once(after).map(|(inside, _)| inside)
}

fn number_before(line: &str, unit: &str) -> Option<u32> {
    line.split_once(unit)?.0.rsplit(' ').next()?.parse().ok()
}

impl Usage {
    fn registers_max(&self) -> u32 {
        let wider = WIDER.iter().find(|(part, _)| self.name.contains(part));
        wider.map_or(REGISTERS_MAX, |(_, registers)| *registers)
    }

    fn excess(&self) -> Option<String> {
        let limits = [
            ("registers", self.registers, self.registers_max()),
            ("bytes of static shared memory", self.shared_bytes, SHARED_BYTES_MAX),
            ("bytes of stack", self.stack_bytes, 0),
            ("bytes of spills", self.spill_bytes, 0),
        ];
        let over = limits.iter().find(|(_, found, limit)| found > limit);
        over.map(|(what, found, limit)| format!("{}: {found} {what}, at most {limit} are allowed", self.name))
    }
}

impl Compiled {
    /// Errors with every kernel that takes more than it may.
    pub fn check_limits(&self) -> Result<()> {
        let over: Vec<String> = self.usages.iter().filter_map(|(_, usage)| usage.excess()).collect();
        if !over.is_empty() {
            bail!("kernels over their limits:\n{}", over.join("\n"));
        }
        Ok(())
    }
}

impl fmt::Display for Compiled {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "{:<18} {:<34} registers  shared  stack  spills",
            "file", "kernel"
        )?;
        for (file, usage) in &self.usages {
            writeln!(
                formatter,
                "{file:<18} {:<34} {:>9} {:>7} {:>6} {:>7}",
                usage.name, usage.registers, usage.shared_bytes, usage.stack_bytes, usage.spill_bytes
            )?;
        }
        write!(
            formatter,
            "limits: {REGISTERS_MAX} registers but for {WIDER:?}, {SHARED_BYTES_MAX} bytes of static shared memory, no stack, no spills"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'plain' for 'sm_90a'
ptxas info    : Function properties for plain
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 400 bytes cmem[0]
ptxas info    : Compile time = 1.0 ms
ptxas info    : Compiling entry function 'crowded' for 'sm_90a'
ptxas info    : Function properties for crowded
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 16 bytes cumulative stack size, 1024 bytes smem
";

    #[test]
    fn a_report_gives_what_each_kernel_takes() {
        let usages = parse(SAID);
        let numbers: Vec<_> = usages
            .iter()
            .map(|usage| {
                (
                    usage.name.as_str(),
                    usage.registers,
                    usage.shared_bytes,
                    usage.stack_bytes,
                    usage.spill_bytes,
                )
            })
            .collect();
        assert_eq!(numbers, [("plain", 32, 0, 0, 0), ("crowded", 168, 1024, 16, 20)]);
    }

    #[test]
    fn what_is_over_its_limit_is_named() {
        let compiled = Compiled {
            usages: parse(SAID)
                .into_iter()
                .map(|usage| ("file".to_owned(), usage))
                .collect(),
        };
        let message = compiled.check_limits().unwrap_err().to_string();
        assert!(message.contains("crowded: 168 registers, at most 128"), "{message}");
        assert!(!message.contains("plain"), "{message}");
    }
}
