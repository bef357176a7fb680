//! What it costs to compute prompt tokens and to copy cells, as measured: from it is decided whether cached blocks of
//! another group are worth fetching.
//!
//! Both keep their last few measurements and answer with medians, so that one that stood still does not count.

use std::{collections::VecDeque, time::Duration};

use crate::Now;

const KEPT: usize = 32;
/// A step that computes fewer tokens of each of its prompts is a step of answers: it says little of what prompts cost.
const PROMPT_STEP_MIN: u32 = 8;
/// Two measurements tell a slope if one is of so many times as much as the other.
const APART: f64 = 1.5;
/// What was measured longer ago says nothing of a network now. What is then too slow is tried again so often.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// While nothing was measured: a copy takes so long besides its bytes, and so many bytes a second.
const COPY_FIXED: f64 = 2e-3;
const COPY_RATE: f64 = 1e9;

/// Seconds that steps take in a group: so many, and so many per token, and so many per position that a token looks back at.
#[derive(Debug, Default)]
pub(crate) struct PromptCost {
    steps: VecDeque<Step>,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    tokens: f64,
    /// Positions before a token, on average.
    depth: f64,
    secs: f64,
}

/// Tokens of a sequence that a step computes, after so many others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stretch {
    pub start: u32,
    pub tokens: u32,
}

impl Stretch {
    fn positions(self) -> f64 {
        f64::from(self.tokens) * (f64::from(self.start) + f64::from(self.tokens) / 2.0)
    }
}

impl PromptCost {
    /// A step of these was done.
    pub fn observe(&mut self, work: impl Iterator<Item = Stretch> + Clone, took: Duration) {
        if work.clone().any(|stretch| stretch.tokens >= PROMPT_STEP_MIN) {
            let tokens = work.clone().map(|stretch| f64::from(stretch.tokens)).sum();
            let positions: f64 = work.map(Stretch::positions).sum();
            let step = Step {
                tokens,
                depth: positions / tokens,
                secs: took.as_secs_f64(),
            };
            keep(&mut self.steps, step);
        }
    }

    /// Seconds that these add to a step that is taken anyway. `None` before the first prompt.
    pub fn estimate(&self, stretch: Stretch) -> Option<f64> {
        let per_position = self.per_position();
        let beside = |step: &Step| step.secs - step.tokens * step.depth * per_position;
        let beside: Vec<Point> = self.steps.iter().map(|step| Point(step.tokens, beside(step))).collect();
        let per_token = slope(&beside).or_else(|| median(beside.iter().map(|Point(tokens, secs)| secs / tokens)));
        Some(f64::from(stretch.tokens) * per_token?.max(0.0) + stretch.positions() * per_position)
    }

    /// From steps of about as many tokens at different depths, such as the chunks of a long prompt.
    fn per_position(&self) -> f64 {
        let pairs = pairs(&self.steps).filter(|(one, other)| !apart(one.tokens, other.tokens));
        let pairs = pairs.filter(|(one, other)| apart(one.depth, other.depth));
        let slopes =
            pairs.map(|(one, other)| (one.secs / one.tokens - other.secs / other.tokens) / (one.depth - other.depth));
        median(slopes).map_or(0.0, |slope| slope.max(0.0))
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

    /// A line through what was measured: its [`slope`], and the median of what is left at no bytes.
    pub fn estimate(&self, bytes: u64, now: Now) -> Duration {
        let recent = self
            .copies
            .iter()
            .filter(|copied| now.since(copied.when) < FORGOTTEN_AFTER);
        let recent: Vec<Point> = recent.map(|copied| Point(copied.bytes, copied.secs)).collect();
        let slope = slope(&recent).or_else(|| {
            let beyond = |Point(bytes, secs): &Point| (secs - COPY_FIXED).max(0.0) / bytes.max(1.0);
            median(recent.iter().map(beyond))
        });
        let slope = slope.map_or(1.0 / COPY_RATE, |slope| slope.max(0.0));
        let fixed = median(recent.iter().map(|Point(bytes, secs)| secs - slope * bytes));
        let fixed = fixed.map_or(COPY_FIXED, |fixed| fixed.max(0.0));
        Duration::from_secs_f64(fixed + slope * bytes as f64)
    }
}

/// What something cost, and of how much.
#[derive(Clone, Copy, Debug)]
struct Point(f64, f64);

/// The median of the slopes between points that lie apart (Theil 1950, Sen 1968). `None` if no two do.
fn slope(points: &[Point]) -> Option<f64> {
    let apart = pairs(points).filter(|(one, other)| apart(one.0, other.0));
    median(apart.map(|(one, other)| (one.1 - other.1) / (one.0 - other.0)))
}

/// Each two of them, once.
fn pairs<'a, T: 'a>(of: impl IntoIterator<Item = &'a T, IntoIter: Clone>) -> impl Iterator<Item = (&'a T, &'a T)> {
    let all = of.into_iter();
    all.clone().enumerate().flat_map(move |(index, one)| {
        let earlier = all.clone().take(index);
        earlier.map(move |other| (one, other))
    })
}

fn apart(one: f64, other: f64) -> bool {
    let (less, more) = (one.min(other), one.max(other));
    more >= APART * less && more > less
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

    /// Steps of one prompt each: tokens before, tokens, milliseconds.
    fn prompts(steps: &[(u32, u32, u64)]) -> PromptCost {
        let mut cost = PromptCost::default();
        for (start, tokens, ms) in steps {
            let work = [Stretch {
                start: *start,
                tokens: *tokens,
            }];
            cost.observe(work.into_iter(), Duration::from_millis(*ms));
        }
        cost
    }

    fn added_ms(cost: &PromptCost, start: u32, tokens: u32) -> Option<f64> {
        let secs = cost.estimate(Stretch { start, tokens });
        secs.map(|secs| (secs * 1e3).round())
    }

    #[test]
    fn a_token_costs_what_prompts_have_cost_not_answers() {
        assert_eq!(added_ms(&prompts(&[(0, 1, 10), (100, 7, 10)]), 0, 64), None);
        let steps = [(5, 1, 10), (0, 64, 64), (0, 64, 64), (0, 64, 6400)];
        assert_eq!(added_ms(&prompts(&steps), 0, 128), Some(128.0));
    }

    #[test]
    fn what_any_step_costs_is_not_the_price_of_its_tokens() {
        // 20 ms, and 1 ms per token.
        let cost = prompts(&[(0, 16, 36), (0, 64, 84), (0, 256, 276)]);
        assert_eq!(added_ms(&cost, 0, 100), Some(100.0));
    }

    #[test]
    fn a_token_far_back_costs_more_by_what_it_looks_back_at() {
        // 10 ms, and per token 1 ms and 1 us per position.
        let chunks = [
            (0, 128, 146),
            (128, 128, 163),
            (256, 128, 179),
            (384, 128, 195),
            (0, 32, 43),
        ];
        let cost = prompts(&chunks);
        let (near, far) = (added_ms(&cost, 0, 100).unwrap(), added_ms(&cost, 4000, 100).unwrap());
        assert!((95.0..=110.0).contains(&near), "{near}");
        assert!((485.0..=525.0).contains(&far), "{far}");
    }
}
