//! Tokens to text as they come, one at a time.
//!
//! A token may end in the middle of a character; its bytes wait until the character is whole. What came out by the
//! end is what `Tokenizer::decode` gives for all tokens at once.

use std::sync::Arc;

use kvasir_kv::TokenId;

use crate::Tokenizer;

#[derive(Debug)]
pub struct IncrementalDetokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    /// Nothing was put out yet.
    at_start: bool,
    /// The beginning of a character, at most three bytes between calls.
    pending: Vec<u8>,
}

impl IncrementalDetokenizer {
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        Self {
            tokenizer,
            skip_special,
            at_start: true,
            pending: Vec::new(),
        }
    }

    /// The text that is complete with this token; often empty.
    pub fn push(&mut self, token: TokenId) -> String {
        let bytes = self
            .tokenizer
            .output_bytes(token, self.skip_special, &mut self.at_start);
        self.pending.extend_from_slice(bytes);
        take_complete(&mut self.pending)
    }

    /// A character that never became whole, as U+FFFD.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

/// Takes everything but a last character that more bytes could still complete.
fn take_complete(pending: &mut Vec<u8>) -> String {
    let mut complete = pending.len();
    if let Some(last) = pending.utf8_chunks().last() {
        let invalid = last.invalid();
        // `error_len` is `None` exactly when the bytes are the beginning of a character.
        if std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none()) {
            complete -= invalid.len();
        }
    }
    let text = String::from_utf8_lossy(&pending[..complete]).into_owned();
    pending.drain(..complete);
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn push_all(parts: &[&[u8]]) -> Vec<String> {
        let mut pending = Vec::new();
        let mut texts: Vec<_> = parts
            .iter()
            .map(|part| {
                pending.extend_from_slice(part);
                take_complete(&mut pending)
            })
            .collect();
        texts.push(String::from_utf8_lossy(&pending).into_owned());
        texts
    }

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let [a, b, c, d] = "🦀".as_bytes() else {
            panic!("four bytes")
        };
        assert_eq!(
            push_all(&[b"x", &[*a], &[*b, *c], &[*d, b'y']]),
            ["x", "", "", "🦀y", ""]
        );
    }

    #[test]
    fn bytes_that_can_never_be_a_character_do_not_wait() {
        assert_eq!(
            push_all(&[&[0xff], &[0xe2, 0x82], b"a"]),
            ["\u{fffd}", "", "\u{fffd}a", ""]
        );
        assert_eq!(push_all(&[&[0xe2, 0x82]]), ["", "\u{fffd}"]);
    }

    proptest! {
        #[test]
        fn pieces_join_to_the_whole_and_never_end_in_half_a_character(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5), 0..20),
            text in any::<String>(),
        ) {
            let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(push_all(&parts).concat(), String::from_utf8_lossy(&parts.concat()).into_owned());
            let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            let texts = push_all(&bytes);
            let halves = texts.iter().any(|text| text.contains(char::REPLACEMENT_CHARACTER));
            prop_assert!(!halves || text.contains(char::REPLACEMENT_CHARACTER));
            prop_assert_eq!(texts.concat(), text);
        }
    }
}
