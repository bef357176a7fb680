//! The detector of failures: by forward progress, and only while it was awake itself.
//!
//! It measures on a clock that counts at most `gap_max` between two events: if this process was stopped for a minute,
//! nobody else is blamed for that minute. It decides nothing about what follows from a suspicion.

use std::time::Duration;

use kvasir_kv::{Epoch, Progress};

use crate::Now;

/// A reading of the steady clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Steady(pub Duration);

impl Steady {
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

#[derive(Debug)]
pub(crate) struct SteadyClock {
    last: Now,
    reading: Steady,
    gap_max: Duration,
}

impl SteadyClock {
    pub fn new(gap_max: Duration) -> Self {
        Self {
            last: Now::default(),
            reading: Steady::default(),
            gap_max,
        }
    }

    pub fn advance(&mut self, now: Now) -> Steady {
        self.reading = Steady(self.reading.0 + now.since(self.last).min(self.gap_max));
        self.last = self.last.max(now);
        self.reading
    }

    pub fn read(&self) -> Steady {
        self.reading
    }
}

/// A rank may stand still for so many usual steps.
const STALL_STEPS: u32 = 20;

/// The time that a step usually takes: a moving mean, an eighth of each new one. A step counts as at most twice the mean,
/// so that one that stood still does not make the next one that does look usual.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UsualStep {
    stall_min: Duration,
    mean: Option<Duration>,
}

impl UsualStep {
    pub fn new(stall_min: Duration) -> Self {
        Self { stall_min, mean: None }
    }

    /// One step shows nothing usual: the first, which may have stood still itself, does not widen the window.
    pub fn observe(&mut self, step: Duration) {
        self.mean = Some(match self.mean {
            None => step.min(self.stall_min / STALL_STEPS),
            Some(mean) => (mean * 7 + step.min(mean * 2)) / 8,
        });
    }

    pub fn get(&self) -> Duration {
        self.mean.unwrap_or_default()
    }

    /// How long a rank may stand still.
    pub fn stall_window(&self) -> Duration {
        self.stall_min.max(self.get() * STALL_STEPS)
    }
}

/// What is known of one rank's progress in an epoch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RankWatch {
    progress: Progress,
    moved: Steady,
}

impl RankWatch {
    pub fn new(epoch: Epoch, now: Steady) -> Self {
        let progress = Progress {
            epoch,
            ..Progress::default()
        };
        Self { progress, moved: now }
    }

    pub fn progress(&self) -> Progress {
        self.progress
    }

    pub fn moved(&self) -> Steady {
        self.moved
    }

    /// A heartbeat. One of another epoch says nothing about this one.
    pub fn observe(&mut self, progress: Progress, now: Steady) {
        if progress.epoch == self.progress.epoch && progress != self.progress {
            self.progress = progress;
            self.moved = now;
        }
    }

    /// It has acknowledged a step, or was given work after it had none.
    pub fn touch(&mut self, now: Steady) {
        self.moved = now;
    }
}

/// Whom to blame when ranks stand still.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    Fine,
    /// Ranks that did not enter the collective in which the others wait.
    Suspects(Vec<usize>),
    /// All stand still at the same place: nobody is to blame more than the others.
    AllAtOnce,
}

