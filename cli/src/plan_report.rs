//! What `plan` prints, for people and for programs.

use kvasir_kv::ShardPlan;
use kvasir_model::Checkpoint;
use kvasir_runtime::ByteSize;
use owo_colors::{OwoColorize, Stream::Stdout};
use serde::Serialize;

use crate::plan::Question;

/// Bytes of an exact sum on its way to its owner, and of the rounded result on its way back.
const SUM_BYTES: u64 = 8;
const ROUNDED_BYTES: u64 = 4;
/// Of the maximum and the sum of exponentials of a vocab unit, and of its best token.
const VOCAB_SUMMARY_BYTES: u64 = 12;

#[derive(Serialize, Debug)]
pub struct PlanReport {
    model: String,
    workers: u32,
    kv_dtype: String,
    ranks: Vec<RankReport>,
    /// See [`ShardPlan::imbalance`].
    pub imbalance: f64,
    pub wire: WireReport,
    /// Given `--memory`; else all `null`.
    fit: FitReport,
}

#[derive(Serialize, Debug)]
struct RankReport {
    rank: u32,
    /// The heads themselves.
    kv_heads: Vec<u32>,
    units: UnitsReport,
    /// Read per token.
    bytes_per_token: u64,
    /// Held: with what is replicated on every rank.
    weight_bytes: u64,
    kv: Vec<KvReport>,
}

/// Half-open ranges.
#[derive(Serialize, Debug)]
struct UnitsReport {
    attention: [u32; 2],
    ffn: [u32; 2],
    vocab: [u32; 2],
}

/// KV bytes of one request.
#[derive(Serialize, Debug)]
struct KvReport {
    context: u32,
    bytes: u64,
}

/// What each rank sends for one token.
#[derive(Serialize, Debug)]
pub struct WireReport {
    all_reduces: u32,
    pub bytes_per_token: u64,
    link_gbps: f64,
    pub us_per_token: f64,
}

#[derive(Serialize, Debug)]
struct FitReport {
    smallest_workers: Option<u32>,
    context_max: Option<u64>,
    concurrent_requests: Option<u64>,
    context: u32,
}

impl PlanReport {
    pub fn new(checkpoint: &Checkpoint, question: &Question, plan: &ShardPlan) -> Self {
        let name = &checkpoint.spec().name;
        let file = checkpoint.path().file_name().unwrap_or_default().to_string_lossy();
        Self {
            model: if name.is_empty() {
                file.into_owned()
            } else {
                name.clone()
            },
            workers: plan.world_size() as u32,
            kv_dtype: question.cell.dtype().to_string(),
            ranks: (0..plan.world_size())
                .map(|rank| RankReport::new(question, plan, rank))
                .collect(),
            imbalance: plan.imbalance(&question.layout),
            wire: WireReport::new(question, plan),
            fit: FitReport::new(question, plan),
        }
    }

    pub fn print(&self) {
        let title = format!("{} on {}", self.model, workers(self.workers));
        println!("{}", title.if_supports_color(Stdout, |text| text.bold()));
        for rank in &self.ranks {
            rank.print();
        }
        println!(
            "imbalance   {:.1} % that ranks wait for the largest share of each phase",
            (self.imbalance - 1.0) * 100.0
        );
        self.wire.print();
        self.fit.print();
    }
}

impl RankReport {
    fn new(question: &Question, plan: &ShardPlan, rank: usize) -> Self {
        let share = &plan.shares()[rank];
        let kv = |context: u32| KvReport {
            context,
            bytes: u64::from(question.cell.blocks_for(context))
                * u64::from(share.num_kv_heads())
                * question.cell.cell_bytes() as u64,
        };
        Self {
            rank: rank as u32,
            kv_heads: share.attention.clone().collect(),
            units: UnitsReport {
                attention: [share.attention.start, share.attention.end],
                ffn: [share.ffn.start, share.ffn.end],
                vocab: [share.vocab.start, share.vocab.end],
            },
            bytes_per_token: share.bytes(&question.layout) + question.layout.bytes().replicated,
            weight_bytes: share.weight_bytes(&question.layout),
            kv: contexts(question).into_iter().map(kv).collect(),
        }
    }

