//! Measures and draws anew what `docs/gqa.md` shows: its plots go to `docs/gqa/`, its tables between their marks.
//!
//! Everything is done by `kvasir lab`, with the commands that the document names.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{paths, process};

/// Folders of the results, and the commands that fill them.
const RUNS: [(&str, &str); 8] = [
    ("f16", "gqa"),
    ("f32", "gqa --kv-dtype f32 --points 8192"),
    ("q8_0", "gqa --kv-dtype q8_0 --points 8192"),
    (
        "long",
        "gqa --context 131072 --points 16384,32768,65536,131072 --tokens 4 --rounds 3",
    ),
    ("batch", "gqa --batch 8 --points 8192"),
    ("ranks", "gqa --ranks 2 --threads 1 --points 8192"),
    ("tp", "tp --ranks 1,2,3,4"),
    ("memory", "memory"),
];
/// What is copied, of the results; tables are in the document.
const PLOTS: [&str; 9] = [
    "f16/cache-size.svg",
    "f16/time-per-token.svg",
    "f16/attention-time.svg",
    "f16/attention-by-g.svg",
    "long/attention-by-g.svg",
    "batch/attention-by-g.svg",
    "tp/bytes-by-ranks.svg",
    "tp/time-by-ranks.svg",
    "memory/kv-by-context.svg",
];
/// Around a table; the first one names a file of the results.
const BEGIN: &str = "<!-- table ";
const BEGIN_END: &str = " -->";
const END: &str = "<!-- end of table -->";

pub fn run(binary: &Path, model: &Path) -> Result<()> {
    let results = paths::root().join("target/lab");
    for (folder, line) in RUNS {
        println!("== kvasir lab {line}");
        let mut command = Command::new(binary);
        command.arg("lab").args(line.split(' '));
        command
            .env("KVASIR_MODEL", model)
            .arg("--out")
            .arg(results.join(folder));
        process::run(&mut command)?;
    }
    let docs = paths::root().join("docs");
    let document = docs.join("gqa.md");
    let text = read(&document)?;
    let text = with_tables(&text, |name| read(&results.join(name)))?;
    fs::write(&document, text).with_context(|| format!("cannot write {}", document.display()))?;
    for plot in PLOTS {
        copy(&results.join(plot), &docs.join("gqa").join(plot))?;
    }
    println!("{} is up to date", document.display());
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn copy(from: &Path, to: &PathBuf) -> Result<()> {
    let copied = to
        .parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::copy(from, to));
    copied
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// The text with what stands between the marks written anew. Errors if a mark has no end, or no table.
fn with_tables(text: &str, table: impl Fn(&str) -> Result<String>) -> Result<String> {
    let mut parts = text.split(BEGIN);
    let mut written = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let Some((name, rest)) = part.split_once(BEGIN_END) else {
            bail!(
                "a mark is not closed: {BEGIN}{}",
                part.lines().next().unwrap_or_default()
            );
        };
        let Some((_, after)) = rest.split_once(END) else {
            bail!("table {name} has no end: {END} is missing");
        };
        let table = table(name)?;
        written.push_str(&format!("{BEGIN}{name}{BEGIN_END}\n{}\n{END}{after}", table.trim_end()));
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_written_between_their_marks_and_nothing_else_changes() {
        let text = "a\n<!-- table x -->\nold\n<!-- end of table -->\nb\n<!-- table y --><!-- end of table -->c";
        let written = with_tables(text, |name| Ok(format!("| {name} |\n"))).unwrap();
        assert_eq!(
            written,
            "a\n<!-- table x -->\n| x |\n<!-- end of table -->\nb\n<!-- table y -->\n| y |\n<!-- end of table -->c"
        );
        let again = with_tables(&written, |name| Ok(format!("| {name} |\n"))).unwrap();
        assert_eq!(again, written);
        assert!(with_tables("<!-- table x -->\nold", |_| Ok(String::new())).is_err());
        assert!(with_tables("<!-- table x", |_| Ok(String::new())).is_err());
    }

    #[test]
    fn the_document_names_tables_and_plots_that_are_made() {
        let text = read(&paths::root().join("docs/gqa.md")).unwrap();
        let made = |name: &str| RUNS.iter().any(|(folder, _)| name.starts_with(&format!("{folder}/")));
        with_tables(&text, |name| match made(name) {
            true => Ok(String::new()),
            false => bail!("{name}"),
        })
        .unwrap();
        for plot in PLOTS {
            assert!(text.contains(&format!("(gqa/{plot})")), "{plot}");
        }
        for (_, line) in RUNS {
            assert!(text.contains(&format!("kvasir lab {line}")), "{line}");
        }
    }
}
