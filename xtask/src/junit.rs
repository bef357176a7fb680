//! The JUnit report that nextest leaves: how many tests passed and failed, and how long each took.
//!
//! Reads what nextest writes, tag by tag; it is no XML parser.

use std::fmt::{self, Display};
use std::path::Path;

#[derive(Debug, Default)]
pub struct Report {
    tests: Vec<Test>,
}

#[derive(Debug)]
struct Test {
    name: String,
    seconds: f64,
    failed: bool,
}

impl Report {
    /// None where there is no report: then no test ran.
    pub fn read(path: &Path) -> Option<Self> {
        std::fs::read_to_string(path).ok().map(|text| Self::parse(&text))
    }

    fn parse(xml: &str) -> Self {
        let mut report = Self::default();
        for tag in xml.split('<').skip(1) {
            if tag.starts_with("testcase ") {
                report.tests.extend(Test::parse(tag));
            } else if (tag.starts_with("failure ") || tag.starts_with("error "))
                && let Some(test) = report.tests.last_mut()
            {
                test.failed = true;
            }
        }
        report
    }

    pub fn slowest(&self, count: usize) -> impl Iterator<Item = impl Display> {
        let mut by_time: Vec<&Test> = self.tests.iter().collect();
        by_time.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        by_time.into_iter().take(count)
    }
}

impl Test {
    fn parse(tag: &str) -> Option<Self> {
        let seconds = attribute(tag, "time")?.parse().ok()?;
        let name = format!("{} {}", attribute(tag, "classname")?, attribute(tag, "name")?);
        Some(Self {
            name,
            seconds,
            failed: false,
        })
    }
}

fn attribute<'a>(tag: &'a str, name: &str) -> Option<&'a str> {
    tag.split_once(&format!(" {name}=\""))?
        .1
        .split_once('"')
        .map(|(value, _)| value)
}

impl Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let num_failed = self.tests.iter().filter(|test| test.failed).count();
        write!(
            formatter,
            "{} passed, {num_failed} failed",
            self.tests.len() - num_failed
        )
    }
}

impl Display for Test {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{:>9.2} s  {}{}",
            self.seconds,
            self.name,
            if self.failed { "  FAILED" } else { "" }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const XML: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="3" failures="1" errors="0" time="2.5">
    <testsuite name="kvasir-kv" tests="3" disabled="0" errors="0" failures="1">
        <testcase name="pool::no_block_is_lost" classname="kvasir-kv" timestamp="2026-01-01T00:00:00" time="0.250">
        </testcase>
        <testcase name="units::cover" classname="kvasir-kv" time="2.000">
            <failure message="thread &apos;x&apos; panicked" type="test failure with exit code 101">text</failure>
        </testcase>
        <testcase name="ids::order" classname="kvasir-kv" time="0.010"/>
    </testsuite>
</testsuites>"#;

    #[test]
    fn a_failure_belongs_to_the_test_that_holds_it() {
        let report = Report::parse(XML);
        assert_eq!(report.to_string(), "2 passed, 1 failed");
        assert_eq!(
            report.tests.iter().map(|test| test.failed).collect::<Vec<_>>(),
            [false, true, false]
        );
    }

    #[test]
    fn the_slowest_tests_come_first() {
        let lines: Vec<String> = Report::parse(XML).slowest(2).map(|test| test.to_string()).collect();
        assert_eq!(
            lines,
            [
                "     2.00 s  kvasir-kv units::cover  FAILED",
                "     0.25 s  kvasir-kv pool::no_block_is_lost"
            ]
        );
    }

    #[test]
    fn without_a_report_nothing_is_claimed() {
        assert!(Report::read(Path::new("/nonexistent/junit.xml")).is_none());
    }
}
