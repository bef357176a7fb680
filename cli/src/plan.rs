//! `kvasir plan`: who would hold what, and what it costs. Pure: reads the header of the model file and nothing else.

use anyhow::{Context, Result, bail};
use clap::Args;
use kvasir_kv::{CellLayout, PlanError, RankCapacity, RankShare, ShardPlan, UnitKind, UnitLayout};
use kvasir_model::Checkpoint;
use kvasir_runtime::ByteSize;

use crate::{engine_options::EngineOptions, plan_report::PlanReport};

/// More ranks than this are not looked at when a smaller or larger plan is searched.
const SEARCH_MAX: usize = 1024;

/// Shows the shard plan of a model: units, memory, bytes on the wire, what fits
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  kvasir plan --model model.gguf --workers 2\n  kvasir plan --model model.gguf \
                        --workers 3 --weights 1,1,2 --memory 8GiB --context 8192 --concurrency 16"
)]
pub struct PlanArgs {
    #[command(flatten)]
    pub engine: EngineOptions,
    /// Ranks, any number
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    workers: u32,
    /// Relative speed of each rank, separated by commas [default: all equal]
    #[arg(long, value_delimiter = ',', value_name = "W,…")]
    weights: Vec<f64>,
    /// Memory of each rank for weights and KV cache: one size for all, or one each, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "SIZE,…")]
    memory: Vec<ByteSize>,
    /// Tokens of one request, prompt and answer [default: the model's context]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    /// Requests of that length that must fit at a time
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: u32,
    /// Speed of the network between ranks, in gigabits a second
    #[arg(long, default_value_t = 10.0, value_name = "GBPS")]
    link_gbps: f64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A question, checked.
#[derive(Debug)]
pub struct Question {
    pub layout: UnitLayout,
    pub cell: CellLayout,
    pub capacities: Vec<RankCapacity>,
    /// Tokens of one request.
    pub context: u32,
    pub concurrency: u32,
    pub link_gbps: f64,
}

pub fn run(args: &PlanArgs) -> Result<()> {
    let path = &args.engine.model;
    let checkpoint = Checkpoint::open(path).with_context(|| path.display().to_string())?;
    let question = args.question(&checkpoint)?;
    let plan = match question.balance(&question.capacities) {
        Ok(plan) => plan,
        Err(error) => bail!("{error}; {}", question.nearest(&error)),
    };
    let report = PlanReport::new(&checkpoint, &question, &plan);
    match args.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => report.print(),
    }
    Ok(())
}

impl PlanArgs {
    fn question(&self, checkpoint: &Checkpoint) -> Result<Question> {
        let (capacities, context) = (self.capacities()?, self.context);
        Question::new(
            checkpoint,
            &self.engine,
            capacities,
            context,
            self.concurrency,
            self.link_gbps,
        )
    }

    fn capacities(&self) -> Result<Vec<RankCapacity>> {
        let workers = self.workers as usize;
        let weights = one_each("--weights", &self.weights, workers)?;
        let memory = one_each("--memory", &self.memory, workers)?;
        let rank = |rank: usize| RankCapacity {
            weight: weights.get(rank).copied().unwrap_or(1.0),
            memory_bytes: memory.get(rank).map(|size| size.0),
        };
        Ok((0..workers).map(rank).collect())
    }
}

/// One value stands for all ranks; none stays none.
fn one_each<T: Copy>(flag: &str, values: &[T], workers: usize) -> Result<Vec<T>> {
    match values.len() {
        1 => Ok(vec![values[0]; workers]),
        len if len == workers || len == 0 => Ok(values.to_vec()),
        len => bail!("{flag} has {len} values for {workers} workers; give one, or one for each"),
    }
}

