//! Text to words, the pieces that byte-level BPE never merges across.
//!
//! The regular expressions are those that the families of models are published with, and nothing else: any other
//! expression could be made to take time that grows with the square of the text. The published ones look ahead after
//! white space, `\s+(?!\S)|\s+`. Here that is done by hand, and the rest runs on an automaton, so that time is linear
//! and memory constant for a run of any length.

use regex_automata::meta::Regex;

/// What the published expressions end in.
const LOOK_AHEAD: &str = r"|\s+(?!\S)|\s+";

pub(crate) const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
pub(crate) const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(crate) const QWEN_2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Marks belong to the letters before them.
pub(crate) const QWEN_35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(crate) const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(crate) const DIGIT: &str = r"\p{N}";
pub(crate) const DIGITS: &str = r"\p{N}+";
pub(crate) const UP_TO_THREE_DIGITS: &str = r"\p{N}{1,3}";
const THREE_DIGITS: &str = "[0-9][0-9][0-9]";
const PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|]+";

/// The expressions that tokenizer.json may hold, each of which matches all text.
pub(crate) const PUBLISHED: [&str; 5] = [GPT_2, LLAMA_3, QWEN_2, QWEN_35, TEKKEN];

#[derive(Debug)]
pub(crate) struct WordSplitter {
    stages: Vec<Stage>,
}

impl WordSplitter {
    /// Each expression cuts what the one before left whole: matches and what lies between them. The expressions must
    /// be of this file.
    pub(crate) fn new(expressions: &[&str]) -> Self {
        let stages = expressions.iter().map(|expression| Stage::new(expression)).collect();
        Self { stages }
    }

    /// What files of before pre-tokenizers had names are split with.
    pub(crate) fn of_unnamed_files() -> Self {
        Self::new(&[PUNCTUATION, GPT_2, DIGITS, THREE_DIGITS])
    }

    /// The words join to `text`; none is empty.
    pub(crate) fn split<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut pieces = if text.is_empty() { Vec::new() } else { vec![text] };
        for stage in &self.stages {
            let mut finer = Vec::with_capacity(pieces.len());
            for piece in pieces {
                stage.split(piece, &mut finer);
            }
            pieces = finer;
        }
        pieces
    }
}

/// One expression.
#[derive(Debug)]
struct Stage {
    /// The second pattern, if there is one, is white space that nothing before matched.
    regex: Regex,
}

impl Stage {
    fn new(expression: &str) -> Self {
        let patterns = match expression.strip_suffix(LOOK_AHEAD) {
            Some(words) => vec![words, r"\s+"],
            None => vec![expression],
        };
        let regex = Regex::new_many(&patterns).expect("all expressions of this file compile");
        Self { regex }
    }

    fn split<'t>(&self, text: &'t str, pieces: &mut Vec<&'t str>) {
        let mut done = 0;
        while let Some(found) = self.regex.find(regex_automata::Input::new(text).range(done..)) {
            if found.start() > done {
                pieces.push(&text[done..found.start()]);
            }
            let is_space = found.pattern().as_usize() == 1;
            let end = if is_space {
                end_of_space(text, found.range())
            } else {
                found.end()
            };
            pieces.push(&text[found.start()..end]);
            done = end;
        }
        if done < text.len() {
            pieces.push(&text[done..]);
        }
    }
}

/// The last character of white space belongs to the word after it, unless it is alone or nothing follows.
fn end_of_space(text: &str, run: std::ops::Range<usize>) -> usize {
    let last = text[run.clone()].char_indices().next_back().map_or(0, |(i, _)| i);
    if run.end == text.len() || last == 0 {
        run.end
    } else {
        run.start + last
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::LazyLock, time::Instant};

    use proptest::prelude::*;

    use super::*;

    /// All of them: compiling takes longer than splitting.
    static SPLITTERS: LazyLock<Vec<WordSplitter>> = LazyLock::new(|| {
        let published = PUBLISHED.iter().map(|expression| WordSplitter::new(&[expression]));
        published.chain([WordSplitter::of_unnamed_files()]).collect()
    });

    fn split<'t>(expression: &str, text: &'t str) -> Vec<&'t str> {
        WordSplitter::new(&[expression]).split(text)
    }

    #[test]
    fn the_last_space_goes_with_the_word_after_it() {
        assert_eq!(split(GPT_2, "a   b \n"), ["a", "  ", " b", " \n"]);
        assert_eq!(split(GPT_2, "\tb  9"), ["\t", "b", " ", " 9"]);
        assert_eq!(
            split(LLAMA_3, "a \n \n  b\u{3000}\u{3000}"),
            ["a", " \n \n", " ", " b", "\u{3000}\u{3000}"]
        );
        assert_eq!(split(LLAMA_3, "a\u{3000}\u{3000}b"), ["a", "\u{3000}", "\u{3000}b"]);
        assert_eq!(split(LLAMA_3, ""), [""; 0]);
    }

    #[test]
    fn families_differ_in_digits_contractions_and_marks() {
        assert_eq!(split(LLAMA_3, "1234 I'M"), ["123", "4", " I", "'M"]);
        assert_eq!(split(QWEN_2, "12 I'M"), ["1", "2", " I", "'M"]);
        assert_eq!(split(GPT_2, "1234 I'M"), ["1234", " I", "'", "M"]);
        assert_eq!(split(QWEN_2, "हि"), ["ह", "ि"]);
        assert_eq!(split(QWEN_35, "हि"), ["हि"]);
        assert_eq!(split(TEKKEN, "HelloWorld"), ["Hello", "World"]);
        let unnamed = WordSplitter::of_unnamed_files();
        assert_eq!(unnamed.split("a+b 12345!"), ["a", "+", "b", " ", "123", "45", "!"]);
    }

    #[test]
    fn runs_of_megabytes_take_less_than_a_second_each() {
        for splitter in SPLITTERS.iter() {
            for run in [
                " ", "\n", "a", "A", "9", "漢", "=", "\u{301}", " \u{85}", "a ", "'", " \n", "\t\r", "aA",
            ] {
                let text = run.repeat(2_000_000 / run.len()) + "x";
                let start = Instant::now();
                let words = splitter.split(&text);
                assert!(start.elapsed().as_millis() < 1000, "{run:?}: {:?}", start.elapsed());
                assert_eq!(words.iter().map(|word| word.len()).sum::<usize>(), text.len());
            }
        }
    }

    proptest! {
        #[test]
        fn words_join_to_the_text(text in r"[ \n\ta-cA1-9'.é漢🦀\u{301}\u{3000}]{0,40}") {
            for splitter in SPLITTERS.iter() {
                let words = splitter.split(&text);
                prop_assert_eq!(words.concat(), text.as_str());
                prop_assert!(words.iter().all(|word| !word.is_empty()));
            }
        }
    }
}
