//! The KV cache by model, variant, dtype, ranks and length, a line each, for spreadsheets and plots.

use std::fmt::Write as _;

use super::report::{KvReport, ModelReport, Report, VariantReport};

const HEAD: &str = "model,variant,published,basis,kv_dtype,ranks,context_tokens,allocated_tokens,bytes,largest_rank_bytes,\
                    replicating_rank_bytes\n";

pub fn text(report: &Report) -> String {
    let mut text = HEAD.to_owned();
    for model in &report.models {
        for variant in &model.kv {
            for kv in &variant.by_dtype {
                add(&mut text, model, variant, kv);
            }
        }
    }
    text
}

fn add(text: &mut String, model: &ModelReport, variant: &VariantReport, kv: &KvReport) {
    for ranks in &kv.by_ranks {
        for request in &kv.by_context {
            let on_rank = |bytes_per_token: u64| request.allocated_tokens * bytes_per_token;
            let replicating = ranks.replicating_rank_bytes_per_token.map(on_rank);
            let line = writeln!(
                text,
                "{},{},{},{},{},{},{},{},{},{},{}",
                quoted(&model.model),
                variant.variant,
                variant.published,
                variant.basis,
                kv.kv_dtype,
                ranks.ranks,
                request.context_tokens,
                request.allocated_tokens,
                request.bytes,
                on_rank(ranks.largest_rank_bytes_per_token),
                replicating.map_or_else(String::new, |bytes| bytes.to_string())
            );
            line.expect("a string takes any line");
        }
    }
}

/// Names of models come from files.
fn quoted(name: &str) -> String {
    match name.contains(|letter: char| letter == ',' || letter == '"' || letter.is_control()) {
        true => format!("\"{}\"", name.replace('"', "\"\"").replace(char::is_control, " ")),
        false => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_break_no_line() {
        assert_eq!(quoted("llama-3.1-8b"), "llama-3.1-8b");
        assert_eq!(quoted("a \"b\", c\nd"), "\"a \"\"b\"\", c d\"");
        assert_eq!(HEAD.matches(',').count(), 10);
    }
}
