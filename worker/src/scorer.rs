//! How likely the tokens of a prompt were: every rank merges the same logprobs from all ranks' shares.
//!
//! A row takes few bytes: the units' summaries, the logit of the prompt's own token from the rank that has it, and each
//! rank's likeliest few. Rows are exchanged in pieces, so that memory does not grow with the prompt.

use kvasir_kv::{PromptLogprob, TOP_LOGPROBS_MAX, TokenId};

use crate::{
    arith::UnitSummary,
    collective::{Collective, CollectiveError},
    sampler::LogitsShare,
    shares::{Merged, Reader, keep_likeliest, out_of_step, put, put_candidates},
};

/// Rows of one exchange.
const ROWS_PER_EXCHANGE: usize = 128;

/// What one rank has of a row whose next token is known.
#[derive(Clone, PartialEq, Debug)]
pub struct ScoreShare {
    /// Of the local units, in order.
    summaries: Vec<UnitSummary>,
    /// The logit of the next token, if its unit is here.
    target: Option<f32>,
    likeliest: Vec<(f32, u32)>,
    /// Likeliest tokens of the vocabulary that are wanted.
    top: usize,
}

impl ScoreShare {
    /// `share` holds the logits whatever the summaries tell.
    pub fn new(share: LogitsShare<'_>, target: TokenId, top: u32) -> Self {
        let top = top.min(TOP_LOGPROBS_MAX) as usize;
        let mut likeliest = Vec::new();
        share.likeliest(top, &mut likeliest);
        Self {
            summaries: share.summaries.to_vec(),
            target: share.logit_of(target),
            likeliest,
            top,
        }
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        put(bytes, self.summaries.len() as u32);
        for summary in &self.summaries {
            put(bytes, u32::from(summary.finite));
            put(bytes, summary.max.to_bits());
            put(bytes, summary.sum_exp.to_bits());
        }
        put(bytes, u32::from(self.target.is_some()));
        put(bytes, self.target.unwrap_or_default().to_bits());
        put_candidates(bytes, &self.likeliest);
    }
}

/// The logprobs of all rows, equal on every rank; `None` where a logit is not finite.
pub fn score(
    rows: &[ScoreShare],
    collective: &mut dyn Collective,
) -> Result<Vec<Option<PromptLogprob>>, CollectiveError> {
    let mut scores = Vec::with_capacity(rows.len());
    let (mut mine, mut gathered) = (Vec::new(), Vec::new());
    for piece in rows.chunks(ROWS_PER_EXCHANGE) {
        mine.clear();
        piece.iter().for_each(|row| row.write(&mut mine));
        collective.all_gather(&mine, &mut gathered)?;
        let mut readers: Vec<Reader<'_>> = gathered.iter().map(|bytes| Reader(bytes)).collect();
        for row in piece {
            scores.push(merge(&mut readers, row.top)?);
        }
    }
    Ok(scores)
}

/// The next row of all ranks.
fn merge(readers: &mut [Reader<'_>], top: usize) -> Result<Option<PromptLogprob>, CollectiveError> {
    let (mut merged, mut target, mut candidates) = (Merged::default(), None, Vec::new());
    for (rank, reader) in readers.iter_mut().enumerate() {
        read(reader, &mut merged, &mut target, &mut candidates).ok_or_else(|| out_of_step(rank))?;
    }
    keep_likeliest(&mut candidates, top);
    let likeliest = candidates.iter();
    Ok(target.filter(|_| merged.finite).map(|target| PromptLogprob {
        logprob: merged.logprob(target),
        top_logprobs: likeliest
            .map(|&(logit, token)| (TokenId(token), merged.logprob(logit)))
            .collect(),
    }))
}

fn read(
    reader: &mut Reader<'_>,
    merged: &mut Merged,
    target: &mut Option<f32>,
    candidates: &mut Vec<(f32, u32)>,
) -> Option<()> {
    for _ in 0..reader.u32()? {
        let finite = reader.u32()? == 1;
        let max = reader.f32()?;
        // Which token it is nobody asks.
        merged.add(finite, max, 0, reader.f32()?);
    }
    let (is_here, logit) = (reader.u32()? == 1, reader.f32()?);
    if is_here {
        *target = Some(logit);
    }
    reader.candidates(candidates)
}
