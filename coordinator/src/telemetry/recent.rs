//! Figures of the last minute for those who look now: latencies and tokens per second. Bounded, whatever happens.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use kvasir_proto::v1;

const WINDOW: Duration = Duration::from_secs(60);
/// Over which the rate of tokens is told.
const RATE_WINDOW: Duration = Duration::from_secs(2);
/// At a thousand tokens a second, of some seconds.
const SAMPLES_MAX: usize = 8192;

#[derive(Debug, Default)]
pub struct Recent(Mutex<Samples>);

#[derive(Debug, Default)]
struct Samples {
    first_tokens: VecDeque<(Instant, Duration)>,
    inter_tokens: VecDeque<(Instant, Duration)>,
    /// When tokens came.
    tokens: VecDeque<Instant>,
}

/// As `Status` tells them.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct RecentFigures {
    pub tokens_per_second: f64,
    pub time_to_first_token: Option<v1::Percentiles>,
    pub inter_token: Option<v1::Percentiles>,
}

impl Recent {
    pub fn first_token(&self, now: Instant, took: Duration) {
        push(&mut self.lock().first_tokens, (now, took));
    }

    /// `took`: since the one before, if there was one.
    pub fn token(&self, now: Instant, took: Option<Duration>) {
        let mut samples = self.lock();
        push(&mut samples.tokens, now);
        if let Some(took) = took {
            push(&mut samples.inter_tokens, (now, took));
        }
    }

    pub fn figures(&self, now: Instant) -> RecentFigures {
        let samples = self.lock();
        let recent = samples.tokens.iter().rev();
        let tokens: Vec<_> = recent
            .take_while(|came| now.saturating_duration_since(**came) < RATE_WINDOW)
            .collect();
        // A bounded list may not reach back far enough.
        let window = match tokens.last() {
            Some(oldest) if tokens.len() == SAMPLES_MAX => now.saturating_duration_since(**oldest),
            _ => RATE_WINDOW,
        };
        RecentFigures {
            tokens_per_second: tokens.len() as f64 / window.as_secs_f64().max(1e-3),
            time_to_first_token: percentiles(&samples.first_tokens, now),
            inter_token: percentiles(&samples.inter_tokens, now),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Samples> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn push<T>(samples: &mut VecDeque<T>, sample: T) {
    if samples.len() == SAMPLES_MAX {
        samples.pop_front();
    }
    samples.push_back(sample);
}

fn percentiles(samples: &VecDeque<(Instant, Duration)>, now: Instant) -> Option<v1::Percentiles> {
    let recent = samples.iter().rev();
    let recent = recent.take_while(|(came, _)| now.saturating_duration_since(*came) < WINDOW);
    let mut took: Vec<u64> = recent.map(|(_, took)| took.as_micros() as u64).collect();
    if took.is_empty() {
        return None;
    }
    took.sort_unstable();
    let at = |part: f64| took[((took.len() - 1) as f64 * part).round() as usize];
    Some(v1::Percentiles {
        p50_us: at(0.5),
        p90_us: at(0.9),
        p99_us: at(0.99),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_of_what_is_recent() {
        let recent = Recent::default();
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        recent.first_token(at(0), Duration::from_secs(9));
        for ms in 0..100 {
            recent.token(at(70_000 + ms * 10), Some(Duration::from_micros(ms)));
        }
        recent.first_token(at(70_000), Duration::from_millis(5));
        let figures = recent.figures(at(71_000));
        assert_eq!(figures.tokens_per_second, 50.0);
        assert_eq!(figures.time_to_first_token.unwrap().p99_us, 5000);
        assert_eq!(
            figures.inter_token.unwrap(),
            v1::Percentiles {
                p50_us: 50,
                p90_us: 89,
                p99_us: 98
            }
        );
        assert_eq!(recent.figures(at(200_000)), RecentFigures::default());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let recent = Recent::default();
        let start = Instant::now();
        for _ in 0..3 * SAMPLES_MAX {
            recent.token(start, None);
        }
        assert_eq!(recent.lock().tokens.len(), SAMPLES_MAX);
    }
}
