//! What people read: for one model its variants and all that fits; for several, each one's published variant side by side.

use kvasir_runtime::ByteSize;

use super::{
    Question,
    fit_tables::{fewest, fits, longest, requests},
    kv_tables::{Row, by_context, by_ranks, by_variant},
    report::{ModelReport, Report, VariantReport},
};

pub fn text(report: &Report, question: &Question) -> String {
    match report.models.as_slice() {
        [model] => text_of_one(model, question),
        models => text_of_several(models, question),
    }
}

fn text_of_one(model: &ModelReport, question: &Question) -> String {
    let label = |variant: &VariantReport| match variant.published {
        true => format!("*{}", variant.variant),
        false => format!(" {}", variant.variant),
    };
    let rows: Vec<Row<'_>> = model.kv.iter().map(|variant| (label(variant), variant)).collect();
    let contexts = model.contexts();
    [
        about(model),
        by_context("variant", &rows, question, &contexts).text(),
        by_ranks("variant", &rows, question).text(),
        "  * as published\n".to_owned(),
        legend(),
        fits(model, question, &contexts).text(),
        fit_legend(question),
    ]
    .concat()
}

fn about(model: &ModelReport) -> String {
    let heads = model
        .num_kv_heads
        .map_or_else(String::new, |heads| format!(", {heads} KV heads"));
    let sizes = format!(
        "{}: {} layers, hidden size {}, {} query heads{heads}, trained for {} tokens",
        model.model, model.num_layers, model.hidden_size, model.num_q_heads, model.context_tokens
    );
    let weights = format!(
        "{} parameters, {} as {}\nfrom {}",
        in_thousands(model.parameters),
        ByteSize(model.weight_bytes),
        model.weights_stored_as,
        model.source
    );
    let notes: String = model.notes.iter().map(|note| format!("note: {note}\n")).collect();
    format!("{sizes}\n{weights}\n{notes}")
}

fn text_of_several(models: &[ModelReport], question: &Question) -> String {
    let rows: Vec<Row<'_>> = models
        .iter()
        .filter_map(|model| Some((model.model.clone(), model.published()?)))
        .collect();
    let context = question.compared_context();
    [
        by_context("model", &rows, question, &question.contexts).text(),
        by_variant(models, question).text(),
        by_ranks("model", &rows, question).text(),
        legend(),
        fewest(models, question).text(),
        longest(models, question).text(),
        requests(models, question, context).text(),
        gpu_legend(models, question),
        fit_legend(question),
        notes(models),
    ]
    .concat()
}

fn legend() -> String {
    "  analytic: by the formula of its paper; Kvasir has no such cells yet\n  even N: an engine that gives each of N ranks as \
     many heads, and copies heads where they are too few; - it refuses\n"
        .to_owned()
}

/// Which GPUs have which memory, and of which models what fits is no sum of cells.
fn gpu_legend(models: &[ModelReport], question: &Question) -> String {
    let named = question.gpus.iter().filter(|class| !class.names.is_empty());
    let gpus: String = named
        .map(|class| format!("  {}: {}\n", class.label, class.names.join(", ")))
        .collect();
    let analytic = models.iter().filter(|model| model.fits_basis == Some("analytic"));
    let analytic: Vec<&str> = analytic.map(|model| model.model.as_str()).collect();
    match analytic.is_empty() {
        true => gpus,
        false => format!("{gpus}  analytic: {}\n", analytic.join(", ")),
    }
}

fn fit_legend(question: &Question) -> String {
    format!(
        "  KV cache as {}, {} % of each GPU left aside, weights divided evenly, a GB of GPU memory as 10^9 bytes\n",
        question.first_dtype(),
        question.reserve_percent
    )
}

fn notes(models: &[ModelReport]) -> String {
    let of_model = |model: &ModelReport| -> String {
        let note = |note: &String| format!("note: {}: {note}\n", model.model);
        model.notes.iter().map(note).collect()
    };
    models.iter().map(of_model).collect()
}

/// `8,030,261,248`.
fn in_thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::memory::tests::question;

    fn printed(line: &str) -> String {
        let question = question(line).unwrap();
        text(&Report::new(&question).unwrap(), &question)
    }

    #[test]
    fn tables_fit_a_terminal_and_mark_what_is_analytic() {
        for line in ["", "--preset llama-3.1-405b", "--preset deepseek-v3", "--preset t6-xl"] {
            let text = printed(line);
            let widest = text.lines().map(|line| line.chars().count()).max();
            assert!(widest <= Some(120), "{line}: {widest:?} columns");
            // Of every row that names a latent or factors, and of every model that has them.
            let rows = text
                .lines()
                .filter(|line| line.contains("MLA 5") || line.contains("TPA R"));
            assert!(rows.clone().count() > 1, "{line}");
            assert!(rows.clone().all(|row| row.contains("analytic")), "{text}");
        }
        assert!(printed("").contains("analytic: deepseek-v2, deepseek-v3, t6-xl"));
    }

    #[test]
    fn other_numbers_of_ranks_are_shown_of_gpus_that_were_named() {
        let text = printed("--preset llama-3.1-70b --gpu h100 --ranks 1,3");
        let ranks: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("  H100"))
            .filter_map(|line| line.split_whitespace().nth(3))
            .collect();
        assert_eq!(ranks, ["1", "2", "3"]);
    }

    #[test]
    fn long_numbers_are_read_by_threes() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (671_026_419_200, "671,026,419,200"),
        ] {
            assert_eq!(in_thousands(number), text);
        }
    }
}
