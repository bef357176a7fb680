//! What was found for one file: a table for people, and all samples as JSON.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::case::Case;
use super::roofline::Roofline;
use super::samples::Samples;
use super::side::Side;

const LEGEND: &str = "tokens/s, median (range) of the rounds; * the best peer, to which the ratios are: of the medians (range \
                      of the rounds' own)";

#[derive(Debug)]
pub struct Report {
    pub model: PathBuf,
    pub cases: Vec<Case>,
    pub sides: Vec<Side>,
    pub samples: Samples,
    pub conditions: Conditions,
}

/// Under which the figures came about.
#[derive(Debug)]
pub struct Conditions {
    pub date: String,
    pub cpu: String,
    pub cores: usize,
    pub load_before: String,
    pub load_after: String,
    pub rounds: u32,
    pub kvasir: String,
    pub peer: String,
    pub roofline: Roofline,
    pub notes: Vec<String>,
    /// Of the last round, side by side.
    pub commands: Vec<(Side, String)>,
}

impl Report {
    pub fn text(&self) -> String {
        let name = self.model.file_name().unwrap_or_default().display();
        let mut lines = vec![format!("## {name}"), String::new()];
        lines.extend(table(&self.rows()));
        lines.extend([String::new(), LEGEND.to_owned()]);
        lines.extend(self.conditions.roofline.line(&self.samples, &self.sides));
        lines.extend(self.conditions.lines());
        lines.join("\n") + "\n"
    }

    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self.cases.iter().map(|&case| self.case_json(case)).collect();
        json!({"model": self.model.display().to_string(), "conditions": self.conditions.json(), "rows": rows})
    }

    /// The header, and a row for each case.
    fn rows(&self) -> Vec<Vec<String>> {
        let sides = self.sides.iter().map(Side::to_string);
        let ratios = self.ours().map(|side| format!("ratio of {side}"));
        let header = ["test".to_owned()].into_iter().chain(sides).chain(ratios);
        let mut rows = vec![header.collect()];
        rows.extend(self.cases.iter().map(|&case| self.row(case)));
        rows
    }

    fn row(&self, case: Case) -> Vec<String> {
        let best = self.samples.best_peer(case, &self.sides);
        let figure = |side: &Side| match self.samples.spread(case, *side) {
            None => "-".to_owned(),
            Some(spread) if Some(*side) == best => format!("{spread} *"),
            Some(spread) => spread.to_string(),
        };
        let ratio = |side| match best.and_then(|best| self.samples.ratio(case, side, best)) {
            None => "-".to_owned(),
            Some(ratio) => format!("{ratio:#}"),
        };
        let mut row = vec![case.to_string()];
        row.extend(self.sides.iter().map(figure));
        row.extend(self.ours().map(ratio));
        row
    }

    fn ours(&self) -> impl Iterator<Item = Side> {
        self.sides.iter().copied().filter(|side| side.is_kvasir())
    }

    fn case_json(&self, case: Case) -> Value {
        let best = self.samples.best_peer(case, &self.sides);
        let samples = self.sides.iter().map(|&side| (side, self.samples.of(case, side)));
        let measured = samples.filter(|(_, samples)| !samples.is_empty());
        let samples: Map<_, _> = measured.map(|(side, of)| (side.to_string(), json!(of))).collect();
        let ratio = |side| Some((side, self.samples.ratio(case, side, best?)?));
        let found = self.ours().filter_map(ratio);
        let ratios: Map<_, _> = found
            .map(|(side, of)| {
                (
                    side.to_string(),
                    json!({"median": of.median, "min": of.min, "max": of.max}),
                )
            })
            .collect();
        json!({
            "test": case.test(), "tokens": case.tokens(), "depth": case.depth(), "streams": case.streams(),
            "tokens_per_s": samples, "best_peer": best.map(|side| side.to_string()), "ratios": ratios,
        })
    }
}

impl Conditions {
    fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!(
                "{}, {}, cores: {}, rounds: {}",
                self.date, self.cpu, self.cores, self.rounds
            ),
            format!("load average: {} before, {} after", self.load_before, self.load_after),
            self.kvasir.clone(),
            self.peer.clone(),
        ];
        lines.extend(self.notes.iter().cloned());
        lines.extend(self.commands.iter().map(|(side, line)| format!("{side}: {line}")));
        lines
    }

    fn json(&self) -> Value {
        let commands = self
            .commands
            .iter()
            .map(|(side, line)| json!({"side": side.to_string(), "line": line}));
        json!({
            "date": self.date, "cpu": self.cpu, "cores": self.cores, "rounds": self.rounds,
            "load_before": self.load_before, "load_after": self.load_after,
            "kvasir": self.kvasir, "peer": self.peer, "memory": self.roofline.json(), "notes": self.notes,
            "commands": commands.collect::<Vec<_>>(),
        })
    }
}

