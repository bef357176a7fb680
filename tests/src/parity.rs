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
use kvasir_model::{BackendKind, Checkpoint, WeightMode, WeightType};
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

/// Answers per model to [`Questions::Plain`]; the digest file has one line for each.
pub const GENERATIONS: usize = 16;
/// And to [`Questions::Knobs`].
pub const KNOBS: usize = 12;
/// Prompts of [`Questions::Long`]: none a multiple of the 256 positions of a chunk of attention, and most longer than one.
const LONG_PROMPTS: [u32; 4] = [255, 257, 600, 900];
/// Answers to [`Questions::Long`].
pub const LONG: usize = LONG_PROMPTS.len();

/// What a model is asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Questions {
    /// Greedy and random by turns.
    Plain,
    /// With every knob of the sampling, and with the prompt's logprobs.
    Knobs,
    /// After contexts whose attention several threads share.
    Long,
}

impl Questions {
    pub fn generations(self, vocab_size: u32) -> Vec<Generation> {
        match self {
            Self::Plain => generations(vocab_size),
            Self::Knobs => knobs(vocab_size),
            Self::Long => long(vocab_size),
        }
    }

    /// The models whose digests are checked in. What the sampler does depends on no weight type.
    pub fn model_names(self) -> Vec<String> {
        if self == Self::Long {
            let q8_0_cells = format!("{Q8_0_CELLS}Q4_1-9/3x32");
            return vec!["Q4_1-9/3x32".to_owned(), "F16-8/1x32".to_owned(), q8_0_cells];
        }
        let mut names = vec![REAL.to_owned()];
        for weight_type in [WeightType::F32, WeightType::F16, WeightType::Q8_0, WeightType::Q4_1] {
            for heads in ["9/3x32", "14/2x32", "8/8x32", "8/1x32", "6/2x128"] {
                names.push(format!("{weight_type}-{heads}"));
            }
        }
        if self == Self::Plain {
            names.extend(
                reference_models::names()
                    .iter()
                    .map(|name| format!("{REFERENCE}{name}")),
            );
            for of in [REAL, "Q4_1-9/3x32", "reference/qwen3-Q4_K.gguf"] {
                names.push(format!("{Q8_0_CELLS}{of}"));
                names.push(format!("{Q8_0_WEIGHTS}{of}"));
            }
        }
        names
    }

    pub fn digest_file(self) -> PathBuf {
        let name = match self {
            Self::Plain => "parity.json",
            Self::Knobs => "sampling.json",
            Self::Long => "long_context.json",
        };
        crate::data_folder().join("digests").join(name)
    }

    pub fn read_digests(self) -> Digests {
        let text = std::fs::read_to_string(self.digest_file()).expect("the digests are checked in");
        serde_json::from_str(&text).expect("a map of lists")
    }
}

/// Names of models that other packages wrote begin so.
const REFERENCE: &str = "reference/";
const Q8_0_CELLS: &str = "q8_0 cells of ";
const Q8_0_WEIGHTS: &str = "q8_0 weights of ";

/// The default model's name here.
const REAL: &str = "smollm2-135m";

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
        None if name == REAL => crate::default_model(),
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
                    ..Sampling::default()
                },
            };
            Generation {
                prompt,
                max_tokens: 8 + index % 9,
                sampling,
                prompt_logprobs: None,
            }
        })
        .collect()
}

/// One knob after the other, greedy and random, then all at once. Every other prompt is scored, one of them longer than
/// what a head computes at a time.
fn knobs(vocab_size: u32) -> Vec<Generation> {
    let mut random = ChaCha8Rng::seed_from_u64(43);
    let mut below = |end: u32| random.next_u32() % end;
    let sampling = |index: usize| {
        let mut sampling = knob_sampling(index, vocab_size);
        (sampling.seed, sampling.top_logprobs) = (index as u64, index as u32 % 3);
        sampling
    };
    (0..KNOBS)
        .map(|index| {
            // Few different tokens, so that penalties meet some again and again.
            let len = if index == 4 { 150 } else { 2 + below(60) };
            let prompt = (0..len).map(|_| TokenId(3 + below(40))).collect();
            Generation {
                prompt,
                max_tokens: 12 + index % 5,
                sampling: sampling(index),
                prompt_logprobs: (index % 2 == 0).then_some([0, 3, 20][index / 2 % 3]),
            }
        })
        .collect()
}

