//! The experiment: one group of ranks for each G, all measured in turn, so that what else the machine does meets all alike.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use kvasir_kv::{BlockPool, CellLayout, HeadLayout, KvDtype, RankCapacity, ShardPlan};
use kvasir_model::{BackendKind, Checkpoint, WeightMode};
use kvasir_runtime::ByteSize;
use kvasir_worker::{
    BackendConfig, open_backend,
    rank_threads::{GroupPlan, RankThreads},
};

use super::{
    measured::Measured,
    point::{Feed, Point},
    report::{Report, Row},
};
use crate::{
    arithmetic_options::Arithmetic,
    bench::memory,
    lab::{available_memory, block_model::BlockModel},
};

/// Of each round.
const MEMORY_RUNS: u32 = 3;

/// What is to be measured, checked.
#[derive(Clone, Debug)]
pub struct Experiment {
    pub hidden_size: u32,
    pub ffn_size: u32,
    /// One for each G, ascending.
    pub layouts: Vec<HeadLayout>,
    pub num_layers: u32,
    /// Tokens in the cache, ascending.
    pub points: Vec<u32>,
    pub feed: Feed,
    pub kv_dtype: KvDtype,
    pub weight_mode: WeightMode,
    pub arithmetic: Arithmetic,
    pub block_size: u32,
    pub ranks: u32,
    /// Of each rank.
    pub threads: u32,
    pub rounds: u32,
}

/// One G.
struct Group {
    layout: HeadLayout,
    cell: CellLayout,
    ranks: RankThreads,
    points: Arc<Vec<Point>>,
    measured: Vec<Measured>,
}

impl Experiment {
    pub fn run(&self) -> Result<Report> {
        let threads = (self.ranks * self.threads) as usize;
        let on_cpu = !self.arithmetic.backend.is_cuda();
        self.check_memory()?;
        let mut rates = Vec::new();
        let mut groups = self
            .layouts
            .iter()
            .map(|layout| self.start(*layout))
            .collect::<Result<Vec<_>>>()?;
        for round in 0..self.rounds {
            if on_cpu {
                rates.extend(memory::read_gb_per_s(threads, MEMORY_RUNS)?);
            }
            for group in &mut groups {
                self.measure(group, round == 0)?;
            }
        }
        let rows = groups.into_iter().flat_map(|group| self.rows(group)).collect();
        Report::new(self, rows, &rates)
    }

    /// All groups are in memory together.
    fn check_memory(&self) -> Result<()> {
        let cells: Result<Vec<u64>> = self.layouts.iter().map(|layout| self.cache_bytes(layout)).collect();
        let needed: u64 = cells?.iter().sum();
        let available = available_memory::bytes();
        ensure!(
            self.arithmetic.backend.is_cuda() || available.is_none_or(|available| needed < available / 10 * 9),
            "the caches of all groups take {}, and {} of memory is available; fewer --groups, a shorter --context or a \
             smaller --batch would work",
            ByteSize(needed),
            ByteSize(available.unwrap_or(0))
        );
        Ok(())
    }

    fn cache_bytes(&self, layout: &HeadLayout) -> Result<u64> {
        let cell = self.cell(layout)?;
        Ok(u64::from(layout.num_kv_heads()) * cell.slab_bytes(self.num_blocks(&cell)) as u64)
    }

    fn cell(&self, layout: &HeadLayout) -> Result<CellLayout> {
        Ok(CellLayout::new(
            self.num_layers,
            layout.head_dim(),
            self.block_size,
            self.kv_dtype,
        )?)
    }

    fn context_max(&self) -> u32 {
        self.points.last().copied().unwrap_or(0)
    }

    fn num_blocks(&self, cell: &CellLayout) -> u32 {
        self.feed.batch * cell.blocks_for(self.context_max())
    }

    fn start(&self, layout: HeadLayout) -> Result<Group> {
        let cell = self.cell(&layout)?;
        let num_blocks = self.num_blocks(&cell);
        let folder = tempfile::tempdir().context("cannot make a folder for the model")?;
        let model = BlockModel {
            hidden_size: self.hidden_size,
            ffn_size: self.ffn_size,
            heads: layout,
            num_layers: self.num_layers,
            context_len: self.context_max(),
        };
        model.write(folder.path())?;
        let checkpoint = Arc::new(Checkpoint::open(folder.path())?);
        let units = checkpoint.unit_layout(self.weight_mode)?;
        let plan = GroupPlan {
            shares: ShardPlan::balance(&units, &vec![RankCapacity::default(); self.ranks as usize], 0)?
                .shares()
                .to_vec(),
            num_blocks,
            block_size: self.block_size,
            step_tokens_max: self.feed.batch,
        };
        let config = BackendConfig {
            kind: self.arithmetic.backend,
            gpu_ordinal: self.arithmetic.gpu_ordinal,
            weight_mode: self.weight_mode,
            threads: self.threads as usize,
            kv_memory_bytes: 0,
        };
        let ranks = RankThreads::start(&plan, move || open_backend(&config, Arc::clone(&checkpoint), cell))?;
        Ok(Group {
            layout,
            cell,
            ranks,
            points: Arc::new(Point::all(
                &self.points,
                &self.feed,
                &cell,
                &mut BlockPool::new(num_blocks),
            )?),
            measured: self.points.iter().map(|_| Measured::default()).collect(),
        })
    }

    fn measure(&self, group: &mut Group, is_first: bool) -> Result<()> {
        let (cell, cached) = (group.cell, self.arithmetic.backend == BackendKind::Canonical);
        for (index, measured) in group.measured.iter_mut().enumerate() {
            let points = Arc::clone(&group.points);
            let told = group
                .ranks
                .run(move |rank| points[index].measure(rank, &cell, is_first, cached))?;
            measured.add(&told);
        }
        Ok(())
    }

    fn rows(&self, group: Group) -> Vec<Row> {
        let Group {
            layout,
            cell,
            points,
            measured,
            ..
        } = group;
        let of_point =
            |(point, measured): (&Point, Measured)| Row::new(&layout, &cell, point.context, self.feed.batch, &measured);
        points.iter().zip(measured).map(of_point).collect()
    }
}
