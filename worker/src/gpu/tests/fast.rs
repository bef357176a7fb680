//! The fast mode's kernels against the definition, within what bf16, f16 and another order cost.

use half::bf16;
use kvasir_kv::{CellLayout, KvDtype};

use super::{Host, random};
use crate::{
    arith::{
        reference,
        tests::inputs::{Random, Style},
    },
    gpu::{
        attention::{AttentionShape, fits_tensor_cores},
        device::{DeviceBuffer as _, Gemm, GemmDtype, LaunchShape},
        kernel::{AttendArgs, AttendItem, CellPlaces, Kernel, MergeChunksArgs, RowPlaces},
        product::fast_product,
    },
};

#[test]
fn few_and_many_tokens_are_multiplied_alike() {
    let (mut host, mut random) = (Host::new(), random());
    for tokens in [1, 2, 3, 4, 5, 9] {
        for (rows, cols) in [(32, 32), (77, 288), (64, 1024)] {
            for accumulate in [false, true] {
                let [weights, x] = [rows, tokens].map(|len| -> Vec<bf16> {
                    let values = random.floats(Style::Ordinary, len * cols);
                    values.into_iter().map(bf16::from_f32).collect()
                });
                let bits = |values: &[bf16]| values.iter().map(|x| x.to_bits()).collect::<Vec<u16>>();
                let (d_weights, d_x) = (host.put(&bits(&weights)), host.put(&bits(&x)));
                let stride = rows + 3;
                let out = host.put(&vec![1.0f32; stride * tokens]);
                let gemm = Gemm {
                    dtype: GemmDtype::BF16,
                    x: d_x.address(),
                    weights: d_weights.address(),
                    out: out.address(),
                    tokens: tokens as u32,
                    rows: rows as u32,
                    cols: cols as u32,
                    out_stride: stride as u32,
                    accumulate,
                };
                fast_product(&mut host.0, &gemm).unwrap();
                let out: Vec<f32> = host.get(&out);
                for token in 0..tokens {
                    assert_eq!(out[token * stride + rows..][..3], [1.0; 3], "beyond the rows");
                    for row in 0..rows {
                        let products = weights[row * cols..][..cols].iter().zip(&x[token * cols..][..cols]);
                        let dot: f64 = products.map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                        let expected = dot + f64::from(u8::from(accumulate));
                        let found = f64::from(out[token * stride + row]);
                        assert!(
                            (found - expected).abs() < 1e-3 * cols as f64,
                            "{found} is not {expected}"
                        );
                    }
                }
            }
        }
    }
}

/// A sequence whose last rows are queried.
struct Case {
    dim: usize,
    group: usize,
    heads: usize,
    positions: usize,
    rows: usize,
}

