//! The sampler: every rank picks the same token from all ranks' shares of the logits.
//!
//! Where the likeliest token is wanted as it is, a row exchanges one summary per vocab unit and the likeliest few tokens;
//! where it is drawn, biased or penalized, its logits, of which each rank makes the same pick (`draw`). Logprobs are those
//! of the model's logits, whatever was done to them.

use kvasir_kv::{RankShare, SampledToken, Sampling, TOP_LOGPROBS_MAX, TokenId, UnitId, UnitKind, UnitLayout};

use kvasir_model::TokenMask;

use crate::{
    arith::UnitSummary,
    collective::{Collective, CollectiveError},
    draw,
    shares::{Merged, Reader, keep_likeliest, out_of_step, put, put_candidates},
};

/// One local vocab unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnitRows {
    /// First token of the unit.
    pub first: u32,
    pub rows: u32,
}

impl UnitRows {
    /// The vocab units of a share, in order.
    pub(crate) fn of(layout: &UnitLayout, share: &RankShare) -> Vec<Self> {
        let extents = share
            .vocab
            .clone()
            .map(|unit| layout.extent(UnitKind::Vocab, UnitId(unit)));
        extents
            .map(|rows| Self {
                first: rows.start,
                rows: rows.end - rows.start,
            })
            .collect()
    }
}

/// One row to sample: whose it is and how.
#[derive(Clone, Debug)]
pub struct SampleRow<'a> {
    pub sequence: kvasir_kv::SequenceId,
    pub sampling: &'a Sampling,
    /// Tokens of prompt and answer, with how often each is in the answer; empty where nothing is penalized.
    pub seen: &'a [(TokenId, u32)],
    /// Index in the answer of the token to pick.
    pub index: u32,
    /// Tokens that may be picked; all where there is no constraint.
    pub allowed: Option<&'a TokenMask>,
    /// Already known to be out of range, or to have no token that it could pick; takes part in the exchange and gets no token.
    pub poisoned: bool,
}

/// A row's share on one rank.
#[derive(Clone, Copy, Debug)]
pub struct LogitsShare<'a> {
    /// Of the local units, in order.
    pub logits: &'a [f32],
    pub summaries: &'a [UnitSummary],
    pub units: &'a [UnitRows],
}

impl LogitsShare<'_> {
    /// The local candidates for the likeliest tokens.
    pub(crate) fn likeliest(self, count: usize, candidates: &mut Vec<(f32, u32)>) {
        candidates.clear();
        if count == 0 {
            return;
        }
        let tokens = self.units.iter().flat_map(|unit| unit.first..unit.first + unit.rows);
        candidates.extend(self.logits.iter().copied().zip(tokens));
        keep_likeliest(candidates, count);
    }

    /// None if the token's unit is not here.
    pub(crate) fn logit_of(self, token: TokenId) -> Option<f32> {
        let mut before = 0;
        for unit in self.units {
            if (unit.first..unit.first + unit.rows).contains(&token.0) {
                return self.logits.get((before + token.0 - unit.first) as usize).copied();
            }
            before += unit.rows;
        }
        None
    }
}

/// What came of a row.
#[derive(Clone, PartialEq, Debug)]
pub enum Picked {
    Token(SampledToken),
    /// A logit is not finite.
    Poisoned,
}

/// Buffers of the exchange, reused from step to step.
#[derive(Debug, Default)]
pub struct Sampler {
    mine: Vec<u8>,
    gathered: Vec<Vec<u8>>,
    candidates: Vec<(f32, u32)>,
    logits: Vec<f32>,
    changed: Vec<draw::Candidate>,
}

impl Sampler {
    /// Picks a token for each row. `share(i)` is the local share of row `i`.
    pub fn sample<'a>(
        &mut self,
        rows: &[SampleRow<'_>],
        share: impl Fn(usize) -> LogitsShare<'a>,
        collective: &mut dyn Collective,
    ) -> Result<Vec<Picked>, CollectiveError> {
        self.mine.clear();
        for (i, row) in rows.iter().enumerate() {
            self.write_share(row, share(i));
        }
        collective.all_gather(&self.mine, &mut self.gathered)?;
        let gathered = std::mem::take(&mut self.gathered);
        let mut readers: Vec<Reader<'_>> = gathered.iter().map(|bytes| Reader(bytes)).collect();
        let mut picked = Vec::with_capacity(rows.len());
        for row in rows {
            self.candidates.clear();
            self.logits.clear();
            let mut merged = Merged::default();
            for (rank, reader) in readers.iter_mut().enumerate() {
                read_share(reader, row, &mut merged, &mut self.candidates, &mut self.logits)
                    .ok_or_else(|| out_of_step(rank))?;
            }
            picked.push(self.pick(row, &merged));
        }
        self.gathered = gathered;
        Ok(picked)
    }

    fn write_share(&mut self, row: &SampleRow<'_>, share: LogitsShare<'_>) {
        put(&mut self.mine, share.summaries.len() as u32);
        for (summary, unit) in share.summaries.iter().zip(share.units) {
            let finite = summary.finite && !row.poisoned;
            put(&mut self.mine, u32::from(finite));
            put(&mut self.mine, summary.max.to_bits());
            put(&mut self.mine, unit.first + summary.argmax as u32);
            put(&mut self.mine, summary.sum_exp.to_bits());
        }
        if row.sampling.picks_from_logits() {
            put(&mut self.mine, share.logits.len() as u32);
            self.mine
                .extend(share.logits.iter().flat_map(|logit| logit.to_le_bytes()));
        } else {
            share.likeliest(top_of(row.sampling), &mut self.candidates);
            put_candidates(&mut self.mine, &self.candidates);
        }
    }

    fn pick(&mut self, row: &SampleRow<'_>, merged: &Merged) -> Picked {
        if !merged.finite {
            return Picked::Poisoned;
        }
        let top = top_of(row.sampling);
        let (token, logit) = if row.sampling.picks_from_logits() {
            let token = draw::pick(
                row.sampling,
                row.seen,
                row.index,
                row.allowed,
                &self.logits,
                &mut self.changed,
            );
            if top > 0 {
                self.candidates.extend(self.logits.iter().copied().zip(0..));
            }
            (token, self.logits[token as usize])
        } else {
            (merged.argmax, merged.max)
        };
        keep_likeliest(&mut self.candidates, top);
        Picked::Token(SampledToken {
            sequence: row.sequence,
            token: TokenId(token),
            logprob: merged.logprob(logit),
            top_logprobs: self
                .candidates
                .iter()
                .map(|&(logit, token)| (TokenId(token), merged.logprob(logit)))
                .collect(),
        })
    }
}

fn top_of(sampling: &Sampling) -> usize {
    sampling.top_logprobs.min(TOP_LOGPROBS_MAX) as usize
}

/// Reads one rank's share of a row, units in order. None if the bytes are not such a share.
fn read_share(
    reader: &mut Reader<'_>,
    row: &SampleRow<'_>,
    merged: &mut Merged,
    candidates: &mut Vec<(f32, u32)>,
    logits: &mut Vec<f32>,
) -> Option<()> {
    for _ in 0..reader.u32()? {
        let finite = reader.u32()? == 1;
        let max = reader.f32()?;
        let argmax = reader.u32()?;
        merged.add(finite, max, argmax, reader.f32()?);
    }
    if !row.sampling.picks_from_logits() {
        return reader.candidates(candidates);
    }
    for _ in 0..reader.u32()? {
        logits.push(reader.f32()?);
    }
    Some(())
}
