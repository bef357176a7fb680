//! Compares a published tokenizer.json with what Python made of it.
//!
//!     python tests/reference/tokenizer_families.py NAME=tokenizer.json     writes NAME.json
//!     cargo run -p kvasir-tests --example compare_tokenizer -- tokenizer.json NAME.json [model.gguf]
//!
//! With a GGUF file of the same vocabulary, its tokenizer is compared as well.

use std::{path::Path, sync::Arc, time::Instant};

use anyhow::{Context, Result, ensure};
use kvasir_kv::TokenId;
use kvasir_model::{Checkpoint, IncrementalDetokenizer, TokenRoles, Tokenizer};
use serde_json::Value;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [tokenizer, rows, gguf @ ..] = arguments.as_slice() else {
        anyhow::bail!("expected tokenizer.json, NAME.json and perhaps model.gguf");
    };
    let bytes = std::fs::read(tokenizer).context(tokenizer.clone())?;
    let start = Instant::now();
    let from_json = Tokenizer::from_json(&bytes, &TokenRoles::default())?;
    println!("{} tokens, read in {:?}", from_json.vocab_size(), start.elapsed());
    let rows: Value = serde_json::from_slice(&std::fs::read(rows)?)?;
    compare(tokenizer, from_json, &rows)?;
    for path in gguf {
        compare(path, Checkpoint::open(path)?.tokenizer()?, &rows)?;
    }
    Ok(())
}

fn compare(name: &str, tokenizer: Tokenizer, rows: &Value) -> Result<()> {
    let tokenizer = Arc::new(tokenizer);
    let strings = Path::new(env!("CARGO_MANIFEST_DIR")).join("reference/tokenizer_families/strings.json");
    let strings: Vec<String> = serde_json::from_slice(&std::fs::read(strings)?)?;
    let rows = rows["rows"].as_array().context("rows")?;
    let mut different = 0;
    for (text, row) in strings.iter().zip(rows) {
        if !agrees(&tokenizer, text, row)? {
            different += 1;
            println!("differs: {text:?}");
        }
    }
    println!("{name}: {different} of {} strings differ", rows.len());
    measure(&tokenizer, &strings)?;
    ensure!(different == 0, "see above");
    Ok(())
}

fn agrees(tokenizer: &Arc<Tokenizer>, text: &str, row: &Value) -> Result<bool> {
    let ids = |name: &str| {
        row.get(name)
            .map(|ids| serde_json::from_value::<Vec<u32>>(ids.clone()))
            .transpose()
    };
    let expected = ids("ids")?.context("ids")?;
    let plain = ids("plain_ids")?.unwrap_or_else(|| expected.clone());
    let decoded = row.get("decoded").and_then(Value::as_str).unwrap_or(text);
    let tokens = tokenizer.encode(text, true)?;
    let mut detokenizer = IncrementalDetokenizer::new(tokenizer.clone(), false);
    let mut pieces: String = tokens.iter().map(|token| detokenizer.push(*token)).collect();
    pieces += &detokenizer.finish();
    Ok(numbers(&tokens) == expected
        && numbers(&tokenizer.encode(text, false)?) == plain
        && tokenizer.decode(&tokens, false) == decoded
        && pieces == decoded)
}

fn numbers(tokens: &[TokenId]) -> Vec<u32> {
    tokens.iter().map(|token| token.0).collect()
}

fn measure(tokenizer: &Tokenizer, strings: &[String]) -> Result<()> {
    let mixed = strings.join("\n").repeat(20);
    let runs = [" ", "\n", "a", "9", "=", "漢"].map(|run| run.repeat(2_000_000 / run.len()));
    for text in [mixed].iter().chain(&runs) {
        let start = Instant::now();
        let tokens = tokenizer.encode(text, false)?;
        let name: String = text.chars().take(4).collect();
        println!(
            "{name:?}...: {} bytes, {} tokens, {:?}",
            text.len(),
            tokens.len(),
            start.elapsed()
        );
    }
    Ok(())
}
