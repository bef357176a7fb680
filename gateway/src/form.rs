//! What chats and completions write differently, and the parts of an answer that they write.

use kvasir_proto::v1;
use serde_json::{Value, json};

/// Writes the choices of one kind of answer.
pub trait Form: Send + Sync + 'static {
    /// What a whole answer and a piece of one call themselves.
    fn objects(&self) -> (&'static str, &'static str);

    /// Said before anything has come, if anything is.
    fn opening(&self) -> Option<Part>;

    /// True if an answer begins with its prompt.
    fn echoes(&self) -> bool;

    /// True if the prompt's logprobs come before anything else is said.
    fn awaits_scores(&self) -> bool;

    /// True if pieces without text are worth sending.
    fn tells_tokens(&self) -> bool;

    /// True if the ids of a prompt stand with each of its choices, not beside them.
    fn has_prompt_ids(&self) -> bool;

    /// A piece of a choice, whose first token stands at `place`.
    fn delta(&self, index: u32, part: &Part, place: &TextPlace) -> Value;

    /// All of a choice.
    fn whole(&self, index: u32, part: &Part) -> Value;
}

/// What has come of a choice: all of it, or since the last piece.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Part {
    pub opens: bool,
    pub text: String,
    pub tokens: Vec<Spelled>,
    pub finish_reason: Option<&'static str>,
    /// Where they stand with the choice, and are asked for.
    pub prompt_ids: Option<Vec<u32>>,
}

/// A token and what is known of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spelled {
    pub id: u32,
    /// None for the first of a prompt.
    pub logprob: Option<f32>,
    pub bytes: Vec<u8>,
    pub top: Vec<v1::TopLogprob>,
    pub is_prompt: bool,
    /// It is no part of the text.
    pub is_control: bool,
}

/// Where in a text a token stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TextPlace {
    /// Whole characters before it.
    pub chars: usize,
    /// The beginning of a character, from the tokens before it.
    pending: Vec<u8>,
}

impl TextPlace {
    /// Goes on to where the next token stands.
    pub fn pass(&mut self, token: &Spelled) {
        if token.is_control && !token.is_prompt {
            return;
        }
        self.pending.extend(&token.bytes);
        let mut complete = self.pending.len();
        if let Some(last) = self.pending.utf8_chunks().last() {
            // `error_len` is `None` exactly when more bytes could make a character of them.
            if std::str::from_utf8(last.invalid()).is_err_and(|error| error.error_len().is_none()) {
                complete -= last.invalid().len();
            }
        }
        self.chars += text(&self.pending[..complete]).chars().count();
        self.pending.drain(..complete);
    }

    pub fn pass_all(&mut self, tokens: &[Spelled]) {
        tokens.iter().for_each(|token| self.pass(token));
    }
}

impl Part {
    pub fn is_empty(&self) -> bool {
        !self.opens && self.text.is_empty() && self.tokens.is_empty() && self.finish_reason.is_none()
    }

    /// Of the answer, for those who ask for them.
    pub fn token_ids(&self) -> Vec<u32> {
        let answer = self.tokens.iter().filter(|token| !token.is_prompt);
        answer.map(|token| token.id).collect()
    }
}

impl From<v1::Token> for Spelled {
    fn from(token: v1::Token) -> Self {
        Self {
            id: token.id,
            logprob: Some(token.logprob),
            bytes: token.bytes,
            top: token.top_logprobs,
            is_prompt: false,
            is_control: token.control,
        }
    }
}

impl From<v1::PromptToken> for Spelled {
    fn from(token: v1::PromptToken) -> Self {
        Self {
            id: token.id,
            logprob: Some(token.logprob),
            bytes: token.bytes,
            top: token.top_logprobs,
            is_prompt: true,
            is_control: false,
        }
    }
}

/// For people: bytes that are no text become U+FFFD.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// -inf is no JSON; OpenAI writes this in its place.
pub fn finite(logprob: f32) -> Value {
    match logprob.is_finite() {
        // The shortest digits that bring back the very bits, also through a decimal of 64 bits.
        true => json!(logprob),
        false => json!(-9999.0),
    }
}
