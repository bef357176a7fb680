//! What one side gave in one round.

use anyhow::{Context, Result};
use serde_json::Value;

use super::case::Case;

#[derive(Debug, Default)]
pub struct Measured {
    /// Tokens a second.
    pub figures: Vec<(Case, f64)>,
    /// What a reader of the figures should know.
    pub notes: Vec<String>,
    /// As they were typed.
    pub commands: Vec<String>,
}

/// The figure of one case among the rows that a program printed.
pub fn figure(case: Case, rows: &[Value], of_row: impl Fn(&Value) -> Option<f64>) -> Result<(Case, f64)> {
    let found = rows
        .iter()
        .find_map(of_row)
        .filter(|rate| rate.is_finite() && *rate > 0.0);
    let rate = found.with_context(|| format!("no figure of {case} was printed"))?;
    Ok((case, rate))
}
