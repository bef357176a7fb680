//! Which tokens may come next, for the sequences whose answers follow a constraint.
//!
//! Every rank finds that out for itself, from the answer's tokens: nothing of it travels, and a rank that takes a sequence
//! over stands where the one before it stood.

use std::{collections::BTreeMap, sync::Arc};

use kvasir_kv::{Constraint, SequenceId, TokenId};
use kvasir_model::{Checkpoint, ConstraintError, Constraints, Followed, TokenMask};

use crate::rank_books::WorkInput;

/// The constrained sequences of an epoch.
#[derive(Debug, Default)]
pub struct Constrained {
    checkpoint: Option<Arc<Checkpoint>>,
    /// Made when the first constraint comes.
    compiler: Option<Constraints>,
    answers: BTreeMap<SequenceId, ConstrainedAnswer>,
}

/// Where one answer stands.
#[derive(Debug)]
struct ConstrainedAnswer {
    constraint: Constraint,
    tokens: Vec<TokenId>,
    followed: Followed,
}

impl Constrained {
    /// For the vocabulary of this checkpoint.
    pub fn new(checkpoint: Arc<Checkpoint>) -> Self {
        Self {
            checkpoint: Some(checkpoint),
            ..Self::default()
        }
    }

    /// Another epoch's sequences may have the same ids.
    pub fn forget_all(&mut self) {
        self.answers.clear();
    }

    pub fn forget(&mut self, sequences: &[SequenceId]) {
        for sequence in sequences {
            self.answers.remove(sequence);
        }
    }

    /// What each of the rows that sample allows, in order; no mask where anything is. A sequence whose constraint cannot
    /// be followed is an error of that sequence alone, on all ranks alike.
    pub fn masks<'a>(&mut self, sampled: impl Iterator<Item = &'a WorkInput>) -> Vec<Result<Option<TokenMask>, ()>> {
        let mut masks = Vec::new();
        for work in sampled {
            masks.push(match &work.sampling.constraint {
                None => Ok(None),
                Some(constraint) => match self.mask(work, constraint) {
                    Ok(mask) => Ok(Some(mask)),
                    Err(error) => {
                        // What is wrong quotes the answer, which is nobody's to read unless they ask.
                        tracing::debug!(sequence = %work.sequence, %error, "a constraint is given up");
                        tracing::warn!(sequence = %work.sequence, "a constraint cannot be followed; its sequence ends");
                        Err(())
                    }
                },
            });
        }
        masks
    }

    fn mask(&mut self, work: &WorkInput, constraint: &Constraint) -> Result<TokenMask, ConstraintError> {
        let stands = self
            .answers
            .get(&work.sequence)
            .is_some_and(|answer| answer.constraint == *constraint && work.answer.starts_with(&answer.tokens));
        if !stands {
            let answer = ConstrainedAnswer {
                constraint: constraint.clone(),
                tokens: Vec::new(),
                followed: self.compiler()?.compile(constraint)?,
            };
            self.answers.insert(work.sequence, answer);
        }
        let answer = self.answers.get_mut(&work.sequence).expect("it was there, or is now");
        for &token in &work.answer[answer.tokens.len()..] {
            answer.followed.push(token)?;
            answer.tokens.push(token);
        }
        answer.followed.allowed()
    }

    fn compiler(&mut self) -> Result<&Constraints, ConstraintError> {
        if self.compiler.is_none() {
            let vocabulary = |reason: String| ConstraintError::Vocabulary { reason };
            let checkpoint = self.checkpoint.as_ref();
            let checkpoint = checkpoint.ok_or_else(|| vocabulary("this rank has no tokenizer".to_owned()))?;
            let tokenizer = checkpoint.tokenizer().map_err(|error| vocabulary(error.to_string()))?;
            self.compiler = Some(Constraints::new(&tokenizer)?);
        }
        Ok(self.compiler.as_ref().expect("made just now"))
    }
}
