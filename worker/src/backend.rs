//! The door between a rank and its arithmetic: one step's rows in, the local share of the logits out.
//!
//! Two implementations stand behind it: [`crate::canonical`] (the same bits for any plan) and `crate::oracle`
//! (candle, an independent check, and later the way to GPUs). A backend never samples and knows no requests.

use kvasir_kv::{BlockId, EpochSpec, LoadReport, UnitLayout};

use crate::{
    arith::UnitSummary,
    collective::{Collective, CollectiveError},
    rank_books::WorkInput,
    sampler::UnitRows,
};

/// What a forward pass leaves on one rank.
#[derive(Clone, Debug, Default)]
pub struct ForwardOutput {
    /// `[sampled rows][rows of the local vocab units]`, in the order of the step's sequences. Empty for a row that is
    /// picked from the summaries alone: greedy, without top logprobs.
    pub logits: Vec<Vec<f32>>,
    /// `[sampled rows][local vocab units]`
    pub summaries: Vec<UnitSummary>,
    /// One per sequence: a partial sum, or an activation, was out of range.
    pub poisoned: Vec<bool>,
    /// Microseconds inside collectives.
    pub reduce_us: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    #[error("cannot load {what}: {reason}")]
    Load { what: String, reason: String },
    #[error("no memory for {bytes} bytes of {what}")]
    OutOfMemory { what: &'static str, bytes: usize },
    #[error("{backend}: {reason}")]
    Device { backend: &'static str, reason: String },
}

pub trait Backend: Send {
    /// The model's cut into units, with this backend's bytes.
    fn layout(&self) -> &UnitLayout;

    /// Takes the units of `spec`'s share, keeping those it has, and makes room for its cells. Cells hold nothing then.
    fn begin_epoch(&mut self, spec: &EpochSpec) -> Result<LoadReport, BackendError>;

    /// The local vocab units, in order.
    fn vocab_units(&self) -> &[UnitRows];

    /// A checksum of a block's cell of each local KV head, as it is now. Empty where a backend keeps none.
    fn checksums(&self, block: BlockId) -> Vec<u32>;

    /// Computes all rows, writing K and V into the cells. Every rank of the group makes the same call.
    fn forward(
        &mut self,
        work: &[WorkInput],
        collective: &mut dyn Collective,
        output: &mut ForwardOutput,
    ) -> Result<(), BackendError>;
}