/// `ranks` are watches, with whether the rank has an unacknowledged step.
///
/// A rank stands still from when the last of them all moved: nobody leaves a collective before the slowest has entered
/// it, so that those who waited for it have been able to move only since then. A rank that hangs gains little by that,
/// for the others come no further than the next collective.
pub(crate) fn judge(ranks: &[(RankWatch, bool)], now: Steady, window: Duration) -> Verdict {
    let moved = ranks.iter().map(|(watch, _)| watch.moved).max();
    if moved.is_none_or(|moved| now.since(moved) <= window) {
        return Verdict::Fine;
    }
    let least = ranks.iter().map(|(watch, _)| watch.progress.collectives_entered).min();
    let suspects: Vec<usize> = ranks
        .iter()
        .enumerate()
        .filter(|(_, (_, busy))| *busy)
        .filter(|(_, (watch, _))| Some(watch.progress.collectives_entered) == least)
        .map(|(rank, _)| rank)
        .collect();
    if suspects.is_empty() {
        Verdict::Fine
    } else if suspects.len() == ranks.len() && ranks.len() > 1 {
        Verdict::AllAtOnce
    } else {
        Verdict::Suspects(suspects)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(2);

    fn at(seconds: u64) -> Steady {
        Steady(Duration::from_secs(seconds))
    }

    fn watch(collectives_entered: u64, moved: u64) -> RankWatch {
        let mut watch = RankWatch::new(Epoch::default(), Steady::default());
        let progress = Progress {
            collectives_entered,
            ..Progress::default()
        };
        watch.observe(progress, at(moved));
        watch
    }

    #[test]
    fn blame_goes_to_whoever_did_not_enter_the_collective() {
        let ranks = [(watch(7, 1), true), (watch(6, 1), true), (watch(7, 1), true)];
        assert_eq!(judge(&ranks, at(3), WINDOW), Verdict::Fine);
        assert_eq!(judge(&ranks, at(4), WINDOW), Verdict::Suspects(vec![1]));
    }

    #[test]
    fn a_slow_rank_that_moves_protects_those_that_wait_for_it() {
        let ranks = [(watch(7, 1), true), (watch(6, 9), true)];
        assert_eq!(judge(&ranks, at(10), WINDOW), Verdict::Fine);
    }

    #[test]
    fn those_that_waited_for_a_slow_rank_are_given_a_window_from_when_it_came() {
        let ranks = [(watch(7, 1), true), (watch(8, 9), true)];
        assert_eq!(judge(&ranks, at(11), WINDOW), Verdict::Fine);
        assert_eq!(judge(&ranks, at(12), WINDOW), Verdict::Suspects(vec![0]));
    }

    #[test]
    fn a_rank_without_work_may_stand_still() {
        assert_eq!(judge(&[(watch(7, 1), false)], at(100), WINDOW), Verdict::Fine);
        assert_eq!(
            judge(&[(watch(7, 1), true)], at(100), WINDOW),
            Verdict::Suspects(vec![0])
        );
    }

    #[test]
    fn ranks_that_stand_at_the_same_place_are_not_told_apart() {
        let ranks = [(watch(7, 1), true), (watch(7, 1), true)];
        assert_eq!(judge(&ranks, at(9), WINDOW), Verdict::AllAtOnce);
    }

    #[test]
    fn the_steady_clock_forgives_its_own_pauses() {
        let mut clock = SteadyClock::new(Duration::from_millis(200));
        clock.advance(Now(Duration::from_millis(100)));
        let paused = clock.advance(Now(Duration::from_secs(60)));
        assert_eq!(paused, Steady(Duration::from_millis(300)));
        assert_eq!(
            clock.advance(Now(Duration::from_secs(59))),
            paused,
            "time does not go back"
        );
    }

    #[test]
    fn slow_steps_widen_the_window() {
        let mut usual = UsualStep::new(WINDOW);
        assert_eq!(usual.stall_window(), WINDOW);
        (0..100).for_each(|_| usual.observe(Duration::from_millis(500)));
        assert!(usual.stall_window() > Duration::from_secs(9), "{usual:?}");
    }

    #[test]
    fn a_first_step_that_stood_still_does_not_widen_the_window() {
        let mut usual = UsualStep::new(WINDOW);
        usual.observe(Duration::from_secs(1));
        assert_eq!(usual.stall_window(), WINDOW);
    }

    #[test]
    fn one_step_that_stood_still_does_not_become_the_usual() {
        let mut usual = UsualStep::new(WINDOW);
        usual.observe(Duration::from_millis(80));
        usual.observe(Duration::from_secs(60));
        assert_eq!(usual.get(), Duration::from_millis(90));
    }

    #[test]
    fn a_heartbeat_of_another_epoch_is_no_progress() {
        let mut watch = watch(7, 1);
        let other = Progress {
            epoch: Epoch { term: 9, number: 9 },
            steps_done: 3,
            collectives_entered: 99,
        };
        watch.observe(other, at(5));
        assert_eq!(watch.moved(), at(1));
    }
}
