//! What must not change the answers, and how it is checked: configurations, the answers' digests, and drawing a
//! pairwise-covering set of configurations by a seed.
//!
//! The expected side is a file of digests that is checked in, never another run of the same build.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use kvasir_kv::{KvDtype, Sampling, TokenId, Transport};
use kvasir_model::{Checkpoint, WeightMode, WeightType};
use kvasir_worker::arith::{Isa, Kernels};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};

use crate::{
    rank_group::{Answer, Generation, GroupOptions, RankGroup},
    reference_models,
    tiny_model::TinyModel,
};

/// Answers per model; the digest file has one line for each.
pub const GENERATIONS: usize = 16;

/// Names of models that other packages wrote begin so.
const REFERENCE: &str = "reference/";
const Q8_0_CELLS: &str = "q8_0 cells of ";
const Q8_0_WEIGHTS: &str = "q8_0 weights of ";

/// The models whose digests are checked in.
pub fn model_names() -> Vec<String> {
    let mut names = vec!["smollm2-135m".to_owned()];
    for weight_type in [WeightType::F32, WeightType::F16, WeightType::Q8_0, WeightType::Q4_1] {
        for heads in ["9/3x32", "14/2x32", "8/8x32", "8/1x32", "6/2x128"] {
            names.push(format!("{weight_type}-{heads}"));
        }
    }
    let reference = reference_models::names();
    names.extend(reference.iter().map(|name| format!("{REFERENCE}{name}")));
    for of in ["smollm2-135m", "Q4_1-9/3x32", "reference/qwen3-Q4_K.gguf"] {
        names.push(format!("{Q8_0_CELLS}{of}"));
        names.push(format!("{Q8_0_WEIGHTS}{of}"));
    }
    names
}

/// How a model is run, and whose name is left.
fn variant(name: &str) -> (KvDtype, WeightMode, &str) {
    if let Some(of) = name.strip_prefix(Q8_0_CELLS) {
        return (KvDtype::Q8_0, WeightMode::File, of);
    }
    match name.strip_prefix(Q8_0_WEIGHTS) {
        Some(of) => (KvDtype::F16, WeightMode::Q8_0, of),
        None => (KvDtype::F16, WeightMode::File, name),
    }
}

/// Opens the real model, or makes the tiny one of that name in `folder`.
pub fn open_model(name: &str, folder: &Path) -> Arc<Checkpoint> {
    let (_, _, name) = variant(name);
    let path = match name.strip_prefix(REFERENCE) {
        Some(name) => reference_models::path(name),
        None if name == "smollm2-135m" => crate::default_model(),
        None => write_tiny(name, folder),
    };
    Arc::new(Checkpoint::open(path).expect("a model of this list opens"))
}

fn write_tiny(name: &str, folder: &Path) -> PathBuf {
    let (weight_type, heads) = name.split_once('-').expect("TYPE-Q/KVxDIM");
    let (q, rest) = heads.split_once('/').expect("Q/KVxDIM");
    let (kv, dim) = rest.split_once('x').expect("KVxDIM");
    let number = |text: &str| text.parse().expect("a number");
    let weight_type = WeightType::ALL
        .into_iter()
        .find(|t| t.name() == weight_type)
        .expect("a weight type");
    let embedding_type = if weight_type == WeightType::Q4_1 {
        WeightType::Q8_0
    } else {
        weight_type
    };
    // 224 columns: the last FFN unit is half as wide as the others.
    let model = TinyModel {
        weight_type,
        embedding_type,
        ffn: 224,
        tied: number(kv) % 2 == 1,
        ..TinyModel::with_heads(number(q), number(kv), number(dim))
    };
    let path = folder.join(format!("{}.gguf", name.replace('/', "-")));
    model.write(&path).expect("the folder takes a file");
    path
}

/// What a model is asked: prompts of 1 to 90 tokens, greedy and random by turns.
pub fn generations(vocab_size: u32) -> Vec<Generation> {
    let mut random = ChaCha8Rng::seed_from_u64(42);
    let mut below = |end: u32| random.next_u32() % end;
    (0..GENERATIONS)
        .map(|index| {
            let len = if index == 0 { 1 } else { 1 + below(90) };
            let prompt = (0..len).map(|_| TokenId(3 + below(vocab_size - 3))).collect();
            let sampling = match index % 4 {
                0 | 1 => Sampling {
                    top_logprobs: index as u32 % 3,
                    ..Sampling::default()
                },
                2 => Sampling {
                    temperature: 0.8,
                    seed: index as u64,
                    ..Sampling::default()
                },
                _ => Sampling {
                    temperature: 1.1,
                    top_k: 40,
                    top_p: 0.9,
                    seed: 7,
                    top_logprobs: 2,
                    choice: 3,
                },
            };
            Generation {
                prompt,
                max_tokens: 8 + index % 9,
                sampling,
            }
        })
        .collect()
}

