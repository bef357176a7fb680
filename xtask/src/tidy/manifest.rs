//! The dependency lists of a Cargo.toml, as far as our own manifests go: one dependency a line.

/// One dependency: its name, the line that names it, and whether only tests and examples see it.
#[derive(Debug, PartialEq)]
pub struct Dependency<'a> {
    pub name: &'a str,
    pub line: usize,
    pub only_for_tests: bool,
}

pub fn dependencies(manifest: &str) -> Vec<Dependency<'_>> {
    let mut found = Vec::new();
    let mut section = "";
    for (index, text) in manifest.lines().enumerate() {
        let line = index + 1;
        let text = text.trim();
        if let Some(header) = text.strip_prefix('[') {
            section = header.trim_end_matches(']');
            // `[dependencies.name]` names one by itself.
            found.extend(
                section
                    .split_once("dependencies.")
                    .map(|(kind, name)| dependency(kind, name, line)),
            );
        } else if section.ends_with("dependencies") && !text.starts_with('#') {
            let name = text.split(['.', ' ', '=']).next().unwrap_or_default();
            found.extend((!name.is_empty()).then(|| dependency(section, name, line)));
        }
    }
    found
}

fn dependency<'a>(section: &str, name: &'a str, line: usize) -> Dependency<'a> {
    Dependency {
        name: name.trim_matches('"'),
        line,
        only_for_tests: section.ends_with("dev-") || section.ends_with("dev-dependencies"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_name_a_dependency_is_seen() {
        let manifest = "[package]\nname = \"x\"\n\n[dependencies]\n# why\nkvasir-kv.workspace = true\nlibm = \"1\"\n\n\
             [target.'cfg(unix)'.dependencies]\nrustix = { version = \"1\" }\n[dependencies.half]\nversion = \"2\"\n\
             [dev-dependencies]\nproptest.workspace = true\n[features]\ncuda = []\n";
        let found = dependencies(manifest);
        let names: Vec<_> = found
            .iter()
            .map(|found| (found.name, found.line, found.only_for_tests))
            .collect();
        assert_eq!(
            names,
            [
                ("kvasir-kv", 6, false),
                ("libm", 7, false),
                ("rustix", 10, false),
                ("half", 11, false),
                ("proptest", 14, true)
            ]
        );
    }
}