fn check_attention(host: &mut Host, random: &mut Random, case: &Case) -> f32 {
    let &Case {
        dim,
        group,
        heads,
        positions,
        rows: queried,
    } = case;
    let layout = CellLayout::new(2, dim as u32, 16, KvDtype::F16).unwrap();
    assert!(fits_tensor_cores(&layout, group as u32));
    let vectors = heads * (group + 2);
    let columns: Vec<f32> = (0..positions * vectors * dim).map(|_| random.unit()).collect();
    let vector = |position: usize, head: usize, part: usize| {
        &columns[((position * heads + head) * (group + 2) + part) * dim..][..dim]
    };
    let num_blocks = positions.div_ceil(16);
    let table: Vec<u32> = (0..num_blocks as u32).rev().collect();
    // Everything that is not written is NaN.
    let mut slabs = vec![vec![0x7e00u16; layout.slab_bytes(num_blocks as u32) / 2]; heads];
    for (head, slab) in slabs.iter_mut().enumerate() {
        for position in 0..positions {
            let block = table[position / 16] as usize * layout.cell_bytes() + layout.layer_range(1).start;
            for which in 0..2 {
                let at = (block + which * layout.plane_bytes()) / 2 + position % 16 * dim;
                for (half, x) in slab[at..].iter_mut().zip(vector(position, head, group + which)) {
                    *half = half::f16::from_f32(*x).to_bits();
                }
            }
        }
    }
    let slabs: Vec<_> = slabs.iter().map(|slab| host.put(slab)).collect();
    let d_slabs = host.put(&slabs.iter().map(|slab| slab.address()).collect::<Vec<_>>());
    let (d_columns, d_table) = (host.put(&columns), host.put(&table));
    let d_sequences = host.put(&vec![0u32; positions]);
    let d_positions = host.put(&(0..positions as u32).collect::<Vec<_>>());
    let first_row = positions - queried;
    let d_item = host.put(&[AttendItem {
        row: first_row as u32,
        rows: queried as u32,
    }]);
    let num_chunks = positions.div_ceil(256);
    let shape = AttentionShape {
        head_dim: dim,
        heads,
        group,
        fast: true,
    };
    let chunks = host.room::<f32>(queried * num_chunks * shape.chunk_floats());
    let out = host.room::<f32>(positions * heads * group * dim);
    let args = AttendArgs {
        columns: d_columns.address(),
        items: d_item.address(),
        chunks: chunks.address(),
        cells: CellPlaces {
            slabs: d_slabs.address(),
            cell_bytes: layout.cell_bytes() as u64,
            layer_offset: layout.layer_range(1).start as u64,
            plane_bytes: layout.plane_bytes() as u32,
            block_size: 16,
            head_dim: dim as u32,
            dtype: 1,
        },
        rows: RowPlaces {
            tables: d_table.address(),
            sequences: d_sequences.address(),
            positions: d_positions.address(),
            table_stride: num_blocks as u32,
            padding: 0,
        },
        group: group as u32,
        heads: heads as u32,
        num_chunks: num_chunks as u32,
        first_row: first_row as u32,
    };
    let kernel = if dim == 64 {
        Kernel::AttendFast64
    } else {
        Kernel::AttendFast128
    };
    let grid = [num_chunks as u32, heads as u32, 1];
    host.run(kernel, LaunchShape::new(grid, 128).shared(4 * 16 * (8 + dim)), &args);
    let halves = host.room::<u16>(positions * heads * group * dim);
    let merge = MergeChunksArgs {
        chunks: chunks.address(),
        out: out.address(),
        halves: halves.address(),
        positions: d_positions.address(),
        head_dim: dim as u32,
        num_heads: (heads * group) as u32,
        num_chunks: num_chunks as u32,
        first_row: first_row as u32,
    };
    let grid = [(heads * group) as u32, queried as u32, 1];
    host.run(Kernel::MergeChunks, LaunchShape::new(grid, dim as u32), &merge);

    let (out, halves) = (host.get::<f32>(&out), host.get::<u16>(&halves));
    let first = first_row * heads * group * dim;
    for (x, half) in out[first..].iter().zip(&halves[first..]) {
        assert_eq!(bf16::from_f32(*x).to_bits(), *half);
    }
    let mut largest = 0.0f32;
    for head in 0..heads {
        let round = |part: usize| -> Vec<Vec<f32>> {
            let rows = (0..positions).map(|position| vector(position, head, part));
            rows.map(|row| reference::round_row_to_cell(row, KvDtype::F16))
                .collect()
        };
        let (keys, values) = (round(group), round(group + 1));
        for row in first_row..positions {
            for query in 0..group {
                let expected = reference::attend(vector(row, head, query), &keys[..=row], &values[..=row]);
                let found = &out[((row * heads + head) * group + query) * dim..][..dim];
                for (found, expected) in found.iter().zip(expected) {
                    // NaN must not pass for the smaller.
                    let difference = (found - expected).abs();
                    largest = if difference <= largest { largest } else { difference };
                }
            }
        }
    }
    largest
}

#[test]
fn attention_on_tensor_cores_is_the_definitions_within_the_precision_of_f16() {
    let (mut host, mut random) = (Host::new(), random());
    for (dim, group, heads, positions, rows) in [
        (64, 1, 2, 1, 1),
        (64, 16, 1, 33, 1),
        (128, 4, 2, 300, 1),
        (128, 8, 1, 257, 1),
        (64, 3, 1, 280, 5),
        (128, 1, 1, 530, 16),
        (64, 4, 2, 258, 4),
        (128, 16, 1, 256, 1),
    ] {
        let case = Case {
            dim,
            group,
            heads,
            positions,
            rows,
        };
        let difference = check_attention(&mut host, &mut random, &case);
        println!("dim {dim} group {group} {positions} positions {rows} rows: {difference:e}");
        assert!(
            difference < 3e-4,
            "dim {dim} group {group} {positions} positions {rows} rows: {difference:e}"
        );
    }
}
