//! Stop strings in a stream of text: finds the earliest, and holds back what could become one.
//!
//! What has been let through depends on the text alone, not on the pieces it came in: a resumed stream that feeds
//! the same text again stands where the first one stood.

/// What a piece of text came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Scanned {
    /// Text that is part of the answer for sure.
    Text(String),
    /// The text before the stop string. Nothing after this belongs to the answer.
    Stopped(String),
}

/// Looks for the stop strings of one answer.
#[derive(Debug)]
pub struct StopStrings {
    /// None of them empty.
    stops: Vec<String>,
    /// A beginning of some stop string.
    held: String,
}

impl StopStrings {
    /// Empty stop strings count for nothing: every text would end before it begins.
    pub fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self {
            stops,
            held: String::new(),
        }
    }

    pub fn push(&mut self, text: &str) -> Scanned {
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = found {
            let mut before = std::mem::take(&mut self.held);
            before.truncate(at);
            return Scanned::Stopped(before);
        }
        let hold = self.held_from();
        let rest = self.held.split_off(hold);
        Scanned::Text(std::mem::replace(&mut self.held, rest))
    }

    /// What was held back, when nothing more comes.
    pub fn finish(self) -> String {
        self.held
    }

    /// Where the longest end of the text that begins a stop string begins.
    fn held_from(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let first = self.held.len().saturating_sub(longest.saturating_sub(1));
        (first..self.held.len())
            .filter(|&at| self.held.is_char_boundary(at))
            .find(|&at| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..])))
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scanner(stops: &[&str]) -> StopStrings {
        StopStrings::new(stops.iter().map(|stop| stop.to_string()).collect())
    }

    /// All text let through, and whether it stopped.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut scanner = scanner(stops);
        let mut text = String::new();
        for piece in pieces {
            match scanner.push(piece) {
                Scanned::Text(part) => text += &part,
                Scanned::Stopped(part) => return (text + &part, true),
            }
        }
        (text + &scanner.finish(), false)
    }

    #[test]
    fn a_stop_string_across_pieces_is_found_and_not_shown() {
        assert_eq!(run(&["END"], &["abcE", "N", "Dxyz"]), ("abc".to_owned(), true));
        assert_eq!(run(&["\n\n"], &["a\n", "b\n", "\nc"]), ("a\nb".to_owned(), true));
        assert_eq!(run(&["é!"], &["caf", "é", "!"]), ("caf".to_owned(), true));
    }

    #[test]
    fn the_earliest_stop_counts() {
        assert_eq!(run(&["cd", "b"], &["abcd"]), ("a".to_owned(), true));
        assert_eq!(run(&["bcd", "c"], &["ab", "c"]), ("ab".to_owned(), true));
    }

    #[test]
    fn text_that_did_not_become_a_stop_is_let_through() {
        assert_eq!(run(&["aab"], &["a", "a", "a", "a"]), ("aaaa".to_owned(), false));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]), ("a".to_owned(), true));
        assert_eq!(run(&[], &["ab", "c"]), ("abc".to_owned(), false));
        assert_eq!(run(&[""], &["ab"]), ("ab".to_owned(), false));
    }

    #[test]
    fn nothing_is_held_back_without_need() {
        let mut scanner = scanner(&["stop"]);
        assert_eq!(scanner.push("go on s"), Scanned::Text("go on ".to_owned()));
        assert_eq!(scanner.push("o"), Scanned::Text("so".to_owned()));
    }

    #[test]
    fn pieces_do_not_matter() {
        let text = "xxabababcabdéé";
        let whole = run(&["ababc", "éd"], &[text]);
        let letters: Vec<String> = text.chars().map(String::from).collect();
        let pieces: Vec<&str> = letters.iter().map(String::as_str).collect();
        assert_eq!(run(&["ababc", "éd"], &pieces), whole);
        assert_eq!(whole, ("xxab".to_owned(), true));
    }
}
