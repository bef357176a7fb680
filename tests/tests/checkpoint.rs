//! Sound model files: what a checkpoint says about them.

// Helpers of tests are tests too, which clippy does not know.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use kvasir_kv::TokenId;
use kvasir_model::{Checkpoint, WeightType, dequantize};
use kvasir_tests::{
    default_model,
    gguf_writer::{GgufValue, GgufWriter},
    quantize::quantize,
    tiny_model::TinyModel,
};
use serde::Deserialize;

fn open(model: &GgufWriter) -> Checkpoint {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    model.write(&path).unwrap();
    // The mapping outlives the folder.
    Checkpoint::open(&path).unwrap()
}

#[derive(Deserialize)]
struct ReferenceWeights {
    weight_type: String,
    bytes: String,
    bits: Vec<u32>,
}

#[test]
fn dequantized_weights_are_those_of_the_gguf_package_bit_for_bit() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("reference/dequantize.json");
    let rows: Vec<ReferenceWeights> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(
        rows.len(),
        WeightType::ALL.len(),
        "a new weight type wants a row from the script"
    );
    for row in rows {
        let weight_type = WeightType::ALL
            .into_iter()
            .find(|other| other.name() == row.weight_type)
            .unwrap();
        let hex = |i| u8::from_str_radix(&row.bytes[i..i + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..row.bytes.len()).step_by(2).map(hex).collect();
        let mut values = vec![0.0; row.bits.len()];
        dequantize(weight_type, &bytes, &mut values);
        assert_eq!(
            values.iter().map(|value| value.to_bits()).collect::<Vec<_>>(),
            row.bits,
            "{weight_type}"
        );
    }
}

#[test]
fn quantized_weights_come_back_within_half_a_step() {
    let values: Vec<f32> = (0..512).map(|i| ((i * 37 % 96) as f32 - 40.0) * 0.013).collect();
    for (weight_type, error_max) in [
        (WeightType::F32, 0.0),
        (WeightType::F16, 4e-4),
        (WeightType::BF16, 3e-3),
        (WeightType::Q8_0, 0.004),
        (WeightType::Q4_0, 0.053),
        (WeightType::Q4_1, 0.044),
        (WeightType::Q5_0, 0.025),
        (WeightType::Q5_1, 0.022),
        (WeightType::Q4K, 0.051),
        (WeightType::Q5K, 0.028),
        (WeightType::Q6K, 0.013),
    ] {
        let mut back = vec![0.0; values.len()];
        dequantize(weight_type, &quantize(weight_type, &values), &mut back);
        let error = values.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error <= error_max, "{weight_type}: {error}");
    }
}

#[test]
fn the_default_models_spec_is_read() {
    let checkpoint = Checkpoint::open(default_model()).unwrap();
    let spec = checkpoint.spec();
    assert_eq!(
        (spec.num_layers, spec.hidden_size, spec.intermediate_size),
        (30, 576, 1536)
    );
    assert_eq!(
        (spec.num_q_heads, spec.num_kv_heads, spec.head_dim, spec.rope_dim),
        (9, 3, 64, 64)
    );
    assert_eq!((spec.vocab_size, spec.context_len, spec.tied_head), (49152, 8192, true));
    assert_eq!((spec.rms_norm_eps, spec.rope_theta), (1e-5, 100_000.0));
    assert_eq!(
        (spec.bos_token, spec.eos_token, spec.eot_token),
        (Some(TokenId(1)), Some(TokenId(2)), None)
    );
    // The end of a turn by its key; the end of a text and "<reponame>" by what they say.
    assert_eq!(
        (spec.end_tokens.as_slice(), spec.add_bos),
        (&[TokenId(0), TokenId(2), TokenId(4)][..], false)
    );
    let wq = checkpoint.tensor(&checkpoint.tensors().layers[29].wq).unwrap();
    assert_eq!((wq.weight_type, wq.rows, wq.cols), (WeightType::Q4_1, 576, 576));
    let embedding = checkpoint.tensor(&checkpoint.tensors().output).unwrap();
    assert_eq!((embedding.weight_type, embedding.rows), (WeightType::Q8_0, 49152));
}

#[test]
fn every_head_layout_and_weight_type_opens() {
    for (num_q_heads, num_kv_heads, head_dim) in [(9, 3, 64), (14, 2, 64), (8, 8, 32), (8, 1, 16), (6, 2, 128)] {
        for weight_type in WeightType::ALL {
            for tied in [true, false] {
                let heads = TinyModel::with_heads(num_q_heads, num_kv_heads, head_dim);
                // No row of the output projection may cut a stored block.
                if !(num_q_heads * head_dim).is_multiple_of(weight_type.block_len() as u32) {
                    continue;
                }
                let model = TinyModel {
                    weight_type,
                    embedding_type: weight_type,
                    tied,
                    ..heads.of_whole_blocks(weight_type)
                };
                let checkpoint = open(&model.gguf());
                let spec = checkpoint.spec();
                assert_eq!(
                    (spec.num_q_heads, spec.num_kv_heads, spec.head_dim),
                    (num_q_heads, num_kv_heads, head_dim)
                );
                assert_eq!((spec.hidden_size, spec.tied_head), (model.hidden, tied));
                let wo = checkpoint.tensor(&checkpoint.tensors().layers[1].wo).unwrap();
                assert_eq!(
                    (wo.rows, wo.cols, wo.weight_type),
                    (model.hidden as usize, (num_q_heads * head_dim) as usize, weight_type)
                );
                assert_eq!(wo.bytes.len(), wo.rows * wo.row_bytes());
            }
        }
    }
}