/// With bars between columns of equal width and a rule below the first row, as Markdown wants it.
fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("| {cell:width$} "));
        cells.collect::<String>() + "|"
    };
    let mut lines: Vec<String> = rows.iter().map(line).collect();
    let rule: String = widths
        .iter()
        .map(|width| format!("|{}", "-".repeat(width + 2)))
        .collect();
    lines.insert(1, rule + "|");
    lines
}

#[cfg(test)]
mod tests {
    use super::super::case::{DECODE, Extent};
    use super::super::side;
    use super::*;

    fn report() -> Report {
        let cases = Extent {
            depths: vec![],
            streams: vec![],
        }
        .cases();
        let sides = side::all(2, true);
        let mut samples = Samples::default();
        let rates = [
            (DECODE, sides[0], [300.0, 280.0, 290.0]),
            (DECODE, sides[1], [250.0, 260.0, 255.0]),
            (DECODE, sides[2], [75.0, 80.0, 70.0]),
            (DECODE, sides[3], [100.0, 112.0, 116.0]),
            (DECODE, sides[4], [60.0, 62.0, 61.0]),
        ];
        for (case, side, rounds) in rates {
            rounds.into_iter().for_each(|rate| samples.add(case, side, rate));
        }
        Report {
            model: "models/small.gguf".into(),
            cases,
            sides,
            samples,
            conditions: conditions(),
        }
    }

    fn conditions() -> Conditions {
        Conditions {
            date: "2026-11-27 18:00 UTC".to_owned(),
            cpu: "EPYC".to_owned(),
            cores: 2,
            load_before: "0.1 0.2 0.3".to_owned(),
            load_after: "2.0 1.0 0.5".to_owned(),
            rounds: 3,
            kvasir: "kvasir 0.1.0".to_owned(),
            peer: "llama.cpp 0c1e570".to_owned(),
            roofline: Roofline {
                threads: 2,
                gb_per_s: vec![40.0],
                bytes_per_token: 100_000_000,
            },
            notes: vec!["depth 8192 left out".to_owned()],
            commands: vec![(Side::Peer { threads: 1 }, "llama-bench -t 1".to_owned())],
        }
    }

    #[test]
    fn the_table_marks_the_best_peer_and_leaves_out_what_was_not_measured() {
        let text = report().text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "## small.gguf");
        let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
        assert_eq!(cells(lines[2])[1..3], ["test", "Kvasir 2x1"]);
        assert_eq!(cells(lines[2])[7..9], ["ratio of Kvasir 2x1", "ratio of Kvasir 1x2"]);
        assert!(lines[3].starts_with("|---") && lines[3].len() == lines[2].len());
        assert_eq!(cells(lines[4])[1..4], ["prefill 512", "-", "-"]);
        let decode = [
            "decode 128",
            "290 (280-300)",
            "255 (250-260)",
            "75.0 (70.0-80.0)",
            "112 (100-116) *",
            "61.0 (60.0-62.0)",
            "2.59 (2.50-3.00)",
            "2.28 (2.20-2.50)",
        ];
        assert_eq!(cells(lines[5])[1..9], decode);
    }

    #[test]
    fn the_conditions_follow_the_table() {
        let text = report().text();
        for line in [
            "2026-11-27 18:00 UTC, EPYC, cores: 2, rounds: 3",
            "load average: 0.1 0.2 0.3 before, 2.0 1.0 0.5 after",
            "memory: 2 threads read 40.0 (40.0-40.0) GB/s; decode 128 reads 100 MB of weights a token, of what memory gives: \
             Kvasir 2x1 72 %, Kvasir 1x2 64 %, llama.cpp 1 thread 19 %, llama.cpp 2 threads 28 %, llama.cpp RPC 2x1 15 %",
            "depth 8192 left out",
            "llama.cpp 1 thread: llama-bench -t 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }

    #[test]
    fn every_sample_is_in_the_json() {
        let json = report().json();
        let decode = &json["rows"][1];
        assert_eq!(decode["tokens_per_s"]["Kvasir 2x1"], json!([300.0, 280.0, 290.0]));
        assert_eq!(decode["best_peer"], "llama.cpp 2 threads");
        assert_eq!(decode["ratios"]["Kvasir 1x2"]["max"], 2.5);
        assert_eq!(json["rows"][0]["best_peer"], Value::Null);
        assert_eq!(json["conditions"]["commands"][0]["line"], "llama-bench -t 1");
        assert_eq!(json["conditions"]["memory"]["gb_per_s"], json!([40.0]));
    }
}
