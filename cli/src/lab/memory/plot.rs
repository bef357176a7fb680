//! The picture: the KV cache of one request by its tokens, a line for each model.

use std::path::Path;

use anyhow::Result;

use super::report::{ModelReport, Report};
use crate::lab::chart::{Axis, Chart, Line, Scale};

const GIB: f64 = (1u64 << 30) as f64;

/// kv-by-context.svg and .png, of what is published.
pub fn write(report: &Report, folder: &Path) -> Result<()> {
    let lines: Vec<Line> = report.models.iter().filter_map(line).collect();
    let dtype = report.models.iter().find_map(|model| model.fits_kv_dtype.as_deref());
    let chart = Chart {
        title: "KV cache of one request by its tokens".to_owned(),
        subtitle: format!(
            "{} cache, blocks of {} tokens; dashed: by the formula of its paper",
            dtype.unwrap_or_default(),
            report.block_size_tokens
        ),
        x: Axis {
            name: "tokens of the request".to_owned(),
            scale: Scale::Powers,
        },
        y: Axis {
            name: "KV cache, GiB".to_owned(),
            scale: Scale::Powers,
        },
        lines,
    };
    chart.write(folder, "kv-by-context")
}

/// `None` for a model that no dtype stores which was asked for.
fn line(model: &ModelReport) -> Option<Line> {
    let published = model.published()?;
    let kv = published.by_dtype.first()?;
    let point =
        |request: &super::report::RequestReport| (f64::from(request.context_tokens), request.bytes as f64 / GIB);
    let points = kv.by_context.iter().map(point).collect();
    Some(match published.basis {
        "analytic" => Line::computed(model.model.clone(), points),
        _ => Line::measured(model.model.clone(), points),
    })
}
