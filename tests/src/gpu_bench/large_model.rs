//! A checkpoint of Llama-3-8B's shape with random bf16 weights, written as quickly as the file system takes it.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use kvasir_model::WeightType;

use crate::{gguf_writer::GgufTensor, tiny_model::TinyModel};

const PIECE_BYTES: u64 = 1 << 23;

/// The shape, or one of few layers and narrow for a dry run.
pub fn shape(is_tiny: bool) -> TinyModel {
    let llama = TinyModel {
        num_layers: 32,
        num_q_heads: 32,
        num_kv_heads: 8,
        head_dim: 128,
        hidden: 4096,
        ffn: 14_336,
        vocab: 128_256,
        weight_type: WeightType::BF16,
        embedding_type: WeightType::BF16,
        context_len: 8192,
        tied: false,
        ..TinyModel::default()
    };
    if !is_tiny {
        return llama;
    }
    TinyModel {
        num_layers: 2,
        num_q_heads: 4,
        num_kv_heads: 2,
        head_dim: 32,
        hidden: 128,
        ffn: 256,
        vocab: 320,
        ..llama
    }
}

/// Writes it with as many threads as the machine has.
pub fn write(model: &TinyModel, path: &Path) -> io::Result<()> {
    let mut file = model.header();
    let mut offset = 0;
    let (mut matrices, mut norms) = (Vec::new(), Vec::new());
    for (name, dimensions) in tensors(model) {
        let is_norm = dimensions.len() == 1;
        let weight_type = if is_norm { WeightType::F32 } else { WeightType::BF16 };
        let bytes = dimensions.iter().product::<u64>() * if is_norm { 4 } else { 2 };
        if is_norm { &mut norms } else { &mut matrices }.push(offset..offset + bytes);
        file.tensors.push(GgufTensor {
            name,
            dimensions,
            type_id: weight_type.gguf_id(),
            bytes: Vec::new(),
            offset: Some(offset),
        });
        offset += bytes.next_multiple_of(file.alignment as u64);
    }
    let mut header = file.to_bytes();
    header.resize(header.len().next_multiple_of(file.alignment), 0);
    let data = header.len() as u64;
    let target = File::create(path)?;
    target.set_len(data + offset)?;
    target.write_all_at(&header, 0)?;
    for norm in norms {
        let ones: Vec<u8> = (0..(norm.end - norm.start) / 4)
            .flat_map(|_| 1f32.to_le_bytes())
            .collect();
        target.write_all_at(&ones, data + norm.start)?;
    }
    let pieces: Vec<(u64, u64)> = matrices
        .into_iter()
        .flat_map(|matrix| {
            let begins = matrix.clone().step_by(PIECE_BYTES as usize);
            begins.map(move |begin| (data + begin, PIECE_BYTES.min(matrix.end - begin)))
        })
        .collect();
    write_random(&target, &pieces)
}

/// As GGUF names them; the fastest dimension first.
fn tensors(model: &TinyModel) -> Vec<(String, Vec<u64>)> {
    let [hidden, ffn, vocab] = [model.hidden, model.ffn, model.vocab].map(u64::from);
    let [q, kv] = [model.num_q_heads, model.num_kv_heads].map(|heads| u64::from(heads * model.head_dim));
    let mut tensors = vec![
        ("token_embd.weight".to_owned(), vec![hidden, vocab]),
        ("output_norm.weight".to_owned(), vec![hidden]),
        ("output.weight".to_owned(), vec![hidden, vocab]),
    ];
    for layer in 0..model.num_layers {
        let of_layer = [
            ("attn_norm", vec![hidden]),
            ("attn_q", vec![hidden, q]),
            ("attn_k", vec![hidden, kv]),
            ("attn_v", vec![hidden, kv]),
            ("attn_output", vec![q, hidden]),
            ("ffn_norm", vec![hidden]),
            ("ffn_gate", vec![hidden, ffn]),
            ("ffn_up", vec![hidden, ffn]),
            ("ffn_down", vec![ffn, hidden]),
        ];
        let named = |(part, dimensions)| (format!("blk.{layer}.{part}.weight"), dimensions);
        tensors.extend(of_layer.into_iter().map(named));
    }
    tensors
}

/// Each piece from a generator of its own.
fn write_random(target: &File, pieces: &[(u64, u64)]) -> io::Result<()> {
    let next = AtomicU64::new(0);
    let write_some = || -> io::Result<()> {
        let mut bytes = Vec::new();
        while let Some((at, len)) = pieces.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            fill_random(*at, *len, &mut bytes);
            target.write_all_at(&bytes, *at)?;
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..threads).map(|_| scope.spawn(write_some)).collect();
        let join = |writer: std::thread::ScopedJoinHandle<'_, io::Result<()>>| writer.join().expect("no panic");
        writers.into_iter().try_for_each(join)
    })
}

/// bf16 between 1/128 and 1/32, of either sign: about what a trained model's weights are. By xorshift, which keeps up with
/// memory.
fn fill_random(seed: u64, len: u64, bytes: &mut Vec<u8>) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    bytes.clear();
    while (bytes.len() as u64) < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let four = (state & 0x80ff_80ff_80ff_80ff) | 0x3c00_3c00_3c00_3c00;
        bytes.extend(four.to_le_bytes());
    }
    bytes.truncate(len as usize);
}

#[cfg(test)]
mod tests {
    use kvasir_model::Checkpoint;

    use super::*;

    #[test]
    fn what_is_written_is_a_checkpoint_of_the_shape() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        write(&shape(true), &path).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let spec = checkpoint.spec();
        assert_eq!((spec.num_layers, spec.head_dim, spec.vocab_size), (2, 32, 320));
        let tensor = checkpoint.tensor("blk.1.ffn_down.weight").unwrap();
        let mut row = vec![0.0; tensor.cols];
        tensor.dequantize_row(100, &mut row);
        assert!(
            row.iter()
                .all(|weight| (1.0 / 128.0..1.0 / 32.0).contains(&weight.abs()))
        );
        assert!(row.iter().any(|weight| *weight < 0.0) && row.iter().any(|weight| *weight > 0.0));
    }
}
