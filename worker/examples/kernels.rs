//! How fast the kernels are on this machine, on the shapes of SmolLM2-135M: `cargo run -p kvasir-worker --example kernels`.
//!
//! One thread. Decode reads each matrix of a model once, so that weights come from memory as they do in a step; compare it
//! with the read bandwidth printed first. `kernels avx2` measures another instruction set, `kernels avx512 Q8_0` one weight type.

use std::{hint::black_box, time::Instant};

use kvasir_kv::{CellLayout, KvDtype};
use kvasir_model::WeightType;
use kvasir_worker::arith::{
    ActivationsRef, AttendScratch, Gated, GatedPanel, HeadRows, HugeBuffer, Int8Rows, Isa, Kernels, KvView, LANES,
    PackedMatrix, UnitColumns, UnitSummary, WeightArena,
};

const HIDDEN: usize = 576;
const FFN: usize = 1536;
const HEAD_DIM: usize = 64;
const GROUP_SIZE: usize = 3;
const NUM_KV_HEADS: usize = 3;
const NUM_LAYERS: usize = 30;
const VOCAB: usize = 49152;

fn main() {
    let isa = std::env::args().nth(1).map_or(Kernels::best().isa(), |name| {
        *Isa::ALL
            .iter()
            .find(|isa| isa.to_string() == name)
            .expect("portable, avx2 or avx512")
    });
    let kernels = Kernels::with(isa).expect("this machine has the instruction set");
    println!(
        "{isa}, one thread; sequential reads of huge pages: {:.1} GB/s",
        read_bandwidth()
    );
    let only = std::env::args().nth(2);
    let types = WeightType::ALL.into_iter();
    for weight_type in types.filter(|weight_type| only.as_ref().is_none_or(|only| weight_type.name() == only)) {
        let model = Model::new(weight_type);
        decode(kernels, &model);
        for tokens in [2, 4, 8, 16, 32, 64, 512] {
            batch(kernels, &model, tokens);
        }
    }
    for (positions, block_size) in [(4096, 16), (4096, 64), (256, 64)] {
        attend(kernels, positions, block_size);
    }
    small_parts(kernels);
}

/// The best time of some runs, in seconds: what the machine can do when nobody else takes its time.
fn best_s(runs: usize, mut f: impl FnMut()) -> f64 {
    f();
    (0..runs)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

fn read_bandwidth() -> f64 {
    let mut buffer = HugeBuffer::new(256 << 20).expect("memory");
    buffer.fill(1);
    let s = best_s(7, || {
        black_box(buffer.read_through());
    });
    buffer.len() as f64 / s / 1e9
}

struct Layer {
    /// q, k and v; gate and up
    column_parallel: [PackedMatrix; 2],
    /// Of each attention unit; of each FFN unit
    wo: Vec<PackedMatrix>,
    down: Vec<PackedMatrix>,
}

struct Model {
    weight_type: WeightType,
    layers: Vec<Layer>,
    head: PackedMatrix,
    bytes: usize,
}

impl Model {
    fn new(weight_type: WeightType) -> Self {
        let mut arena = WeightArena::new();
        let mut bytes = 0;
        let mut pack = |weight_type: WeightType, rows, cols: usize| {
            // A file would have no row that cuts a stored block; a unit may have.
            let mut row = vec![0x11u8; weight_type.row_bytes(cols.next_multiple_of(weight_type.block_len()))];
            if weight_type == WeightType::F32 {
                row.as_chunks_mut().0.fill(0.01f32.to_le_bytes());
            }
            let matrix = PackedMatrix::pack(weight_type, rows, 0..cols, &mut arena, |_| &row).expect("memory");
            bytes += matrix.bytes();
            matrix
        };
        let unit_cols = GROUP_SIZE * HEAD_DIM;
        let layers = (0..NUM_LAYERS)
            .map(|_| Layer {
                column_parallel: [
                    pack(weight_type, HIDDEN + 2 * NUM_KV_HEADS * HEAD_DIM, HIDDEN),
                    pack(weight_type, 2 * FFN, HIDDEN),
                ],
                wo: (0..NUM_KV_HEADS)
                    .map(|_| pack(weight_type, HIDDEN, unit_cols))
                    .collect(),
                down: (0..FFN / 64).map(|_| pack(weight_type, HIDDEN, 64)).collect(),
            })
            .collect();
        let head_type = if weight_type == WeightType::Q4_1 {
            WeightType::Q8_0
        } else {
            weight_type
        };
        let head = pack(head_type, VOCAB, HIDDEN);
        Self {
            weight_type,
            layers,
            head,
            bytes,
        }
    }
}

/// Activations of a step in both forms.
struct Activations {
    panels: Vec<f32>,
    int8: Int8Rows,
    cols: usize,
    tokens: usize,
}

impl Activations {
    fn new(kernels: Kernels, cols: usize, tokens: usize) -> Self {
        let panels: Vec<f32> = (0..cols * tokens).map(|i| (i % 97) as f32 * 0.01 - 0.4).collect();
        let mut int8 = Int8Rows::new();
        kernels.quantize(
            HeadRows::new(&panels, LANES, tokens),
            &mut int8,
            &mut vec![false; tokens],
        );
        Self {
            panels,
            int8,
            cols,
            tokens,
        }
    }

    fn for_weights(&self, weights: &PackedMatrix) -> ActivationsRef<'_> {
        if weights.wants_int8() {
            ActivationsRef::Int8(&self.int8)
        } else {
            ActivationsRef::F32 {
                panels: &self.panels,
                cols: self.cols,
                tokens: self.tokens,
            }
        }
    }
}