/// Over tokens, logprob bits and the likeliest tokens' bits.
pub fn digest(answer: &Answer) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut put = |value: u32| {
        hasher.update(&value.to_le_bytes());
    };
    put(answer.tokens.len() as u32);
    for ((token, logprob), top) in answer.tokens.iter().zip(&answer.logprobs).zip(&answer.top_logprobs) {
        put(token.0);
        put(logprob.to_bits());
        put(top.len() as u32);
        for (token, logprob) in top {
            put(token.0);
            put(logprob.to_bits());
        }
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

/// The checked-in digests: model name, then one digest per generation.
pub type Digests = BTreeMap<String, Vec<String>>;

pub fn digest_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("digests/parity.json")
}

pub fn read_digests() -> Digests {
    let text = std::fs::read_to_string(digest_file()).expect("tests/digests/parity.json is checked in");
    serde_json::from_str(&text).expect("a map of lists")
}

/// How a prompt is cut into steps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Chunking {
    Whole,
    Single,
    Random,
}

/// One way to compute the same answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Configuration {
    pub model: String,
    pub ranks: usize,
    pub transport: Transport,
    pub threads: usize,
    pub together: bool,
    pub chunking: Chunking,
    pub block_size: u32,
    pub isa: Isa,
}

impl Configuration {
    /// Every value of every dimension, as text: what pairwise coverage counts.
    fn values(&self) -> Vec<String> {
        vec![
            format!("model {}", self.model),
            format!("ranks {}", self.ranks),
            format!("transport {}", self.transport),
            format!("threads {}", self.threads),
            format!("together {}", self.together),
            format!("chunking {:?}", self.chunking),
            format!("block {}", self.block_size),
            format!("isa {}", self.isa),
        ]
    }

    fn pairs(&self) -> Vec<(String, String)> {
        let values = self.values();
        let firsts = values.iter().enumerate();
        firsts
            .flat_map(|(i, a)| values[i + 1..].iter().map(move |b| (a.clone(), b.clone())))
            .collect()
    }

    fn options(&self) -> GroupOptions {
        let (kv_dtype, weight_mode, _) = variant(&self.model);
        GroupOptions {
            kv_dtype,
            weight_mode,
            ranks: self.ranks,
            threads: self.threads,
            transport: Some(self.transport),
            block_size: self.block_size,
            num_blocks: 16 * 128 / self.block_size.min(128) * 2,
            kernels: Kernels::with(self.isa),
            ..GroupOptions::default()
        }
    }

    /// The digests of all answers, computed this way.
    pub fn run(&self, checkpoint: &Arc<Checkpoint>) -> Vec<String> {
        let generations = generations(checkpoint.spec().vocab_size);
        let mut group = RankGroup::start(checkpoint, self.options());
        let mut random = ChaCha8Rng::seed_from_u64(self.ranks as u64 * 31 + u64::from(self.block_size));
        let chunking = self.chunking;
        let chunk = |_: usize, _: usize| match chunking {
            Chunking::Whole => usize::MAX,
            Chunking::Single => 1,
            Chunking::Random => 1 + random.next_u32() as usize % 40,
        };
        let answers = if self.together {
            group.generate(&generations, chunk)
        } else {
            let mut chunk = chunk;
            generations
                .iter()
                .flat_map(|one| group.generate(std::slice::from_ref(one), &mut chunk))
                .collect()
        };
        answers.iter().map(digest).collect()
    }
}

/// The instruction sets to draw from for a model: those of this machine, but for the real model the fastest alone,
/// because portable kernels would take minutes.
fn isas_for(model: &str) -> Vec<Isa> {
    let is_tiny = model.contains('/');
    let has = |isa: &Isa| {
        if is_tiny {
            Kernels::with(*isa).is_some()
        } else {
            *isa == Kernels::best().isa()
        }
    };
    Isa::ALL.into_iter().filter(has).collect()
}

/// The whole product for one model on the given instruction sets.
pub fn product(model: &str, isas: &[Isa]) -> Vec<Configuration> {
    let mut all = Vec::new();
    for ranks in [1, 2, 3, 5] {
        for transport in [Transport::SharedMemory, Transport::Tcp] {
            for threads in [1, 2] {
                for together in [false, true] {
                    for chunking in [Chunking::Whole, Chunking::Single, Chunking::Random] {
                        for block_size in [16, 64] {
                            for &isa in isas {
                                let model = model.to_owned();
                                all.push(Configuration {
                                    model,
                                    ranks,
                                    transport,
                                    threads,
                                    together,
                                    chunking,
                                    block_size,
                                    isa,
                                });
                            }
                        }
                    }
                }
            }
        }
    }
    all
}

/// Draws `count` configurations that cover as many pairs of values as a greedy choice among random candidates can.
/// Every model appears.
pub fn draw(seed: u64, count: usize) -> Vec<Configuration> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut below = |end: usize| random.next_u64() as usize % end;
    let products: Vec<Vec<Configuration>> = model_names()
        .iter()
        .map(|model| product(model, &isas_for(model)))
        .collect();
    let mut covered = BTreeSet::new();
    let mut drawn = Vec::new();
    for index in 0..count {
        let candidates = &products[index % products.len()];
        let best = (0..60)
            .map(|_| &candidates[below(candidates.len())])
            .max_by_key(|candidate| {
                candidate
                    .pairs()
                    .into_iter()
                    .filter(|pair| !covered.contains(pair))
                    .count()
            });
        let best = best.expect("60 candidates").clone();
        covered.extend(best.pairs());
        drawn.push(best);
    }
    drawn
}
