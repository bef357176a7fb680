//! What becomes of q, k and v on their way: biases, norms, rotation, rounding into cells; and cells on their way elsewhere.

use kvasir_kv::{BlockId, CellLayout, KvDtype};

use super::{Host, random};
use crate::{
    arith::{
        Kernels, reference,
        tests::inputs::{Random, Style, assert_same_bits},
    },
    cells::Cells,
    gpu::{
        device::{DeviceBuffer as _, LaunchShape},
        device_cells::DeviceCells,
        kernel::{Kernel, RowPlaces, WriteCellsArgs},
        test_device::{TestBuffer, TestDevice},
    },
};

const LAYERS: u32 = 2;

struct Case {
    dtype: KvDtype,
    style: Style,
    dim: usize,
    rope_dim: usize,
    group: usize,
    heads: usize,
    has_biases: bool,
    has_norms: bool,
}

/// The definition's way from a row's columns to the same, biased, normed and rotated.
fn finished(case: &Case, columns: &[f32], biases: &[f32], norms: [&[f32]; 2], rotation: &[f32]) -> Vec<f32> {
    let vectors = columns.chunks_exact(case.dim).zip(biases.chunks_exact(case.dim));
    let finish = |(number, (vector, bias)): (usize, (&[f32], &[f32]))| -> Vec<f32> {
        let part = number % (case.group + 2);
        let mut vector = vector.to_vec();
        if case.has_biases {
            vector.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
        }
        if part == case.group + 1 {
            return vector;
        }
        if case.has_norms {
            vector = reference::rms_norm(&vector, norms[usize::from(part == case.group)], 1e-6);
        }
        for (pair, turn) in vector[..case.rope_dim]
            .as_chunks_mut::<2>()
            .0
            .iter_mut()
            .zip(rotation.as_chunks::<2>().0)
        {
            (pair[0], pair[1]) = reference::rotate_pair((pair[0], pair[1]), turn[0], turn[1]);
        }
        vector
    };
    vectors.enumerate().flat_map(finish).collect()
}

