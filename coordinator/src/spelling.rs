//! Tokens as the messages name them, with the bytes that they stand for where a client wants them.

use std::sync::Arc;

use kvasir_kv::{PromptLogprob, Request, SampledToken, TokenId};
use kvasir_model::Tokenizer;
use kvasir_proto::v1;

/// Spells nothing without a tokenizer.
#[derive(Clone, Debug)]
pub struct Spelling(Option<Arc<Tokenizer>>);

impl Spelling {
    pub fn new(tokenizer: Option<Arc<Tokenizer>>) -> Self {
        Self(tokenizer)
    }

    /// Nothing for none, not even empty texts.
    pub fn all(&self, tokens: &[TokenId]) -> Vec<Vec<u8>> {
        match &self.0 {
            Some(_) => tokens.iter().map(|token| self.bytes(*token)).collect(),
            None => Vec::new(),
        }
    }

    pub fn token(&self, index: u32, token: SampledToken) -> v1::Token {
        v1::Token {
            index,
            id: token.token.0,
            logprob: token.logprob,
            bytes: self.bytes(token.token),
            control: self
                .0
                .as_ref()
                .is_some_and(|tokenizer| tokenizer.is_control(token.token)),
            top_logprobs: self.top(token.top_logprobs),
        }
    }

    /// `position`: of the first of `scores`.
    pub fn prompt_scores(&self, request: &Request, position: u32, scores: Vec<PromptLogprob>) -> v1::PromptScores {
        let tokens = request.prompt.iter().skip(position as usize).zip(scores);
        let wire = |(token, score): (&TokenId, PromptLogprob)| v1::PromptToken {
            id: token.0,
            logprob: score.logprob,
            top_logprobs: self.top(score.top_logprobs),
            bytes: self.bytes(*token),
        };
        v1::PromptScores {
            position,
            tokens: tokens.map(wire).collect(),
        }
    }

    fn top(&self, top: Vec<(TokenId, f32)>) -> Vec<v1::TopLogprob> {
        let wire = |(token, logprob): (TokenId, f32)| v1::TopLogprob {
            id: token.0,
            logprob,
            bytes: self.bytes(token),
        };
        top.into_iter().map(wire).collect()
    }

    fn bytes(&self, token: TokenId) -> Vec<u8> {
        let bytes = self.0.as_ref().and_then(|tokenizer| tokenizer.token_bytes(token));
        bytes.unwrap_or_default().to_vec()
    }
}
