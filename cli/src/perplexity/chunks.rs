//! A text as tokens, cut into chunks of one length.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use kvasir_kv::TokenId;
use kvasir_model::Checkpoint;

use crate::answer::TokenLogprob;

#[derive(Debug)]
pub struct Chunks {
    /// Whole chunks, one after the other.
    tokens: Vec<TokenId>,
    context: usize,
}

impl Chunks {
    /// Blocks for as long as it takes to read the model's head and the text. Errors if the text is not UTF-8, or does not
    /// fill one chunk, or a chunk does not fit the model.
    pub fn read(model: &Path, file: &Path, context: u32) -> Result<Self> {
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            anyhow::anyhow!("{} is not UTF-8 text: byte {at} begins no character", file.display())
        })?;
        let checkpoint = Checkpoint::open(model).with_context(|| model.display().to_string())?;
        let spec = checkpoint.spec();
        ensure!(
            context <= spec.context_len,
            "--context {context} exceeds the model's context of {} tokens",
            spec.context_len
        );
        let mut tokens = checkpoint.tokenizer()?.encode(&text, false)?;
        let bos = spec.bos_token.filter(|_| spec.add_bos);
        if let Some(bos) = bos {
            tokens.insert(0, bos);
        }
        if tokens.len() < context as usize {
            bail!(
                "{} has {} tokens, a chunk takes {context}: give a longer text, or --context {} or less",
                file.display(),
                tokens.len(),
                tokens.len()
            );
        }
        Ok(Self::cut(tokens, context, bos))
    }

    /// Where the model begins its texts with a token, each chunk begins with it, in place of its own first one.
    fn cut(mut tokens: Vec<TokenId>, context: u32, bos: Option<TokenId>) -> Self {
        let context = context as usize;
        tokens.truncate(tokens.len() / context * context);
        if let Some(bos) = bos {
            tokens.iter_mut().step_by(context).for_each(|first| *first = bos);
        }
        Self { tokens, context }
    }

    pub fn iter(&self) -> impl Iterator<Item = &[TokenId]> {
        self.tokens.chunks_exact(self.context)
    }

    pub fn len(&self) -> usize {
        self.tokens.len() / self.context
    }

    pub fn num_tokens(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// The logprobs that count, of those of a chunk's tokens from the second on: each token of the second half but its
    /// first.
    pub fn scored<'a>(&self, logprobs: &'a [TokenLogprob]) -> Result<&'a [TokenLogprob]> {
        ensure!(
            logprobs.len() + 1 == self.context,
            "{} logprobs came for a chunk of {} tokens",
            logprobs.len(),
            self.context
        );
        Ok(&logprobs[self.context / 2..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(len: u32) -> Vec<TokenId> {
        (0..len).map(TokenId).collect()
    }

    #[test]
    fn what_does_not_fill_a_chunk_is_left_out() {
        let chunks = Chunks::cut(tokens(23), 10, None);
        assert_eq!(
            chunks.iter().collect::<Vec<_>>(),
            [&tokens(23)[..10], &tokens(23)[10..20]]
        );
        assert_eq!((chunks.len(), chunks.num_tokens()), (2, 20));
    }

    #[test]
    fn each_chunk_begins_with_the_models_first_token() {
        let chunks = Chunks::cut(tokens(8), 4, Some(TokenId(9)));
        let ids = |chunk: &[TokenId]| chunk.iter().map(|token| token.0).collect::<Vec<_>>();
        assert_eq!(chunks.iter().map(ids).collect::<Vec<_>>(), [[9, 1, 2, 3], [9, 5, 6, 7]]);
    }

    #[test]
    fn the_second_half_is_scored() {
        let score = |id| TokenLogprob {
            id,
            logprob: 0.0,
            top: Vec::new(),
        };
        // Of the tokens at positions 1 to 9.
        let logprobs: Vec<TokenLogprob> = (1..10).map(score).collect();
        let chunks = Chunks::cut(tokens(10), 10, None);
        let positions: Vec<u32> = chunks.scored(&logprobs).unwrap().iter().map(|score| score.id).collect();
        assert_eq!(positions, [6, 7, 8, 9]);
        assert!(chunks.scored(&logprobs[1..]).is_err());
    }
}
