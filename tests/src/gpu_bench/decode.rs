//! Decode steps of a model of Llama-3-8B's shape: the whole step, as a rank computes it, from tokens to what is sampled.
//!
//! A step reads every weight once, and of each sequence the K and V before it; those bytes over the time are held against
//! the memory's measured rate. The time is the clock's: it holds all that a step waits for.

use std::{path::PathBuf, sync::Arc, time::Instant};

use kvasir_kv::{BlockId, KvDtype, Sampling, SequenceId, TokenId};
use kvasir_model::{BackendKind, Checkpoint};
use kvasir_worker::{
    backend::{Backend, ForwardOutput},
    collective::Collective,
    rank_books::WorkInput,
};

use super::{Numbers, Scale, large_model, median_us, or_panic, roofline::roofline_gb_s};
use crate::{
    rank_group::{GroupOptions, backend},
    tiny_model::TinyModel,
    whole_logits::{collectives, epochs},
};

const BATCHES: [usize; 3] = [1, 8, 64];
const BLOCK_SIZE: u32 = 64;

/// Panics if anything fails: see [`super::measure`].
pub fn measure(scale: Scale, kind: BackendKind) -> Numbers {
    let roofline = or_panic(roofline_gb_s(scale));
    let model = large_model::shape(scale == Scale::Tiny);
    let file = ModelFile::write(&model);
    let checkpoint = Arc::new(Checkpoint::open(&file.path).expect("what was just written"));
    let context = scale.pick(100, 512);
    let options = GroupOptions {
        backend: kind,
        kv_dtype: KvDtype::F16,
        block_size: BLOCK_SIZE,
        num_blocks: BATCHES[BATCHES.len() - 1] as u32 * (context as u32).div_ceil(BLOCK_SIZE),
        ..GroupOptions::default()
    };
    let mut numbers = Numbers::from([("context_tokens".to_owned(), context as f64)]);
    let mut rank = Rank::load(&checkpoint, &options, &mut numbers);
    for batch in BATCHES {
        let bytes = weight_bytes(&model) + batch * context * kv_bytes_per_token(&model);
        let us = rank.decode_us(batch, context, scale.repeats());
        numbers.insert(format!("batch_{batch}_us"), us);
        numbers.insert(format!("batch_{batch}_tokens_per_s"), batch as f64 / us * 1e6);
        numbers.insert(format!("batch_{batch}_bytes"), bytes as f64);
        numbers.insert(
            format!("batch_{batch}_roofline_share"),
            bytes as f64 / us / 1e3 / roofline,
        );
    }
    numbers
}

/// Of the matrices that a step multiplies by; of the embedding it reads a row.
fn weight_bytes(model: &TinyModel) -> usize {
    let [hidden, ffn, vocab, dim] = [model.hidden, model.ffn, model.vocab, model.head_dim].map(|width| width as usize);
    let (q, kv) = (model.num_q_heads as usize * dim, model.num_kv_heads as usize * dim);
    let layer = hidden * (2 * q + 2 * kv) + 3 * hidden * ffn;
    2 * (model.num_layers as usize * layer + vocab * hidden)
}

fn kv_bytes_per_token(model: &TinyModel) -> usize {
    (model.num_layers * model.num_kv_heads * model.head_dim) as usize * 2 * 2
}

/// Gone when dropped: it is as large as the model.
struct ModelFile {
    path: PathBuf,
}

impl ModelFile {
    /// Into memory where there is a file system for that, which is quick and leaves the disk alone.
    fn write(model: &TinyModel) -> Self {
        let shared = PathBuf::from("/dev/shm");
        let folder = if shared.is_dir() { shared } else { std::env::temp_dir() };
        let path = folder.join(format!("kvasir-bench-{}.gguf", std::process::id()));
        let file = Self { path };
        large_model::write(model, &file.path).unwrap_or_else(|error| panic!("{}: {error}", file.path.display()));
        file
    }
}

impl Drop for ModelFile {
    fn drop(&mut self) {
        // A failure leaves a file behind, which is no reason to hide what was measured.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A group of one.
struct Rank {
    backend: Box<dyn Backend>,
    collective: Box<dyn Collective>,
    output: ForwardOutput,
}

impl Rank {
    fn load(checkpoint: &Arc<Checkpoint>, options: &GroupOptions, numbers: &mut Numbers) -> Self {
        let begun = Instant::now();
        let mut backend = backend(checkpoint, options);
        let spec = epochs(checkpoint, options).remove(0);
        let report = backend.begin_epoch(&spec).expect("the model fits the device");
        numbers.insert("load_s".to_owned(), begun.elapsed().as_secs_f64());
        numbers.insert("weight_bytes".to_owned(), report.weight_bytes as f64);
        let connect = collectives(1).remove(0);
        Self {
            backend,
            collective: connect(),
            output: ForwardOutput::default(),
        }
    }

    /// The same step again and again, greedy: position `context - 1` of each sequence. The cells before it hold what the
    /// memory held, or zeros, which changes nothing about the time.
    fn decode_us(&mut self, batch: usize, context: usize, repeats: usize) -> f64 {
        let work: Vec<WorkInput> = (0..batch).map(|sequence| one_token(sequence, batch, context)).collect();
        // The first steps bring the buffers to size and record the step.
        (0..3).for_each(|_| self.step(&work));
        let timed = median_us(repeats, |_| {
            let begun = Instant::now();
            self.step(&work);
            Ok::<f64, std::convert::Infallible>(begun.elapsed().as_secs_f64() * 1e6)
        });
        let Ok(us) = timed;
        us
    }

    fn step(&mut self, work: &[WorkInput]) {
        let forward = self.backend.forward(work, self.collective.as_mut(), &mut self.output);
        forward.unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Blocks of the sequences alternate.
fn one_token(sequence: usize, batch: usize, context: usize) -> WorkInput {
    let num_blocks = (context as u32).div_ceil(BLOCK_SIZE);
    WorkInput {
        sequence: SequenceId(sequence as u64),
        tokens: vec![TokenId(3 + sequence as u32)],
        start: context as u32 - 1,
        blocks: (0..num_blocks)
            .map(|block| BlockId(block * batch as u32 + sequence as u32))
            .collect(),
        samples: true,
        sampling: Sampling::default(),
        prompt_len: 1,
        ..WorkInput::default()
    }
}
