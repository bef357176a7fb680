//! What is done to text before it is tokenized.

use std::borrow::Cow;

use unicode_normalization_alignments::UnicodeNormalization;

use crate::vocabulary::SPACE;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Normalizer {
    Keep,
    /// Unicode's composed form.
    Nfc,
    /// U+2581 for spaces, and one more before a text that is not empty.
    Spaced {
        prepend: bool,
    },
}

impl Normalizer {
    pub(crate) fn apply(self, text: &str) -> Cow<'_, str> {
        match self {
            Self::Keep => Cow::Borrowed(text),
            Self::Nfc if is_composed(text) => Cow::Borrowed(text),
            Self::Nfc => Cow::Owned(text.nfc().map(|(c, _)| c).collect()),
            Self::Spaced { prepend } if prepend && !text.is_empty() => Cow::Owned(prefixed(&spaced(text))),
            Self::Spaced { .. } => Cow::Owned(spaced(text)),
        }
    }
}

pub(crate) fn spaced(text: &str) -> String {
    text.replace(' ', SPACE)
}

pub(crate) fn prefixed(text: &str) -> String {
    [SPACE, text].concat()
}

/// Below U+0300 nothing composes with anything. Spares most texts the work.
fn is_composed(text: &str) -> bool {
    text.chars().all(|c| c < '\u{300}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_join_the_letters_they_belong_to() {
        assert_eq!(Normalizer::Nfc.apply("e\u{301} Å"), "é Å");
        assert_eq!(Normalizer::Nfc.apply("\u{212b}"), "Å");
        assert_eq!(Normalizer::Keep.apply("e\u{301}"), "e\u{301}");
    }

    #[test]
    fn spaces_become_visible_and_only_text_gets_one_more() {
        let prepend = Normalizer::Spaced { prepend: true };
        assert_eq!(prepend.apply(" a b"), "▁▁a▁b");
        assert_eq!(prepend.apply(""), "");
        assert_eq!(Normalizer::Spaced { prepend: false }.apply("a b"), "a▁b");
    }

    #[test]
    fn megabytes_of_marks_are_normalized_in_seconds() {
        let text = "a\u{301}\u{327}".repeat(400_000) + &"\u{327}\u{301}".repeat(400_000);
        let start = std::time::Instant::now();
        Normalizer::Nfc.apply(&text);
        assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    }
}
