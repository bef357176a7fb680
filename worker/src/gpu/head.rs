//! The head: logits of the rows that are sampled or scored, for the local vocab units, so many rows at a time.
//!
//! What a greedy choice needs leaves the device as a few numbers per unit. Whole logits are brought over only where a draw, a
//! bias, a penalty or a score looks at them.

use super::{
    Gpu,
    device::{DeviceBuffer as _, GpuDevice, LaunchShape},
    forward::Normed,
    kernel::{Arguments as _, Kernel, ResidualNormArgs, Summary, TakeRowsArgs, VocabSummariesArgs},
    step_memory::address_or_none,
};
use crate::{
    arith::UnitSummary,
    backend::{BackendError, ForwardOutput, HEAD_ROWS_MAX, HeadRow, head_rows},
    rank_books::WorkInput,
};

impl<D: GpuDevice> Gpu<D> {
    /// A row that only now turns out to have no finite norm poisons its sequence, on every rank alike.
    pub(super) fn head(&mut self, work: &[WorkInput], output: &mut ForwardOutput) -> Result<(), BackendError> {
        let poison = self.poison()?;
        let mut rows = poison.iter();
        output.poisoned.extend(
            work.iter()
                .map(|work| rows.by_ref().take(work.tokens.len()).any(|poison| *poison != 0)),
        );
        for rows in head_rows(work).chunks(HEAD_ROWS_MAX) {
            self.launch_head(rows)?;
            let poison = self.head_poison(rows.len())?;
            let summaries = self.summaries(rows.len())?;
            for (at, row) in rows.iter().enumerate() {
                output.poisoned[row.work] |= poison[at] != 0;
                let units = self.vocab_units.len();
                let summaries = &summaries[at * units..][..units];
                let of_work = &work[row.work];
                let wants_logits = row.target.is_some() || of_work.sampling.needs_logits();
                let row_logits = if wants_logits { self.logits(at)? } else { Vec::new() };
                let gather = |logits: &mut Vec<f32>| logits.extend(&row_logits);
                output.take_head_row(row, of_work, &self.vocab_units, summaries, gather);
            }
        }
        Ok(())
    }

    fn poison(&mut self) -> Result<Vec<u32>, BackendError> {
        let mut poison = vec![0u32; self.rows.len()];
        let launcher = self.launcher();
        let bytes = bytemuck::cast_slice_mut(&mut poison);
        launcher.device.download(&launcher.memory.poison, 0, bytes)?;
        Ok(poison)
    }

    fn launch_head(&mut self, rows: &[HeadRow]) -> Result<(), BackendError> {
        let numbers: Vec<u32> = rows.iter().map(|row| row.row as u32).collect();
        let mut launcher = self.launcher();
        launcher.tokens = numbers.len() as u32;
        let (memory, epoch, tokens) = (launcher.memory, launcher.epoch, launcher.tokens);
        let head = &memory.head;
        launcher.device.upload(bytemuck::cast_slice(&numbers), &head.rows, 0)?;
        let take = TakeRowsArgs {
            x: memory.x.address(),
            poison: memory.poison.address(),
            rows: head.rows.address(),
            taken: head.x.address(),
            taken_poison: head.poison.address(),
            cols: launcher.hidden,
            padding: 0,
        };
        let shape = LaunchShape::new([tokens, 1, 1], 256);
        take.launch(launcher.device, Kernel::TakeRows, shape)?;
        let int8 = head.normed_int8.rows_if(epoch.head.wants_int8());
        let norm = ResidualNormArgs {
            x: head.x.address(),
            weight: epoch.table.address(epoch.output_norm),
            normed: head.normed.address(),
            halves: address_or_none(&head.normed_halves),
            int8,
            poison: head.poison.address(),
            cols: launcher.hidden,
            eps: launcher.eps,
            ..ResidualNormArgs::default()
        };
        let shared = 4 * (launcher.hidden as usize + 1);
        norm.launch(launcher.device, Kernel::ResidualNorm, shape.shared(shared))?;
        let input = Normed {
            x: head.normed.address(),
            halves: address_or_none(&head.normed_halves),
            int8,
        };
        launcher.multiply(&epoch.head, input, head.logits.address(), head.poison.address())?;
        self.launch_summaries(tokens)
    }

    fn launch_summaries(&mut self, tokens: u32) -> Result<(), BackendError> {
        let largest = self.vocab_units.iter().map(|unit| unit.rows as usize).max();
        let (Some(largest), num_units) = (largest, self.vocab_units.len() as u32) else {
            return Ok(());
        };
        let launcher = self.launcher();
        let (head, epoch) = (&launcher.memory.head, launcher.epoch);
        let args = VocabSummariesArgs {
            logits: head.logits.address(),
            units: epoch.table.address(epoch.head_begins),
            summaries: head.summaries.address(),
            stride: epoch.head.rows,
            num_units,
        };
        // Three values of each of eight warps follow the terms.
        let shared = 4 * (largest.next_multiple_of(16) + 3 * 8);
        let shape = LaunchShape::new([num_units, tokens, 1], 256).shared(shared);
        Ok(args.launch(launcher.device, Kernel::VocabSummaries, shape)?)
    }

    fn head_poison(&mut self, rows: usize) -> Result<Vec<u32>, BackendError> {
        let mut poison = vec![0u32; rows];
        let launcher = self.launcher();
        let bytes = bytemuck::cast_slice_mut(&mut poison);
        launcher.device.download(&launcher.memory.head.poison, 0, bytes)?;
        Ok(poison)
    }

    /// `[rows][local vocab units]`
    fn summaries(&mut self, rows: usize) -> Result<Vec<UnitSummary>, BackendError> {
        let mut summaries = vec![Summary::default(); rows * self.vocab_units.len()];
        let launcher = self.launcher();
        let bytes = bytemuck::cast_slice_mut(&mut summaries);
        launcher.device.download(&launcher.memory.head.summaries, 0, bytes)?;
        let summary = |summary: &Summary| UnitSummary {
            max: summary.max,
            argmax: summary.argmax as usize,
            sum_exp: summary.sum_exp,
            finite: summary.finite != 0,
        };
        Ok(summaries.iter().map(summary).collect())
    }

    /// Of the head's row `at`.
    fn logits(&mut self, at: usize) -> Result<Vec<f32>, BackendError> {
        let launcher = self.launcher();
        let len = launcher.epoch.head.rows as usize;
        let mut logits = vec![0.0f32; len];
        let bytes = bytemuck::cast_slice_mut(&mut logits);
        launcher
            .device
            .download(&launcher.memory.head.logits, 4 * at * len, bytes)?;
        Ok(logits)
    }
}