#[test]
fn tensors_hold_what_was_written() {
    let model = TinyModel::default().gguf();
    let checkpoint = open(&model);
    assert_eq!(checkpoint.tensors().names().count(), model.tensors.len());
    for tensor in &model.tensors {
        assert_eq!(
            checkpoint.tensor(&tensor.name).unwrap().bytes,
            tensor.bytes,
            "{}",
            tensor.name
        );
    }
    let mut row = vec![0.0; 96];
    checkpoint
        .tensor("blk.1.ffn_up.weight")
        .unwrap()
        .dequantize_row(191, &mut row);
    assert!(row.iter().all(|weight| weight.is_finite()) && row.iter().any(|weight| *weight != 0.0));
    assert_eq!(
        checkpoint.tensor("blk.2.ffn_up.weight").unwrap_err().to_string(),
        "there is no tensor \"blk.2.ffn_up.weight\""
    );
}

#[test]
fn what_a_file_leaves_out_has_the_formats_default() {
    let mut model = TinyModel {
        num_q_heads: 6,
        num_kv_heads: 6,
        head_dim: 32,
        hidden: 192,
        ..TinyModel::default()
    }
    .gguf();
    for key in [
        "llama.attention.head_count_kv",
        "llama.attention.key_length",
        "llama.attention.value_length",
    ] {
        model.remove(key);
    }
    for key in [
        "llama.rope.freq_base",
        "llama.rope.dimension_count",
        "llama.vocab_size",
        "tokenizer.ggml.add_bos_token",
    ] {
        model.remove(key);
    }
    model.remove("tokenizer.ggml.bos_token_id");
    let spec = open(&model).spec().clone();
    assert_eq!((spec.num_kv_heads, spec.head_dim, spec.rope_dim), (6, 32, 32));
    assert_eq!(
        (spec.rope_theta, spec.vocab_size, spec.bos_token, spec.add_bos),
        (10_000.0, 320, None, false)
    );
}

#[test]
fn older_versions_other_alignments_and_other_integer_types_are_read() {
    let mut model = TinyModel::default().gguf();
    model.version = 2;
    model.alignment = 256;
    model.set("general.alignment", GgufValue::U64(256));
    model.set("llama.block_count", GgufValue::I32(2));
    model.set("llama.rope.scaling.type", GgufValue::Str("none".to_owned()));
    // Arrays of arrays exist in the format; nobody reads this one: two arrays of one u8 each.
    let nested = [&9u32.to_le_bytes()[..], &2u64.to_le_bytes()];
    let inner = [&0u32.to_le_bytes()[..], &1u64.to_le_bytes(), &[7]].concat();
    let bytes = [nested.concat(), inner.clone(), inner].concat();
    model.set("general.nested", GgufValue::Raw { type_id: 9, bytes });
    let checkpoint = open(&model);
    assert_eq!(checkpoint.spec().num_layers, 2);
    assert_eq!(
        checkpoint.tensor("output_norm.weight").unwrap().bytes,
        model.tensor_mut("output_norm.weight").bytes
    );
}

#[test]
fn several_end_tokens_are_all_kept() {
    let mut model = TinyModel::default().gguf();
    model.set("tokenizer.ggml.eot_token_id", GgufValue::U32(0));
    model.set("tokenizer.ggml.eom_token_id", GgufValue::U32(2));
    let spec = open(&model).spec().clone();
    assert_eq!(
        (spec.eot_token, spec.end_tokens),
        (Some(TokenId(0)), vec![TokenId(0), TokenId(2)])
    );
}

#[test]
fn the_content_hash_is_that_of_all_bytes_and_the_same_seed_gives_the_same_bytes() {
    let first = open(&TinyModel::default().gguf());
    assert_eq!(first.content_hash(), open(&TinyModel::default().gguf()).content_hash());
    assert_ne!(
        first.content_hash(),
        open(
            &TinyModel {
                seed: 1,
                ..TinyModel::default()
            }
            .gguf()
        )
        .content_hash()
    );
    let mut model = TinyModel::default().gguf();
    *model.tensors.last_mut().unwrap().bytes.last_mut().unwrap() ^= 1;
    assert_ne!(first.content_hash(), open(&model).content_hash());
}

#[test]
fn a_checkpoint_is_shared_between_threads() {
    let checkpoint = open(&TinyModel::default().gguf());
    std::thread::scope(|scope| {
        let reader = || checkpoint.tensor("token_embd.weight").unwrap().row(1).to_vec();
        let threads = [scope.spawn(reader), scope.spawn(reader)];
        let [a, b] = threads.map(|thread| thread.join().unwrap());
        assert_eq!(a, b);
    });
    assert!(checkpoint.path().ends_with(PathBuf::from("tiny.gguf")));
}