impl Question {
    /// context: the model's own, if `None`. Errors, as of `--context` and `--link-gbps`, if the model does not reach so far or
    /// the link is none.
    pub fn new(
        checkpoint: &Checkpoint,
        engine: &EngineOptions,
        capacities: Vec<RankCapacity>,
        context: Option<u32>,
        concurrency: u32,
        link_gbps: f64,
    ) -> Result<Self> {
        let spec = checkpoint.spec();
        let context = context.unwrap_or(spec.context_len);
        if context > spec.context_len {
            bail!(
                "--context {context} exceeds the {} tokens of the model's context",
                spec.context_len
            );
        }
        if !(link_gbps.is_finite() && link_gbps > 0.0) {
            bail!("--link-gbps {link_gbps} must be above 0");
        }
        Ok(Self {
            layout: checkpoint.unit_layout(engine.weights_dtype)?,
            cell: CellLayout::new(spec.num_layers, spec.head_dim, engine.block_size, engine.kv_dtype)?,
            capacities,
            context,
            concurrency,
            link_gbps,
        })
    }

    /// KV bytes of one head for all requests together.
    pub fn cell_bytes_per_head(&self) -> u64 {
        let blocks = u64::from(self.cell.blocks_for(self.context)) * u64::from(self.concurrency);
        blocks * self.cell.cell_bytes() as u64
    }

    pub fn balance(&self, capacities: &[RankCapacity]) -> Result<ShardPlan, PlanError> {
        ShardPlan::balance(&self.layout, capacities, self.cell_bytes_per_head())
    }

    /// The fewest ranks that fit, each with the least memory that was named.
    pub fn smallest_fit(&self) -> Option<usize> {
        let memory_bytes = self
            .capacities
            .iter()
            .filter_map(|capacity| capacity.memory_bytes)
            .min()?;
        let rank = RankCapacity {
            weight: 1.0,
            memory_bytes: Some(memory_bytes),
        };
        (1..=self.useful_ranks().min(SEARCH_MAX)).find(|&ranks| self.balance(&vec![rank; ranks]).is_ok())
    }

    /// Blocks that every rank of `plan` has room for; `None` without a limit.
    pub fn num_blocks(&self, shares: &[RankShare]) -> Option<u64> {
        let holding = shares
            .iter()
            .zip(&self.capacities)
            .filter(|(share, _)| share.num_kv_heads() > 0);
        holding
            .filter_map(|(share, capacity)| {
                let room = capacity.memory_bytes?.saturating_sub(share.weight_bytes(&self.layout));
                Some(room / (u64::from(share.num_kv_heads()) * self.cell.cell_bytes() as u64))
            })
            .min()
    }

    fn useful_ranks(&self) -> usize {
        let units: u32 = UnitKind::ALL.into_iter().map(|kind| self.layout.count(kind)).sum();
        units as usize
    }

    /// The nearest plan that works, as advice.
    fn nearest(&self, error: &PlanError) -> String {
        match error {
            PlanError::TooManyRanks { units, .. } => format!("the nearest plan that works has --workers {units}"),
            PlanError::TooLittleMemory { .. } => self.nearest_in_memory(),
            _ => "correct that value".to_owned(),
        }
    }

    fn nearest_in_memory(&self) -> String {
        if let Some(ranks) = self.smallest_fit() {
            return format!("the smallest number of such workers that fits is {ranks}: --workers {ranks}");
        }
        // No number of ranks holds one head for so long: shorten what is asked for.
        let unlimited: Vec<_> = self
            .capacities
            .iter()
            .map(|capacity| RankCapacity {
                memory_bytes: None,
                ..*capacity
            })
            .collect();
        let tokens = self
            .balance(&unlimited)
            .ok()
            .and_then(|plan| self.num_blocks(plan.shares()));
        let tokens = tokens.unwrap_or(0) * u64::from(self.cell.block_size());
        match tokens / u64::from(self.concurrency) {
            0 => "no number of such workers fits".to_owned(),
            context => format!("no number of such workers fits; these workers fit --context {context}"),
        }
    }
}
