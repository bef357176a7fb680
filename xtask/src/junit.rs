//! The JUnit reports that nextest and pytest leave: how many tests passed and failed, why, and how long each took.
//!
//! Reads what these two write, tag by tag; it is no XML parser.

use std::fmt::{self, Display};
use std::path::Path;

/// Of what a failure says of itself.
const REASON_CHARS_MAX: usize = 600;

#[derive(Debug, Default)]
pub struct Report {
    tests: Vec<Test>,
}

#[derive(Debug)]
struct Test {
    name: String,
    seconds: f64,
    failed: bool,
    /// Of the failure, as far as the report has it.
    reason: String,
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
                let reason = attribute(tag, "message").map(unescaped).unwrap_or_default();
                test.reason = reason.chars().take(REASON_CHARS_MAX).collect();
            }
        }
        report
    }

    /// Of each test that failed, its name and why: at the end of a long log, where whoever sees only that finds it.
    pub fn failures(&self) -> impl Iterator<Item = String> {
        let failed = self.tests.iter().filter(|test| test.failed);
        failed.map(|test| format!("FAILED {}\n    {}", test.name, test.reason.replace('\n', "\n    ")))
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
            reason: String::new(),
        })
    }
}

fn attribute<'a>(tag: &'a str, name: &str) -> Option<&'a str> {
    tag.split_once(&format!(" {name}=\""))?
        .1
        .split_once('"')
        .map(|(value, _)| value)
}

/// `&amp;` last, or what it stands for would be read again.
fn unescaped(text: &str) -> String {
    [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&apos;", "'"),
        ("&#10;", "\n"),
        ("&#xA;", "\n"),
        ("&amp;", "&"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (escaped, meant)| text.replace(escaped, meant))
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
    fn a_failure_says_why() {
        let failures: Vec<String> = Report::parse(XML).failures().collect();
        assert_eq!(failures, ["FAILED kvasir-kv units::cover\n    thread 'x' panicked"]);
        let pytest = r#"<testsuites><testsuite name="pytest"><testcase classname="tests.clients.test_text" name="test_a" time="0.1">
            <failure message="AssertionError: 1 &lt; 2 &amp;lt;&#10;assert False">def test_a(): ...</failure></testcase>"#;
        let failures: Vec<String> = Report::parse(pytest).failures().collect();
        let reason = "    AssertionError: 1 < 2 &lt;\n    assert False";
        assert_eq!(failures, [format!("FAILED tests.clients.test_text test_a\n{reason}")]);
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