fn units(matrices: &[PackedMatrix]) -> Vec<UnitColumns<'_>> {
    let mut first_col = 0;
    let unit = |weights: &'_ PackedMatrix| {
        first_col += weights.cols();
        first_col - weights.cols()
    };
    let first_cols: Vec<usize> = matrices.iter().map(unit).collect();
    matrices
        .iter()
        .zip(first_cols)
        .map(|(weights, first_col)| UnitColumns { weights, first_col })
        .collect()
}

/// The products of a layer.
fn layer_products(kernels: Kernels, layer: &Layer, hidden: &Activations, ffn: &Activations, out: &mut Outputs) {
    let tokens = hidden.tokens;
    for weights in &layer.column_parallel {
        let out = &mut out.floats[..weights.rows() * tokens];
        kernels.matmul(weights, 0..weights.num_groups(), hidden.for_weights(weights), out);
    }
    for (matrices, x) in [(&layer.wo, hidden), (&layer.down, ffn)] {
        let x = x.for_weights(&matrices[0]);
        kernels.matmul_partials(&units(matrices), 0..HIDDEN / 16, x, &mut out.sums, &mut out.poison);
    }
}

struct Outputs {
    floats: Vec<f32>,
    sums: Vec<i64>,
    poison: Vec<bool>,
}

impl Outputs {
    fn new(tokens: usize) -> Self {
        let floats = vec![0.0; (2 * FFN * tokens).max(VOCAB)];
        Self {
            floats,
            sums: vec![0; HIDDEN * tokens],
            poison: vec![false; tokens],
        }
    }
}

fn decode(kernels: Kernels, model: &Model) {
    let (hidden, ffn) = (Activations::new(kernels, HIDDEN, 1), Activations::new(kernels, FFN, 1));
    let mut out = Outputs::new(1);
    let s = best_s(60, || {
        for layer in &model.layers {
            layer_products(kernels, layer, &hidden, &ffn, &mut out);
        }
        let groups = 0..model.head.num_groups();
        kernels.matmul(
            &model.head,
            groups,
            hidden.for_weights(&model.head),
            &mut out.floats[..VOCAB],
        );
    });
    let gb_s = model.bytes as f64 / s / 1e9;
    println!(
        "{:5} decode products        {:8.0} tokens/s  {gb_s:5.1} GB/s",
        model.weight_type.name(),
        1.0 / s
    );
}

fn batch(kernels: Kernels, model: &Model, tokens: usize) {
    let (hidden, ffn) = (
        Activations::new(kernels, HIDDEN, tokens),
        Activations::new(kernels, FFN, tokens),
    );
    let mut out = Outputs::new(tokens);
    let layers = if tokens > 100 { 1 } else { NUM_LAYERS };
    let s = best_s(9, || {
        for layer in &model.layers[..layers] {
            layer_products(kernels, layer, &hidden, &ffn, &mut out);
        }
    }) * (NUM_LAYERS / layers) as f64;
    let macs = NUM_LAYERS * HIDDEN * (2 * HIDDEN + 2 * NUM_KV_HEADS * HEAD_DIM + 3 * FFN) * tokens;
    println!(
        "{:5} {tokens:3} tokens, no logits   {:8.0} tokens/s  {:5.0} GMAC/s, from the cache {:.0}",
        model.weight_type.name(),
        tokens as f64 / s,
        macs as f64 / s / 1e9,
        in_cache(kernels, model, tokens)
    );
}

