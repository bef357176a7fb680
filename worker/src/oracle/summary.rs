//! What a vocab unit's logits come to, written down plainly.

use crate::arith::UnitSummary;

/// logits: one token's, of one unit; not empty.
pub(super) fn summarize(logits: &[f32]) -> UnitSummary {
    let mut argmax = 0;
    for (row, logit) in logits.iter().enumerate() {
        // Ties stay with the lowest token.
        if *logit > logits[argmax] {
            argmax = row;
        }
    }
    let max = logits[argmax];
    let sum_exp: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    UnitSummary {
        max,
        argmax,
        sum_exp: sum_exp as f32,
        finite: logits.iter().all(|logit| logit.is_finite()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lowest_row() {
        let summary = summarize(&[-1.0, 2.0, 0.5, 2.0]);
        assert_eq!((summary.argmax, summary.max, summary.finite), (1, 2.0, true));
        assert!((summary.sum_exp - (2.0 + (-3.0f32).exp() + (-1.5f32).exp())).abs() < 1e-6);
    }

    #[test]
    fn a_logit_that_is_not_finite_is_said() {
        for logits in [
            [0.0, f32::NAN],
            [f32::NAN, 0.0],
            [f32::INFINITY, 0.0],
            [0.0, f32::NEG_INFINITY],
        ] {
            assert!(!summarize(&logits).finite, "{logits:?}");
        }
    }
}
