//! `kvasir lab gqa`: the bytes that ranks find in their cells are those of the founding formula, for every group size, KV
//! dtype and number of ranks, and what is refused is told with what would work.

#![allow(clippy::unwrap_used)]

use kvasir_tests::cluster_sandbox::kvasir;
use serde_json::Value;

const HEADS: u64 = 8;
const HEAD_DIM: u64 = 32;
const LAYERS: u64 = 2;
const BLOCK_SIZE: u64 = 64;
/// Around the ends of blocks.
const POINTS: [u64; 6] = [1, 63, 64, 65, 128, 200];

/// Bytes of 32 dimensions: q8_0 has 32 of one byte and a scale of two.
const DTYPES: [(&str, u64); 3] = [("f32", 128), ("f16", 64), ("q8_0", 34)];

fn lab(line: &str) -> std::process::Output {
    kvasir(["lab", "gqa"].into_iter().chain(line.split_whitespace()))
}

/// Of one small model.
fn report(line: &str) -> Value {
    let points: Vec<String> = POINTS.iter().map(u64::to_string).collect();
    let shape = format!(
        "--json --hidden 256 --ffn 512 --heads {HEADS} --layers {LAYERS} --threads 1 --tokens 2 --rounds 1 --context 256 \
         --points {}",
        points.join(",")
    );
    let output = lab(&format!("{shape} {line}"));
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_cells_of_every_group_size_dtype_and_rank_count_take_what_the_formula_says() {
    for (dtype, row_bytes) in DTYPES {
        for (ranks, batch) in [(1, 1), (2, 3), (3, 1), (5, 2)] {
            let told = format!("{dtype}, {ranks} ranks, {batch} sequences");
            let report = report(&format!("--kv-dtype {dtype} --ranks {ranks} --batch {batch}"));
            let rows = report["rows"].as_array().unwrap();
            // Of 8 query heads: G is 1, 2, 4 or 8.
            assert_eq!(rows.len(), 4 * POINTS.len(), "{told}");
            for (row, (group_size, tokens)) in rows.iter().zip(
                [1, 2, 4, 8]
                    .into_iter()
                    .flat_map(|group| POINTS.map(|point| (group, point))),
            ) {
                let number = |key: &str| row[key].as_u64().unwrap();
                let told = format!("{told}: {row}");
                assert_eq!(
                    (number("group_size"), number("context")),
                    (group_size, tokens),
                    "{told}"
                );
                let token = batch * LAYERS * 2 * (HEADS / group_size) * row_bytes * (HEAD_DIM / 32);
                assert_eq!(number("formula_bytes"), token * tokens, "{told}");
                let rounded = token * tokens.next_multiple_of(BLOCK_SIZE);
                assert_eq!(number("cache_bytes"), rounded, "{told}");
                assert_eq!(number("rounding_bytes"), rounded - token * tokens, "{told}");
                assert!(row["step"]["median_us"].as_f64().unwrap() > 0.0, "{told}");
                assert!(row["attention"]["median_us"].as_f64().unwrap() > 0.0, "{told}");
            }
        }
    }
}

#[test]
fn every_token_may_be_fed_and_other_arithmetic_used() {
    let fed = report("--every-token");
    assert_eq!(fed["every_token"], true);
    assert_eq!(fed["rows"][0]["cache_bytes"], report("")["rows"][0]["cache_bytes"]);
    // It keeps no cells, and does not tell what attention takes.
    let candle = report("--backend candle --groups 4");
    let row = &candle["rows"][0];
    assert_eq!((&row["cache_bytes"], &row["attention"]), (&Value::Null, &Value::Null));
    assert!(row["step"]["median_us"].as_f64().unwrap() > 0.0);
}

#[test]
fn results_are_written_as_json_csv_markdown_and_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("new");
    let printed = report(&format!("--out {}", out.display()));
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&read("gqa.json")).unwrap(), printed);
    assert_eq!(read("gqa.csv").lines().count(), 1 + 4 * POINTS.len());
    assert!(read("gqa.md").contains("| G |"));
    for stem in ["cache-size", "time-per-token", "attention-time", "attention-by-g"] {
        let svg = read(&format!("{stem}.svg"));
        assert!(svg.contains("G") && svg.contains("2 blocks, hidden size 256"), "{stem}");
        assert!(
            std::fs::read(out.join(format!("{stem}.png")))
                .unwrap()
                .starts_with(b"\x89PNG")
        );
    }
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    for (line, named) in [
        ("--groups 5", "1, 2, 4, 8, 16, 32"),
        ("--kv-dtype q8_0 --head-dim 80 --groups 2", "f16 or f32"),
        ("--block-size 48", "16, 32, 64, 128 or 256"),
        ("--context 131072 --batch 1024", "a shorter --context"),
        (
            "--out /dev/null/x --rounds 1 --hidden 256 --heads 8 --context 64",
            "/dev/null/x",
        ),
    ] {
        let output = lab(line);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{line}: {error}");
        assert!(
            error.contains(named) && error.trim().lines().count() == 1,
            "{line}: {error}"
        );
    }
}
