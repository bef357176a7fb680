//! What KV caches take, as tables: by dtype and length, by variant, by ranks.

use kvasir_kv::KvDtype;
use kvasir_runtime::ByteSize;

use super::{
    Question,
    report::{ModelReport, VariantReport},
};
use crate::lab::table::{Table, or_dash};

/// Group sizes of which each has a column where models are compared, besides those that are published.
const COMPARED_GROUPS: [&str; 3] = ["GQA G=2", "GQA G=4", "GQA G=8"];

/// A row's name, and what is told of it.
pub type Row<'a> = (String, &'a VariantReport);

pub fn by_context(of: &str, rows: &[Row<'_>], question: &Question, contexts: &[u32]) -> Table {
    let first = question.first_dtype();
    let title = format!(
        "KV cache of a token by dtype, and of one request by its tokens ({first}, blocks of {})",
        question.block_size
    );
    // Rows that are variants say it themselves.
    let attention = (of != "variant").then(|| "attention".to_owned());
    let of_token = question.kv_dtypes.iter().map(|dtype| format!("{dtype} token"));
    let heads = [of.to_owned()]
        .into_iter()
        .chain(attention.clone())
        .chain(["basis".to_owned()]);
    let mut table = Table::new(title, heads.chain(of_token).chain(contexts.iter().map(u32::to_string)));
    for (label, variant) in rows {
        let token = |dtype: &KvDtype| or_dash(variant.in_dtype(*dtype).map(|kv| ByteSize(kv.bytes_per_token)));
        let request = |context: &u32| {
            let request = variant.in_dtype(first).and_then(|kv| kv.request(*context));
            or_dash(request.map(|request| ByteSize(request.bytes)))
        };
        let name = attention.as_ref().map(|_| variant.variant.clone());
        let cells = [label.clone()]
            .into_iter()
            .chain(name)
            .chain([variant.basis.to_owned()]);
        let cells = cells.chain(question.kv_dtypes.iter().map(token));
        table.row(cells.chain(contexts.iter().map(request)));
    }
    table
}

pub fn by_variant(models: &[ModelReport], question: &Question) -> Table {
    let first = question.first_dtype();
    let title = format!("KV cache of a token by variant ({first}); * as published, MLA and TPA are analytic");
    let columns = compared_variants(models);
    let heads = columns.iter().map(|label| label.trim_start_matches("GQA ").to_owned());
    let mut table = Table::new(title, ["model".to_owned()].into_iter().chain(heads));
    for model in models {
        let cell = |label: &String| {
            // A column for all sizes of latents, and one for all ranks of factors.
            let variant = model.kv.iter().find(|variant| match label.as_str() {
                "MLA" | "TPA" => variant.variant.starts_with(label),
                _ => variant.variant == *label,
            });
            or_dash(variant.and_then(|variant| {
                let star = if variant.published { "*" } else { "" };
                let kv = variant.in_dtype(first)?;
                Some(format!("{star}{}", ByteSize(kv.bytes_per_token)))
            }))
        };
        table.row([model.model.clone()].into_iter().chain(columns.iter().map(cell)));
    }
    table
}

/// From most to least: all heads, groups, one head; then what is analytic.
fn compared_variants(models: &[ModelReport]) -> Vec<String> {
    let published = models.iter().filter_map(ModelReport::published);
    let mut groups: Vec<String> = published
        .map(|variant| variant.variant.clone())
        .filter(|label| label.starts_with("GQA"))
        .chain(COMPARED_GROUPS.map(str::to_owned))
        .collect();
    // As numbers: of two, the shorter one is less.
    groups.sort_by(|a, b| a.len().cmp(&b.len()).then(a.cmp(b)));
    groups.dedup();
    let all_heads = ["MHA".to_owned()].into_iter();
    let others = ["MQA", "MLA", "TPA"].map(str::to_owned);
    all_heads.chain(groups).chain(others).collect()
}

pub fn by_ranks(of: &str, rows: &[Row<'_>], question: &Question) -> Table {
    let first = question.first_dtype();
    let title = format!("KV cache of a token on the rank that holds most, by ranks ({first})");
    let ranks = question.ranks.iter().map(|&ranks| match ranks {
        1 => "1 rank".to_owned(),
        ranks => format!("{ranks} ranks"),
    });
    // One rank holds the same everywhere.
    let several = question.ranks.iter().filter(|&&ranks| ranks > 1);
    let heads = [of.to_owned(), "basis".to_owned()].into_iter().chain(ranks);
    let mut table = Table::new(title, heads.chain(several.clone().map(|ranks| format!("even {ranks}"))));
    for (label, variant) in rows {
        let kv = variant.in_dtype(first);
        let on = |ranks: &u32| kv?.by_ranks.iter().find(|on| on.ranks == *ranks);
        let largest = |ranks: &u32| or_dash(on(ranks).map(|on| ByteSize(on.largest_rank_bytes_per_token)));
        let even = |ranks: &u32| {
            or_dash(
                on(ranks)
                    .and_then(|on| on.replicating_rank_bytes_per_token)
                    .map(ByteSize),
            )
        };
        let cells = [label.clone(), variant.basis.to_owned()].into_iter();
        let cells = cells.chain(question.ranks.iter().map(largest));
        table.row(cells.chain(several.clone().map(even)));
    }
    table
}