fn long(vocab_size: u32) -> Vec<Generation> {
    let mut random = ChaCha8Rng::seed_from_u64(44);
    let mut prompt = |len: u32| {
        (0..len)
            .map(|_| TokenId(3 + random.next_u32() % (vocab_size - 3)))
            .collect()
    };
    let generation = |len| Generation {
        prompt: prompt(len),
        max_tokens: 6,
        sampling: Sampling::default(),
        prompt_logprobs: None,
    };
    LONG_PROMPTS.map(generation).to_vec()
}

/// The knobs alone.
pub fn knob_sampling(index: usize, vocab_size: u32) -> Sampling {
    let greedy = Sampling::default();
    let random = Sampling {
        temperature: 0.9,
        ..Sampling::default()
    };
    let biases = |bias: f32| {
        let token = |nth: u32| (TokenId(nth * (vocab_size / 7)), (bias - nth as f32).max(-100.0));
        (0..7).map(token).collect()
    };
    let all = Sampling {
        temperature: 1.3,
        top_k: 60,
        top_p: 0.95,
        min_p: 0.02,
        repetition_penalty: 1.2,
        presence_penalty: 0.4,
        frequency_penalty: 0.3,
        logit_bias: biases(4.0),
        choice: 2,
        ..Sampling::default()
    };
    match index % KNOBS {
        0 => Sampling {
            repetition_penalty: 1.5,
            ..greedy
        },
        1 => Sampling { min_p: 0.05, ..random },
        2 => Sampling {
            presence_penalty: 1.5,
            ..greedy
        },
        3 => Sampling {
            frequency_penalty: 0.7,
            ..greedy
        },
        4 => Sampling {
            logit_bias: biases(6.0),
            ..greedy
        },
        5 => Sampling {
            repetition_penalty: 0.7,
            ..random
        },
        6 => Sampling {
            frequency_penalty: -0.5,
            ..random
        },
        7 => Sampling {
            presence_penalty: -1.0,
            logit_bias: biases(-100.0),
            ..random
        },
        8 => Sampling {
            top_k: 1,
            repetition_penalty: 1.3,
            frequency_penalty: 0.2,
            ..random
        },
        9 => all,
        10 => Sampling {
            temperature: 0.0,
            ..all
        },
        _ => random,
    }
}

/// Over tokens, logprob bits and the likeliest tokens' bits, then those of the prompt where it was scored.
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
    for score in &answer.prompt_logprobs {
        put(score.logprob.to_bits());
        put(score.top_logprobs.len() as u32);
        for (token, logprob) in &score.top_logprobs {
            put(token.0);
            put(logprob.to_bits());
        }
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

/// The checked-in digests: model name, then one digest per generation.
pub type Digests = BTreeMap<String, Vec<String>>;

/// Those of [`Questions::Plain`].
pub fn read_digests() -> Digests {
    Questions::Plain.read_digests()
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
    pub fn run(&self, questions: Questions, checkpoint: &Arc<Checkpoint>) -> Vec<String> {
        self.run_with(self.options(), questions, usize::MAX, checkpoint)
    }

    /// As [`Self::run`], by the exact kernels for GPUs, for the first `count` answers.
    pub fn run_on_device(&self, questions: Questions, count: usize, checkpoint: &Arc<Checkpoint>) -> Vec<String> {
        let options = GroupOptions {
            backend: BackendKind::CudaExact,
            ..self.options()
        };
        self.run_with(options, questions, count, checkpoint)
    }

    fn run_with(
        &self,
        options: GroupOptions,
        questions: Questions,
        count: usize,
        checkpoint: &Arc<Checkpoint>,
    ) -> Vec<String> {
        let mut generations = questions.generations(checkpoint.spec().vocab_size);
        generations.truncate(count);
        let mut group = RankGroup::start(checkpoint, options);
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
pub fn draw(questions: Questions, seed: u64, count: usize) -> Vec<Configuration> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut below = |end: usize| random.next_u64() as usize % end;
    let products: Vec<Vec<Configuration>> = questions
        .model_names()
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