/// GMAC/s with weights that lie in caches: what computing alone allows.
fn in_cache(kernels: Kernels, model: &Model, tokens: usize) -> f64 {
    const REPEAT: usize = 20;
    let hidden = Activations::new(kernels, HIDDEN, tokens);
    let weights = &model.layers[0].column_parallel[0];
    let mut out = vec![0.0; weights.rows() * tokens];
    let s = best_s(9, || {
        for _ in 0..REPEAT {
            let groups = 0..weights.num_groups();
            kernels.matmul(weights, groups, hidden.for_weights(weights), &mut out);
        }
    });
    (REPEAT * weights.rows() * HIDDEN * tokens) as f64 / s / 1e9
}

fn attend(kernels: Kernels, positions: usize, block_size: u32) {
    for dtype in KvDtype::ALL {
        let layout =
            CellLayout::new(NUM_LAYERS as u32, HEAD_DIM as u32, block_size, dtype).expect("a valid block size");
        let num_blocks = layout.blocks_for(positions as u32);
        let mut slab = HugeBuffer::new(layout.slab_bytes(num_blocks)).expect("memory");
        slab.fill(0x21);
        let blocks: Vec<u32> = (0..num_blocks).collect();
        let mut scratch = AttendScratch::new();
        let mut time = |tokens: usize| {
            let q = vec![0.1; tokens * GROUP_SIZE * HEAD_DIM];
            let mut out = vec![0.0; q.len()];
            best_s(30, || {
                for layer in 0..NUM_LAYERS as u32 {
                    let view = KvView::new(&slab, layout, layer);
                    kernels.attend(
                        &q,
                        &view,
                        &blocks,
                        positions - tokens..positions,
                        &mut out,
                        &mut scratch,
                    );
                }
            })
        };
        let (s, s_each) = (time(1), time(2) / 2.0);
        println!(
            "attend {dtype}, {positions} positions in blocks of {block_size}: {:.3} ms for {NUM_LAYERS} layers of one KV head, {:.1} GB/s; \
             {:.3} ms each for two tokens at once",
            s * 1e3,
            slab.len() as f64 / s / 1e9,
            s_each * 1e3
        );
    }
}

/// What a step does between products, per token.
fn small_parts(kernels: Kernels) {
    for tokens in [1, 512] {
        let x = vec![0.5; FFN * tokens];
        let mut out = x.clone();
        let mut int8 = Int8Rows::new();
        let us = |s: f64| s * 1e6 / tokens as f64;
        let repeat = 100;
        let time = |f: &mut dyn FnMut()| us(best_s(9, || (0..repeat).for_each(|_| f()))) / repeat as f64;
        let norm = time(&mut || {
            kernels.rms_norm(
                &x[..HIDDEN * tokens],
                &[1.0; HIDDEN],
                1e-5,
                tokens,
                &mut out[..HIDDEN * tokens],
            )
        });
        let columns = [x.as_slice(), &x].concat();
        let places = GatedPanel::of_units([FFN / LANES].into_iter());
        let gated = Gated::new(&columns, &places, tokens);
        let gate = time(&mut || kernels.store_panels(gated, 0, &mut out));
        let mut poison = vec![false; tokens];
        let quantize = time(&mut || kernels.quantize(HeadRows::new(&x, LANES, tokens), &mut int8, &mut poison));
        let both = time(&mut || kernels.quantize(gated, &mut int8, &mut poison));
        println!(
            "{tokens} tokens, us each: norm of {HIDDEN} {norm:.3}, gate of {FFN} {gate:.3}, quantize {FFN} {quantize:.3}, \
             both at once {both:.3}"
        );
    }
    for tokens in [1, 32] {
        let logits: Vec<f32> = (0..VOCAB * tokens).map(|i| (i % 977) as f32 * 0.01).collect();
        let mut summaries = vec![UnitSummary::default(); tokens];
        let s = best_s(9, || {
            kernels.vocab_unit_summaries(&logits, VOCAB, &mut summaries);
            black_box(&summaries);
        });
        println!(
            "summary of {VOCAB} logits, {tokens} tokens: {:.1} us each",
            s * 1e6 / tokens as f64
        );
    }
}
