//! The architecture as tests: rules on the sources that no compiler checks, most of them about what is absent.
//!
//! Each rule has a name and a reason, and a snippet in `snippets.rs` that breaks it. A rule reads text and manifests; it
//! does not parse Rust.

mod dependency_rules;
mod manifest;
#[cfg(test)]
mod snippets;
mod source;
mod source_rules;
mod tree;

use std::fmt::{self, Display};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use tree::Tree;

/// A rule: its name, why it is there, and the check that finds where it is broken.
pub struct Rule {
    name: &'static str,
    why: &'static str,
    check: fn(&Tree) -> Vec<Finding>,
}

/// A place that breaks a rule. Lines count from 1.
#[derive(Debug, PartialEq)]
pub struct Finding {
    path: String,
    line: usize,
    what: String,
}

impl Finding {
    fn new(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            what: what.into(),
        }
    }
}

fn rules() -> impl Iterator<Item = &'static Rule> {
    dependency_rules::RULES.iter().chain(source_rules::RULES)
}

/// Prints every place that breaks a rule, and the files that have grown long.
pub fn report(root: &Path) -> Result<ExitCode> {
    let tree = Tree::read(root)?;
    let broken = broken(&tree);
    broken.iter().for_each(|line| println!("{line}"));
    for (path, num_lines) in source_rules::long_files(&tree) {
        println!("{path}: {num_lines} lines: a candidate for splitting");
    }
    println!(
        "{} rules, {} files, {} findings",
        rules().count(),
        tree.num_files(),
        broken.len()
    );
    Ok(if broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn broken(tree: &Tree) -> Vec<String> {
    let with_findings = rules().flat_map(|rule| (rule.check)(tree).into_iter().map(move |finding| (rule, finding)));
    with_findings
        .map(|(rule, finding)| format!("{finding} [{}: {}]", rule.name, rule.why))
        .collect()
}

impl Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}", self.path, self.line, self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_keeps_every_rule() {
        let tree = Tree::read(&crate::paths::root()).unwrap();
        assert!(
            tree.num_files() > 20,
            "read only {} files: the rules would hold of nothing",
            tree.num_files()
        );
        let broken = broken(&tree);
        assert!(broken.is_empty(), "{} findings\n{}", broken.len(), broken.join("\n"));
    }
}
