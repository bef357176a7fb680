//! The door between a rank and its arithmetic: one step's rows in, the local share of the logits out.
//!
//! Two implementations stand behind it: [`crate::canonical`] (the same bits for any plan) and `crate::oracle`
//! (candle, an independent check, and later the way to GPUs). A backend never samples and knows no requests.

use kvasir_kv::{BlockId, EpochSpec, KvHead, LoadReport, TokenId, UnitLayout};

use crate::{
    arith::UnitSummary,
    collective::{Collective, CollectiveError},
    rank_books::WorkInput,
    sampler::{LogitsShare, UnitRows},
    scorer::ScoreShare,
    weights::LoadedUnits,
};

/// Most rows whose logits a backend holds at a time: a prompt whose tokens are scored has one for each of them.
pub const HEAD_ROWS_MAX: usize = 64;

/// What a forward pass leaves on one rank.
#[derive(Clone, Debug, Default)]
pub struct ForwardOutput {
    /// `[sampled rows][rows of the local vocab units]`, in the order of the step's sequences. Empty for a row that is
    /// picked from the summaries alone (`Sampling::needs_logits`).
    pub logits: Vec<Vec<f32>>,
    /// `[sampled rows][local vocab units]`
    pub summaries: Vec<UnitSummary>,
    /// One per scored row, in the order of the step's rows.
    pub scored: Vec<ScoreShare>,
    /// One per sequence: a partial sum, or an activation, was out of range.
    pub poisoned: Vec<bool>,
    /// Microseconds inside collectives.
    pub reduce_us: u32,
    /// Nanoseconds in which K and V were written and attended to: in each layer, of the thread that took longest. 0 where a
    /// backend does not tell.
    pub attend_ns: u64,
    /// Sampled rows that the head has given.
    num_sampled: usize,
    /// Logits of a scored row.
    scratch: Vec<f32>,
}

impl ForwardOutput {
    /// Ready for the head's rows, buffers kept.
    pub(crate) fn clear_head(&mut self, work: &[WorkInput]) {
        let num_sampled = work.iter().filter(|work| work.samples).count();
        self.logits.resize_with(num_sampled, Vec::new);
        self.summaries.clear();
        self.scored.clear();
        self.num_sampled = 0;
    }

    /// The next row of the head, of this work. `gather` appends the row's local logits.
    pub(crate) fn take_head_row(
        &mut self,
        row: &HeadRow,
        work: &WorkInput,
        units: &[UnitRows],
        summaries: &[UnitSummary],
        gather: impl FnOnce(&mut Vec<f32>),
    ) {
        if let Some(target) = row.target {
            self.scratch.clear();
            gather(&mut self.scratch);
            let share = LogitsShare {
                logits: &self.scratch,
                summaries,
                units,
            };
            self.scored
                .push(ScoreShare::new(share, target, work.prompt_top_logprobs));
            return;
        }
        self.summaries.extend(summaries);
        let logits = &mut self.logits[self.num_sampled];
        logits.clear();
        if work.sampling.needs_logits() {
            gather(logits);
        }
        self.num_sampled += 1;
    }
}

/// A row that the head looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HeadRow {
    /// Row of the step.
    pub row: usize,
    /// Whose it is, among the step's sequences.
    pub work: usize,
    /// The token that comes next, where it is known and to be scored; else one is to be picked.
    pub target: Option<TokenId>,
}

/// The rows of a step that need logits, in order.
pub(crate) fn head_rows(work: &[WorkInput]) -> Vec<HeadRow> {
    let mut rows = Vec::new();
    let mut begin = 0;
    for (index, work) in work.iter().enumerate() {
        let head = |row, target| HeadRow {
            row,
            work: index,
            target,
        };
        rows.extend(work.scored_rows().map(|(row, target)| head(begin + row, Some(target))));
        begin += work.tokens.len();
        rows.extend(work.samples.then(|| head(begin - 1, None)));
    }
    rows
}

/// Loads units ahead; see `Backend::preload`.
pub type Preload = Box<dyn FnOnce() -> Result<Preloaded, BackendError> + Send>;

/// Units that a backend loaded ahead, for itself alone.
#[derive(Debug)]
pub struct Preloaded(pub(crate) LoadedUnits);

impl Preloaded {
    pub(crate) fn num_units(&self) -> u32 {
        self.0.num_units()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    #[error("cannot load {what}: {reason}")]
    Load { what: String, reason: String },
    #[error("no memory for {bytes} bytes of {what}")]
    OutOfMemory { what: &'static str, bytes: usize },
    #[error("block {block} of KV head {head} is no cell of this rank")]
    NoSuchCell { head: KvHead, block: BlockId },
    #[error("{backend}: {reason}")]
    Device { backend: &'static str, reason: String },
}

pub trait Backend: Send {
    /// The model's cut into units, with this backend's bytes.
    fn layout(&self) -> &UnitLayout;

    /// Takes the units of `spec`'s share, keeping those it has, and makes room for its cells. Cells hold nothing then.
    fn begin_epoch(&mut self, spec: &EpochSpec) -> Result<LoadReport, BackendError>;

    /// Makes room for the cells of an epoch that may come, beside those of the present one. `import_cell` may fill it.
    fn prepare_epoch(&mut self, spec: &EpochSpec) -> Result<(), BackendError>;

    /// What an epoch that was prepared lacks, to be loaded on another thread. `None` if nothing can be loaded ahead.
    fn preload(&self, spec: &EpochSpec) -> Option<Preload>;

    /// As `begin_epoch`, for the epoch that was prepared: the cells of `held` blocks live on, those of heads that come with
    /// what was imported. Takes what was preloaded.
    fn switch_epoch(
        &mut self,
        spec: &EpochSpec,
        preloaded: Option<Preloaded>,
        held: &[BlockId],
    ) -> Result<LoadReport, BackendError>;

    /// The local vocab units, in order.
    fn vocab_units(&self) -> &[UnitRows];

    /// Bytes that the cells of these blocks take where they lie, over the local KV heads and all layers. `None` where a backend
    /// keeps whole tensors instead of cells.
    fn held_bytes(&self, blocks: &[BlockId]) -> Option<u64>;

    /// A checksum of a block's cell of each local KV head, as it is now. Empty where a backend keeps none.
    fn checksums(&self, block: BlockId) -> Vec<u32>;

    /// Copies a block's cell of a local KV head into `bytes`, whose length is `CellLayout::cell_bytes`, in the order that
    /// `CellLayout` describes, whatever the order in memory.
    fn export_cell(&mut self, head: KvHead, block: BlockId, bytes: &mut [u8]) -> Result<(), BackendError>;

    /// The reverse: the cell holds these bytes afterwards.
    fn import_cell(&mut self, head: KvHead, block: BlockId, bytes: &[u8]) -> Result<(), BackendError>;

    /// As `import_cell`, with bytes that come from `fill`. If it finds that they are wrong it returns false; the cell means
    /// nothing then.
    fn fill_cell(
        &mut self,
        head: KvHead,
        block: BlockId,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> bool,
    ) -> Result<(), BackendError> {
        let mut bytes = vec![0; len];
        match fill(&mut bytes) {
            true => self.import_cell(head, block, &bytes),
            false => Ok(()),
        }
    }

    /// Computes all rows, writing K and V into the cells. Every rank of the group makes the same call.
    fn forward(
        &mut self,
        work: &[WorkInput],
        collective: &mut dyn Collective,
        output: &mut ForwardOutput,
    ) -> Result<(), BackendError>;
}
