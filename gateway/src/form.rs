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

    /// A piece of a choice. `offset`: characters of its tokens' texts so far.
    fn delta(&self, index: u32, part: &Part, offset: usize) -> Value;

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
}

impl Part {
    pub fn num_chars(&self) -> usize {
        self.tokens.iter().map(|token| text(&token.bytes).chars().count()).sum()
    }

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
