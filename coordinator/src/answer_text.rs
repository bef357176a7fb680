//! From the tokens of an answer to its text, up to a stop string.

use std::sync::Arc;

use kvasir_kv::TokenId;
use kvasir_model::{IncrementalDetokenizer, Tokenizer};

use crate::stop_strings::{Scanned, StopStrings};

#[derive(Debug)]
pub struct AnswerText {
    detokenizer: IncrementalDetokenizer,
    stops: StopStrings,
}

impl AnswerText {
    pub fn new(tokenizer: Arc<Tokenizer>, stop: Vec<String>) -> Self {
        Self {
            detokenizer: IncrementalDetokenizer::new(tokenizer, true),
            stops: StopStrings::new(stop),
        }
    }

    /// Whole characters that became part of the answer with this token.
    pub fn push(&mut self, token: TokenId) -> Scanned {
        self.stops.push(&self.detokenizer.push(token))
    }

    /// What was held back, when no more tokens come.
    pub fn finish(self) -> String {
        self.stops.finish() + &self.detokenizer.finish()
    }
}
