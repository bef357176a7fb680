//! What it costs to compute prompt tokens and to copy cells, as measured: from it is decided whether cached blocks of
//! another group are worth fetching.
//!
//! Both keep their last few measurements and answer with medians, so that one that stood still does not count.

use std::{collections::VecDeque, time::Duration};

use crate::Now;

const KEPT: usize = 16;
/// A step of fewer tokens is a step of answers: what it costs has little to do with its tokens.
const PROMPT_STEP_MIN: u32 = 32;
/// What was measured longer ago says nothing of a network now. What is then too slow is tried again so often.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// While nothing was measured: a copy takes so long besides its bytes, and so many bytes a second.
const COPY_FIXED: f64 = 2e-3;
const COPY_RATE: f64 = 1e9;

/// Seconds that a token of a prompt takes in a group.
#[derive(Debug, Default)]
pub(crate) struct PromptCost {
    per_token: VecDeque<f64>,
}

impl PromptCost {
    /// A step of so many tokens was done.
    pub fn observe(&mut self, tokens: u32, took: Duration) {
        if tokens >= PROMPT_STEP_MIN {
            keep(&mut self.per_token, took.as_secs_f64() / f64::from(tokens));
        }
    }

    /// `None` before the first prompt.
    pub fn per_token(&self) -> Option<f64> {
        median(self.per_token.iter().copied())
    }
}

/// Seconds that a copy takes from one group to another: so many, and so many per byte.
#[derive(Debug, Default)]
pub(crate) struct CopyCost {
    copies: VecDeque<Copied>,
}

#[derive(Clone, Copy, Debug)]
struct Copied {
    bytes: f64,
    secs: f64,
    when: Now,
}

impl CopyCost {
    pub fn observe(&mut self, bytes: u64, took: Duration, now: Now) {
        let copied = Copied {
            bytes: bytes as f64,
            secs: took.as_secs_f64(),
            when: now,
        };
        keep(&mut self.copies, copied);
    }

    /// A line through what was measured: the median of the slopes between copies of different sizes (Theil 1950, Sen
    /// 1968), and of what is left at no bytes.
    pub fn estimate(&self, bytes: u64, now: Now) -> Duration {
        let recent = self
            .copies
            .iter()
            .filter(|copied| now.since(copied.when) < FORGOTTEN_AFTER);
        let recent: Vec<Copied> = recent.copied().collect();
        let pairs = recent.iter().enumerate().flat_map(|(index, one)| {
            let others = recent[..index].iter();
            others.map(move |other| (other.bytes.min(one.bytes), other.bytes.max(one.bytes), one, other))
        });
        // Copies of about the same size say nothing of the price of a byte.
        let apart = pairs.filter(|(less, more, ..)| *more >= 1.5 * less && more > less);
        let slopes = apart.map(|(_, _, one, other)| (one.secs - other.secs) / (one.bytes - other.bytes));
        let slope = median(slopes).or_else(|| {
            let beyond = |copied: &Copied| (copied.secs - COPY_FIXED).max(0.0) / copied.bytes.max(1.0);
            median(recent.iter().map(beyond))
        });
        let slope = slope.map_or(1.0 / COPY_RATE, |slope| slope.max(0.0));
        let fixed = median(recent.iter().map(|copied| copied.secs - slope * copied.bytes));
        let fixed = fixed.map_or(COPY_FIXED, |fixed| fixed.max(0.0));
        Duration::from_secs_f64(fixed + slope * bytes as f64)
    }
}

fn keep<T>(kept: &mut VecDeque<T>, fresh: T) {
    if kept.len() == KEPT {
        kept.pop_front();
    }
    kept.push_back(fresh);
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Now = Now(Duration::from_secs(1));

    fn estimate_ms(copies: &[(u64, u64)], bytes: u64, now: Now) -> u128 {
        let mut cost = CopyCost::default();
        for (bytes, ms) in copies {
            cost.observe(*bytes, Duration::from_millis(*ms), NOW);
        }
        cost.estimate(bytes, now).as_millis()
    }

    #[test]
    fn a_copy_costs_what_the_line_through_the_last_ones_says() {
        assert_eq!(estimate_ms(&[], 8_000_000, NOW), 10, "nothing measured");
        let line = [(1_000_000, 15), (2_000_000, 25), (4_000_000, 45)];
        assert_eq!(estimate_ms(&line, 8_000_000, NOW), 85);
        assert_eq!(estimate_ms(&line, 0, NOW), 5);
    }

    #[test]
    fn one_that_stood_still_does_not_count() {
        let mut line: Vec<(u64, u64)> = (1..=8).map(|mb| (mb * 1_000_000, 5 + 10 * mb)).collect();
        line.push((3_000_000, 4000));
        assert!((80..=90).contains(&estimate_ms(&line, 8_000_000, NOW)));
    }

    #[test]
    fn copies_of_one_size_say_what_a_byte_costs_beyond_a_usual_start() {
        assert_eq!(estimate_ms(&[(1_000_000, 102); 3], 2_000_000, NOW), 202);
    }

    #[test]
    fn what_is_old_is_forgotten() {
        let later = Now(NOW.0 + FORGOTTEN_AFTER);
        assert_eq!(estimate_ms(&[(1_000_000, 5000)], 8_000_000, later), 10);
    }

    #[test]
    fn a_token_costs_what_prompts_have_cost_not_answers() {
        let mut cost = PromptCost::default();
        cost.observe(1, Duration::from_millis(10));
        assert_eq!(cost.per_token(), None);
        for ms in [64, 64, 6400] {
            cost.observe(64, Duration::from_millis(ms));
        }
        assert_eq!(cost.per_token(), Some(1e-3));
    }
}
