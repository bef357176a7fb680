//! Long runs of white space, cut out of a text before the regular expression sees it.
//!
//! GPT-2's expression looks ahead after white space, which takes a stack entry for each character; beyond a million
//! the library gives up without an error and leaves the rest of the text unsplit. The words come out as the
//! expression defines them: a run is one word without its last character, which belongs to what follows, unless
//! nothing follows or a digit does, which stands alone.

/// Runs up to this many characters are left to the expression.
const RUN_LEN_MAX: usize = 4096;

/// A piece of a text.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Piece<'t> {
    /// To be split into words.
    Words(&'t str),
    /// One word of white space.
    Run(&'t str),
}

/// The pieces join to `text`; cutting there does not change its words.
pub(crate) fn split(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut done = 0;
    for run in Runs::new(text).filter(|run| run.len > RUN_LEN_MAX) {
        pieces.push(Piece::Words(&text[done..run.start]));
        pieces.push(Piece::Run(&text[run.start..run.word_end]));
        done = run.word_end;
    }
    pieces.push(Piece::Words(&text[done..]));
    pieces.retain(|piece| *piece != Piece::Words(""));
    pieces
}

struct Run {
    start: usize,
    word_end: usize,
    /// In characters.
    len: usize,
}

/// All runs of white space.
struct Runs<'t> {
    text: &'t str,
    offset: usize,
}

impl<'t> Runs<'t> {
    fn new(text: &'t str) -> Self {
        Self { text, offset: 0 }
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let start = self.offset + self.text[self.offset..].find(char::is_whitespace)?;
        let mut len = 0;
        let mut last = start;
        self.offset = self.text.len();
        let mut next = None;
        for (i, c) in self.text[start..].char_indices() {
            if !c.is_whitespace() {
                next = Some(c);
                self.offset = start + i;
                break;
            }
            len += 1;
            last = start + i;
        }
        let word_end = if next.is_none_or(char::is_numeric) {
            self.offset
        } else {
            last
        };
        Some(Run { start, word_end, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_space_of_a_long_run_goes_with_the_word_after_it() {
        let run = "\u{3000}".repeat(RUN_LEN_MAX);
        assert_eq!(
            split(&format!("a b{run}\nc d")),
            [Piece::Words("a b"), Piece::Run(&run), Piece::Words("\nc d")]
        );
        assert_eq!(
            split(&format!("{run}\n9")),
            [Piece::Run(&format!("{run}\n")), Piece::Words("9")]
        );
        assert_eq!(split(&format!("{run} ")), [Piece::Run(&format!("{run} "))]);
    }

    #[test]
    fn short_runs_are_left_alone() {
        let run = " ".repeat(RUN_LEN_MAX);
        for text in ["a b  c 9", &format!("{run}x{run}"), " ", "x"] {
            assert_eq!(split(text), [Piece::Words(text)]);
        }
        assert_eq!(split(""), []);
    }
}