    fn print(&self) {
        let span = |[begin, end]: [u32; 2]| end - begin;
        println!(
            "rank {:<6} {} KV heads, {:>2} FFN and {:>2} vocab units, {:>9} of weights",
            self.rank,
            self.kv_heads.len(),
            span(self.units.ffn),
            span(self.units.vocab),
            ByteSize(self.weight_bytes)
        );
        let kv = self
            .kv
            .iter()
            .map(|kv| format!("{} at {}", ByteSize(kv.bytes), kv.context));
        println!("            KV cache {}", kv.collect::<Vec<_>>().join(", "));
    }
}

/// Powers of four from 1024 on, and the length that was asked for.
fn contexts(question: &Question) -> Vec<u32> {
    let mut contexts: Vec<u32> = std::iter::successors(Some(1024u32), |context| context.checked_mul(4))
        .take_while(|&context| context < question.context)
        .collect();
    contexts.push(question.context);
    contexts
}

impl WireReport {
    /// Two all-reduces a layer and one for the embedding, each a reduce-scatter of exact sums and an all-gather of
    /// rounded ones; then the summaries of the vocab units go to rank 0.
    fn new(question: &Question, plan: &ShardPlan) -> Self {
        let shape = question.layout.shape();
        let world = plan.world_size() as u64;
        let all_reduces = if world > 1 { 2 * shape.num_layers + 1 } else { 0 };
        // Each rank owns a part of the columns: it sends the others theirs, and everyone its own result.
        let others = u64::from(shape.hidden_size) * (world - 1);
        let reduce = (others * SUM_BYTES).div_ceil(world) + (others * ROUNDED_BYTES).div_ceil(world);
        let summaries = plan.shares().iter().skip(1).map(|share| share.vocab.len() as u64).max();
        let bytes_per_token = u64::from(all_reduces) * reduce + summaries.unwrap_or(0) * VOCAB_SUMMARY_BYTES;
        Self {
            all_reduces,
            bytes_per_token,
            link_gbps: question.link_gbps,
            us_per_token: bytes_per_token as f64 * 8.0 / (question.link_gbps * 1e3),
        }
    }

    fn print(&self) {
        if self.all_reduces == 0 {
            println!("wire        nothing: one rank");
            return;
        }
        println!(
            "wire        {} per token and rank in {} all-reduces: {:.0} us at {} Gbit/s, latency apart",
            ByteSize(self.bytes_per_token),
            self.all_reduces,
            self.us_per_token,
            self.link_gbps
        );
    }
}

impl FitReport {
    fn new(question: &Question, plan: &ShardPlan) -> Self {
        let block_size = u64::from(question.cell.block_size());
        let num_blocks = question.num_blocks(plan.shares());
        let blocks_each = u64::from(question.cell.blocks_for(question.context));
        let trained = u64::from(question.layout.shape().context_len);
        Self {
            smallest_workers: question.smallest_fit().map(|workers| workers as u32),
            context_max: num_blocks.map(|blocks| (blocks * block_size).min(trained)),
            concurrent_requests: num_blocks.map(|blocks| blocks / blocks_each),
            context: question.context,
        }
    }

    fn print(&self) {
        let (Some(context_max), Some(requests)) = (self.context_max, self.concurrent_requests) else {
            println!("fit         give --memory to see the longest context and the number of requests");
            return;
        };
        println!(
            "fit         {requests} requests of {} tokens at a time; the longest alone has {context_max} tokens",
            self.context
        );
        if let Some(smallest) = self.smallest_workers {
            println!("            {} would do", workers(smallest));
        }
    }
}

fn workers(count: u32) -> String {
    match count {
        1 => "1 worker".to_owned(),
        count => format!("{count} workers"),
    }
}
