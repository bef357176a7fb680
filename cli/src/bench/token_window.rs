//! How many tokens a second come while all streams of a run talk: neither the first prompts nor the last answers count.

use std::time::Duration;

/// When the messages of one stream came, since a moment that all streams share, and how many tokens each had.
#[derive(Clone, Debug, Default)]
pub struct Receipts(Vec<(Duration, usize)>);

impl Receipts {
    /// In the order of time.
    pub fn add(&mut self, at: Duration, tokens: usize) {
        if tokens > 0 {
            self.0.push((at, tokens));
        }
    }

    fn first(&self) -> Option<Duration> {
        self.0.first().map(|(at, _)| *at)
    }

    fn last(&self) -> Option<Duration> {
        self.0.last().map(|(at, _)| *at)
    }

    /// Later than `begin`: what came with that very message was computed before.
    fn tokens_within(&self, begin: Duration, end: Duration) -> usize {
        let within = self.0.iter().filter(|(at, _)| (*at > begin) && (*at <= end));
        within.map(|(_, tokens)| tokens).sum()
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Window {
    /// Of all streams that talked.
    pub tokens_per_s: f64,
    /// Streams that got their first token when another had ended: there was no place for them before.
    pub waited: u32,
}

impl Window {
    /// From the moment when the last stream has its first token to the moment when the first one ends. For one stream
    /// that is the tokens after its first message, by the time from then to the last. Streams that waited are left out.
    /// `None` if no time passes between.
    pub fn of(streams: &[Receipts]) -> Option<Self> {
        let end = streams.iter().filter_map(Receipts::last).min()?;
        let talked: Vec<&Receipts> = streams.iter().filter(|stream| stream.first() < Some(end)).collect();
        let begin = talked.iter().filter_map(|stream| stream.first()).max()?;
        let tokens: usize = talked.iter().map(|stream| stream.tokens_within(begin, end)).sum();
        Some(Self {
            tokens_per_s: tokens as f64 / (end - begin).as_secs_f64(),
            waited: (streams.len() - talked.len()) as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipts(times_ms: &[u64]) -> Receipts {
        let mut receipts = Receipts::default();
        times_ms
            .iter()
            .for_each(|ms| receipts.add(Duration::from_millis(*ms), 1));
        receipts
    }

    fn window(streams: &[Receipts]) -> (f64, u32) {
        let window = Window::of(streams).unwrap();
        (window.tokens_per_s.round(), window.waited)
    }

    #[test]
    fn one_stream_has_its_tokens_but_the_first_by_the_time_between() {
        assert_eq!(window(&[receipts(&[300, 310, 320, 350])]), (60.0, 0));
    }

    #[test]
    fn only_what_comes_while_all_talk_counts() {
        // From 200 to 400 ms; the first stream's token at 200 and the second's at 500 are outside.
        let streams = [receipts(&[100, 200, 300, 400]), receipts(&[200, 250, 350, 500])];
        assert_eq!(window(&streams), (20.0, 0));
    }

    #[test]
    fn who_begins_when_another_has_ended_has_waited_and_is_left_out() {
        let streams = [
            receipts(&[100, 200, 300]),
            receipts(&[100, 200, 300]),
            receipts(&[300, 320, 340]),
        ];
        assert_eq!(window(&streams), (20.0, 1));
    }

    #[test]
    fn tokens_of_one_message_come_together() {
        let mut stream = Receipts::default();
        for (at, tokens) in [(100, 3), (150, 0), (200, 2), (300, 2)] {
            stream.add(Duration::from_millis(at), tokens);
        }
        assert_eq!(window(&[stream]), (20.0, 0));
    }

    #[test]
    fn without_time_between_there_is_no_rate() {
        assert_eq!(Window::of(&[]), None);
        assert_eq!(Window::of(&[receipts(&[100])]), None);
        assert_eq!(Window::of(&[Receipts::default()]), None);
    }
}