/// Writes rows of two sequences on the device and, by the CPU's kernels, on the host; then compares columns, poison and cells.
fn check(host: &mut Host, random: &mut Random, case: &Case) -> usize {
    let context = format!(
        "{} {:?} dim {} rope {} group {} biases {} norms {}",
        case.dtype, case.style, case.dim, case.rope_dim, case.group, case.has_biases, case.has_norms
    );
    let (dim, heads, group, tokens) = (case.dim, case.heads, case.group, 5);
    let vectors = heads * (group + 2);
    let layout = CellLayout::new(LAYERS, dim as u32, 16, case.dtype).unwrap();
    let columns = random.floats(case.style, tokens * vectors * dim);
    let biases = random.floats(case.style, vectors * dim);
    let norms = [random.floats(Style::Ordinary, dim), random.floats(Style::Ordinary, dim)];
    let rotations: Vec<f32> = (0..tokens * case.rope_dim).map(|_| random.unit()).collect();
    let (tables, sequences, positions) = ([3u32, 1, 0, 2], [0u32, 0, 1, 1, 1], [15u32, 16, 0, 1, 17]);

    let d_columns = host.put(&columns);
    let [d_biases, d_q_norm, d_k_norm, d_rotations] =
        [&biases, &norms[0], &norms[1], &rotations].map(|values| host.put(values));
    let (d_tables, d_sequences, d_positions) = (host.put(&tables), host.put(&sequences), host.put(&positions));
    let poison = host.put(&[0u32; 5]);
    let mut cells: DeviceCells<TestBuffer> = DeviceCells::new(layout);
    cells.resize(&mut host.0, 0..heads as u32, 4).unwrap();
    let zeros = vec![0u8; 4 * layout.cell_bytes()];
    let blocks = [0, 1, 2, 3].map(BlockId);
    for head in 0..heads {
        cells.scatter(&mut host.0, head, &blocks, &zeros).unwrap();
    }
    let slabs = host.put(&cells.slab_addresses());
    let or_none = |wanted: bool, buffer: &TestBuffer| if wanted { buffer.address() } else { 0 };
    let args = WriteCellsArgs {
        columns: d_columns.address(),
        biases: or_none(case.has_biases, &d_biases),
        q_norm: or_none(case.has_norms, &d_q_norm),
        k_norm: or_none(case.has_norms, &d_k_norm),
        rotations: d_rotations.address(),
        poison: poison.address(),
        cells: cells.places(slabs.address(), 1),
        rows: RowPlaces {
            tables: d_tables.address(),
            sequences: d_sequences.address(),
            positions: d_positions.address(),
            table_stride: 2,
            padding: 0,
        },
        group: group as u32,
        rope_dim: case.rope_dim as u32,
        eps: 1e-6,
        heads: heads as u32,
    };
    let shape = LaunchShape::new([vectors as u32, tokens as u32, 1], 32).shared(4 * dim);
    host.run(Kernel::WriteCells, shape, &args);

    let mut expected_cells = Cells::new(layout);
    expected_cells.resize(0..heads as u32, 4).unwrap();
    let mut expected_poison = [0u32; 5];
    let left: Vec<f32> = host.get(&d_columns);
    for token in 0..tokens {
        let row = |values: &[f32]| values[token * vectors * dim..][..vectors * dim].to_vec();
        let rotation = &rotations[token * case.rope_dim..][..case.rope_dim];
        let expected = finished(case, &row(&columns), &biases, [&norms[0], &norms[1]], rotation);
        let left = row(&left);
        let block = tables[(sequences[token] * 2 + positions[token] / 16) as usize];
        for head in 0..heads {
            let at = head * (group + 2) * dim;
            let queries = at..at + group * dim;
            assert_same_bits(&left[queries.clone()], &expected[queries], &context);
            let (k, v) = expected[at + group * dim..][..2 * dim].split_at(dim);
            let cell = &mut expected_cells.slabs_mut()[head][Cells::layer_cell(&layout, block, 1)];
            let offset = (positions[token] % 16) as usize;
            expected_poison[token] |= u32::from(!Kernels::best().write_kv(k, v, cell, &layout, offset));
        }
    }
    assert_eq!(host.get::<u32>(&poison), expected_poison, "{context}");
    // NaN has many bits, and a poisoned token's cells are read by nobody.
    if expected_poison == [0; 5] {
        for head in 0..heads {
            let found = cells.gather(&mut host.0, head, &blocks).unwrap();
            assert!(
                found[..] == expected_cells.slabs_mut()[head][..],
                "{context}: cells of head {head}"
            );
        }
    }
    expected_poison.iter().filter(|poison| **poison != 0).count()
}

#[test]
fn keys_and_values_are_rounded_into_cells_as_the_cpu_does() {
    let (mut host, mut random) = (Host::new(), random());
    let mut poisoned = 0;
    for dtype in KvDtype::ALL {
        for style in Style::ALL {
            for (dim, rope_dim, group, heads) in [(32, 32, 3, 2), (64, 16, 1, 3), (128, 128, 4, 1), (96, 64, 7, 2)] {
                for (has_biases, has_norms) in [(false, false), (true, false), (true, true)] {
                    let case = Case {
                        dtype,
                        style,
                        dim,
                        rope_dim,
                        group,
                        heads,
                        has_biases,
                        has_norms,
                    };
                    poisoned += check(&mut host, &mut random, &case);
                }
            }
        }
    }
    assert!(poisoned > 0, "extreme inputs do not fit f16");
}

#[test]
fn cells_come_back_as_they_went_whatever_the_order_here() {
    let (mut host, mut random) = (Host::new(), random());
    for dtype in KvDtype::ALL {
        for (dim, block_size) in [(32, 16), (128, 64), (64, 256)] {
            let layout = CellLayout::new(LAYERS, dim, block_size, dtype).unwrap();
            let mut cells: DeviceCells<TestBuffer> = DeviceCells::new(layout);
            cells.resize(&mut host.0, 2..4, 6).unwrap();
            let blocks = [4, 0, 5].map(BlockId);
            let bytes: Vec<u8> = (0..3 * layout.cell_bytes()).map(|_| random.next() as u8).collect();
            cells.scatter::<TestDevice>(&mut host.0, 1, &blocks, &bytes).unwrap();
            assert!(cells.gather(&mut host.0, 1, &blocks).unwrap() == bytes);
            let turned = cells.gather(&mut host.0, 1, &[BlockId(5), BlockId(4)]).unwrap();
            let cell = layout.cell_bytes();
            assert!(turned == [&bytes[2 * cell..], &bytes[..cell]].concat());
        }
    }
}
