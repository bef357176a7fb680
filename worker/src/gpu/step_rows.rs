//! The rows of a step as the device sees them: positions, rotations, block tables, and who attends together.
//!
//! Rows that decode are read by one query row at a time; rows of one sequence that follow each other share what they read of
//! K and V. Which rows share changes no bit.

use std::ops::Range;

use super::kernel::AttendItem;
use crate::{
    arith::reference::{self, ATTENTION_CHUNK},
    rank_books::WorkInput,
};

#[derive(Debug, Default)]
pub struct StepRows {
    /// Per row.
    pub positions: Vec<u32>,
    /// Per row: which block table.
    pub sequences: Vec<u32>,
    /// `[rows][pairs][2]`: cosine, sine
    pub rotations: Vec<f32>,
    /// `[sequences][table_stride]`
    pub tables: Vec<u32>,
    pub table_stride: u32,
    /// Rows that attend alone, and runs of rows that attend together; both in the order of rows.
    pub singles: Vec<AttendItem>,
    pub runs: Vec<AttendItem>,
    /// Attention chunks of the longest sequence, a power of two: so that few numbers of them occur.
    pub num_chunks: u32,
}

impl StepRows {
    /// Replaces all by the rows of `work`. run_rows: most rows that attend together.
    pub fn set(&mut self, work: &[WorkInput], frequencies: &[f64], run_rows: u32, table_stride: u32) {
        let Self {
            positions,
            sequences,
            rotations,
            tables,
            singles,
            runs,
            ..
        } = self;
        positions.clear();
        sequences.clear();
        rotations.clear();
        tables.clear();
        singles.clear();
        runs.clear();
        for (sequence, work) in work.iter().enumerate() {
            let first = positions.len() as u32;
            positions.extend(work.start..work.end());
            sequences.resize(positions.len(), sequence as u32);
            let begin = tables.len();
            tables.extend(work.blocks.iter().map(|block| block.0));
            tables.resize(begin + table_stride as usize, 0);
            match work.tokens.len() as u32 {
                1 => singles.push(AttendItem { row: first, rows: 1 }),
                rows => runs.extend(cut(first, rows, run_rows)),
            }
        }
        for position in &*positions {
            let pairs = frequencies
                .iter()
                .map(|frequency| reference::rope_cos_sin(*position, *frequency));
            rotations.extend(pairs.flat_map(|(cosine, sine)| [cosine, sine]));
        }
        let longest = positions.iter().max().map_or(1, |position| position + 1);
        self.num_chunks = longest.div_ceil(ATTENTION_CHUNK as u32).next_power_of_two();
        self.table_stride = table_stride;
    }

    pub fn len(&self) -> usize {
        self.positions.len()
    }

    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Every sequence has one row: the same launches as any other such step of so many rows.
    pub fn all_decode(&self) -> bool {
        self.runs.is_empty()
    }

    /// The step's rows in slices of at most about `rows` rows, none of which cuts a run.
    pub fn slices(&self, rows: usize) -> Vec<Range<u32>> {
        let mut slices: Vec<Range<u32>> = Vec::new();
        let mut items: Vec<AttendItem> = self.singles.iter().chain(&self.runs).copied().collect();
        items.sort_by_key(|item| item.row);
        for item in items {
            let end = item.row + item.rows;
            match slices.last_mut() {
                Some(slice) if (end - slice.start) as usize <= rows => slice.end = end,
                _ => slices.push(item.row..end),
            }
        }
        slices
    }
}

fn cut(first: u32, rows: u32, most: u32) -> impl Iterator<Item = AttendItem> {
    (0..rows).step_by(most as usize).map(move |at| AttendItem {
        row: first + at,
        rows: most.min(rows - at),
    })
}

/// Those of `items`, in the order of rows, that lie in a slice.
pub fn items_in(items: &[AttendItem], slice: &Range<u32>) -> Range<usize> {
    let before = |row: u32| items.partition_point(|item| item.row < row);
    before(slice.start)..before(slice.end)
}

#[cfg(test)]
mod tests {
    use kvasir_kv::{BlockId, TokenId};

    use super::*;

    fn work(start: u32, tokens: usize) -> WorkInput {
        WorkInput {
            start,
            tokens: vec![TokenId(0); tokens],
            blocks: vec![BlockId(start), BlockId(7)],
            ..WorkInput::default()
        }
    }

    #[test]
    fn every_row_attends_once_and_slices_cut_no_run() {
        let mut rows = StepRows::default();
        let step = [work(5, 1), work(0, 23), work(300, 1), work(100, 9)];
        rows.set(&step, &[1.0], 8, 5);
        assert_eq!(rows.len(), 34);
        assert_eq!(rows.num_chunks, 2);
        assert_eq!(rows.tables[..10], [5, 7, 0, 0, 0, 0, 7, 0, 0, 0]);
        let mut seen = vec![0; rows.len()];
        for item in rows.singles.iter().chain(&rows.runs) {
            assert!(item.rows <= 8);
            (item.row..item.row + item.rows).for_each(|row| seen[row as usize] += 1);
            let sequence = rows.sequences[item.row as usize];
            assert_eq!(sequence, rows.sequences[(item.row + item.rows - 1) as usize]);
        }
        assert_eq!(seen, vec![1; rows.len()]);
        for most in [1, 8, 11, 100] {
            let slices = rows.slices(most);
            let items: usize = slices
                .iter()
                .map(|slice| items_in(&rows.singles, slice).len() + items_in(&rows.runs, slice).len())
                .sum();
            assert_eq!(items, rows.singles.len() + rows.runs.len());
            assert!(slices.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(slices.iter().all(|slice| slice.len() <= most.max(8)));
        }
    }

    #[test]
    fn rows_that_may_not_attend_together_attend_one_by_one() {
        let mut rows = StepRows::default();
        rows.set(&[work(0, 3)], &[], 1, 2);
        assert_eq!(rows.runs.len(), 3);
        assert!(!rows.all_decode());
    }
}
