//! What fits, as tables: a row for each model, or for each kind of GPU.

use kvasir_runtime::ByteSize;

use super::{Question, fit::Fit, gpus::MemoryClass, report::ModelReport};
use crate::lab::table::{Table, or_dash};

pub fn fewest(models: &[ModelReport], question: &Question) -> Table {
    let title = "GPUs that hold the weights, at least";
    let heads = ["model", "parameters", "weights", "as"].map(str::to_owned).into_iter();
    let mut table = Table::new(
        title,
        heads.chain(question.gpus.iter().map(|class| class.label.clone())),
    );
    for model in models {
        let cells = [
            model.model.clone(),
            format!("{:.2} B", model.parameters as f64 / 1e9),
            ByteSize(model.weight_bytes).to_string(),
            model.weights_stored_as.clone(),
        ];
        let ranks = on_fewest(model, question, |fit| Some(fit.ranks.to_string()));
        table.row(cells.into_iter().chain(ranks));
    }
    table
}

pub fn longest(models: &[ModelReport], question: &Question) -> Table {
    let title = "Tokens of the longest request on so many, alone (= as long as the model was trained for)";
    fit_matrix(title, models, question, |fit| Some(tokens(fit)))
}

pub fn requests(models: &[ModelReport], question: &Question, context: u32) -> Table {
    let title = format!("Requests of {context} tokens at a time on so many (- longer than the model was trained for)");
    fit_matrix(&title, models, question, |fit| {
        let at = fit.concurrent.iter().find(|at| at.context_tokens == context)?;
        Some(at.requests.to_string())
    })
}

fn tokens(fit: &Fit) -> String {
    match fit.context_limited_by {
        "trained" => format!("={}", fit.context_max_tokens),
        _ => fit.context_max_tokens.to_string(),
    }
}

fn fit_matrix(title: &str, models: &[ModelReport], question: &Question, of: impl Fn(&Fit) -> Option<String>) -> Table {
    let gpus = question.gpus.iter().map(|class| class.label.clone());
    let mut table = Table::new(title, ["model".to_owned()].into_iter().chain(gpus));
    for model in models {
        let cells = [model.model.clone()].into_iter();
        table.row(cells.chain(on_fewest(model, question, &of)));
    }
    table
}

/// A cell for each kind of GPU.
fn on_fewest(model: &ModelReport, question: &Question, of: impl Fn(&Fit) -> Option<String>) -> Vec<String> {
    let cell = |class: &MemoryClass| {
        let fit = model.fits_on(class).find(|fit| fit.fewest);
        or_dash(fit.and_then(&of))
    };
    question.gpus.iter().map(cell).collect()
}

/// On the fewest of each kind; where a kind was named, also on the ranks that were asked for.
pub fn fits(model: &ModelReport, question: &Question, contexts: &[u32]) -> Table {
    let basis = model.fits_basis.filter(|basis| *basis == "analytic");
    let basis = basis.map_or_else(String::new, |basis| format!(" ({basis})"));
    let title =
        format!("What fits{basis}: tokens of the longest request alone, and requests by their tokens at a time");
    let heads = ["GPU", "memory", "ranks", "weights on each", "longest"].map(str::to_owned);
    let mut table = Table::new(title, heads.into_iter().chain(contexts.iter().map(u32::to_string)));
    for class in &question.gpus {
        let name = match class.names.is_empty() {
            true => "--memory".to_owned(),
            false => class.names.join(", "),
        };
        let shown = model.fits_on(class).filter(|fit| fit.fewest || question.gpus_given);
        let mut shown = shown.peekable();
        if shown.peek().is_none() {
            let none = std::iter::repeat_n("-".to_owned(), 3 + contexts.len());
            table.row([name.clone(), class.label.clone()].into_iter().chain(none));
        }
        for fit in shown {
            let longest = (fit.context_max_tokens > 0).then(|| tokens(fit));
            let cells = [
                name.clone(),
                class.label.clone(),
                fit.ranks.to_string(),
                ByteSize(fit.rank_weight_bytes).to_string(),
                or_dash(longest),
            ];
            let requests = fit.concurrent.iter().map(|at| at.requests.to_string());
            table.row(cells.into_iter().chain(requests));
        }
    }
    table
}
