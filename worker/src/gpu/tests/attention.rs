//! Paged attention: chunks, merge, prefill rows, every dtype and group.

use kvasir_kv::{CellLayout, KvDtype};

use super::{Host, random};
use crate::{
    arith::{
        reference,
        tests::inputs::{Random, Style, assert_same_bits},
    },
    gpu::{
        device::{DeviceBuffer as _, LaunchShape},
        kernel::{AttendArgs, AttendItem, CellPlaces, Kernel, MergeChunksArgs, RowPlaces, WriteCellsArgs},
    },
};

/// One sequence of some heads, whose first positions are in the cells.
struct Case {
    dtype: KvDtype,
    style: Style,
    dim: usize,
    group: usize,
    heads: usize,
    block_size: usize,
    positions: usize,
    /// The last so many positions are queried.
    rows: usize,
}

impl Case {
    fn layout(&self) -> CellLayout {
        CellLayout::new(2, self.dim as u32, self.block_size as u32, self.dtype).unwrap()
    }

    fn readers(&self) -> usize {
        self.rows * self.group
    }
}

fn attend_kernel(readers: usize) -> Kernel {
    match readers {
        0..=1 => Kernel::Attend1,
        2 => Kernel::Attend2,
        3..=4 => Kernel::Attend4,
        5..=8 => Kernel::Attend8,
        9..=16 => Kernel::Attend16,
        _ => Kernel::Attend32,
    }
}

/// Writes all positions by the kernel that does, attends by the kernels that do, and compares with the definition.
fn check(host: &mut Host, random: &mut Random, case: &Case) {
    let context = format!(
        "{} {:?} dim {} group {} blocks of {} {} positions {} rows",
        case.dtype, case.style, case.dim, case.group, case.block_size, case.positions, case.rows
    );
    let layout = case.layout();
    let (dim, heads, group, positions) = (case.dim, case.heads, case.group, case.positions);
    let vectors = heads * (group + 2);
    let columns = random.floats(case.style, positions * vectors * dim);
    let num_blocks = positions.div_ceil(case.block_size);
    // Blocks lie in the slab in another order.
    let table: Vec<u32> = (0..num_blocks as u32).rev().map(|block| block * 2 + 1).collect();
    let slabs: Vec<_> = (0..heads)
        .map(|_| host.room::<u8>(layout.slab_bytes(2 * num_blocks as u32)))
        .collect();
    let d_slabs = host.put(&slabs.iter().map(|slab| slab.address()).collect::<Vec<_>>());
    let (d_columns, d_table) = (host.put(&columns), host.put(&table));
    let d_sequences = host.put(&vec![0u32; positions]);
    let d_positions = host.put(&(0..positions as u32).collect::<Vec<_>>());
    let d_rotations = host.put(&[1f32, 0.0].repeat(positions * 8));
    let d_poison = host.put(&vec![0u32; positions]);
    let cells = CellPlaces {
        slabs: d_slabs.address(),
        cell_bytes: layout.cell_bytes() as u64,
        layer_offset: layout.layer_range(1).start as u64,
        plane_bytes: layout.plane_bytes() as u32,
        block_size: case.block_size as u32,
        head_dim: dim as u32,
        dtype: case.dtype as u32,
    };
    let rows = RowPlaces {
        tables: d_table.address(),
        sequences: d_sequences.address(),
        positions: d_positions.address(),
        table_stride: num_blocks as u32,
        padding: 0,
    };
    let write = WriteCellsArgs {
        columns: d_columns.address(),
        rotations: d_rotations.address(),
        poison: d_poison.address(),
        cells,
        rows,
        group: group as u32,
        rope_dim: 16,
        heads: heads as u32,
        ..WriteCellsArgs::default()
    };
    let shape = LaunchShape::new([vectors as u32, positions as u32, 1], 32).shared(4 * dim);
    host.run(Kernel::WriteCells, shape, &write);
    // Turning by no angle changes the sign of some zeros, and infinity into NaN.
    let columns: Vec<f32> = host.get(&d_columns);
    let original = columns;

    let first_row = positions - case.rows;
    let item = AttendItem {
        row: first_row as u32,
        rows: case.rows as u32,
    };
    let d_item = host.put(&[item]);
    let num_chunks = positions.div_ceil(256);
    let chunks = host.room::<f32>(case.rows * heads * group * num_chunks * (dim + 2));
    let out = host.room::<f32>(positions * heads * group * dim);
    let kernel = attend_kernel(case.readers());
    let readers = [1, 2, 4, 8, 16, 32]
        .into_iter()
        .find(|most| *most >= case.readers())
        .unwrap();
    let args = AttendArgs {
        columns: d_columns.address(),
        items: d_item.address(),
        chunks: chunks.address(),
        cells,
        rows,
        group: group as u32,
        heads: heads as u32,
        num_chunks: num_chunks as u32,
        first_row: first_row as u32,
    };
    let shared = 4 * (256 * 36 + dim * readers + 256 * readers);
    let shape = LaunchShape::new([num_chunks as u32, heads as u32, 1], 256).shared(shared);
    host.run(kernel, shape, &args);
    let merge = MergeChunksArgs {
        chunks: chunks.address(),
        out: out.address(),
        positions: d_positions.address(),
        head_dim: dim as u32,
        num_heads: (heads * group) as u32,
        num_chunks: num_chunks as u32,
        first_row: first_row as u32,
        ..MergeChunksArgs::default()
    };
    let shape = LaunchShape::new(
        [(heads * group) as u32, case.rows as u32, 1],
        dim.next_multiple_of(32) as u32,
    );
    host.run(Kernel::MergeChunks, shape, &merge);

    let out: Vec<f32> = host.get(&out);
    for head in 0..heads {
        let vector =
            |position: usize, part: usize| &original[((position * heads + head) * (group + 2) + part) * dim..][..dim];
        let mut rotated = |position: usize| {
            let mut key = vector(position, group).to_vec();
            for pair in key[..16].as_chunks_mut::<2>().0 {
                (pair[0], pair[1]) = reference::rotate_pair((pair[0], pair[1]), 1.0, 0.0);
            }
            reference::round_row_to_cell(&key, case.dtype)
        };
        let keys: Vec<Vec<f32>> = (0..positions).map(&mut rotated).collect();
        let values: Vec<Vec<f32>> = (0..positions)
            .map(|position| reference::round_row_to_cell(vector(position, group + 1), case.dtype))
            .collect();
        for row in first_row..positions {
            for query in 0..group {
                let expected = reference::attend(vector(row, query), &keys[..=row], &values[..=row]);
                let at = ((row * heads + head) * group + query) * dim;
                assert_same_bits(
                    &out[at..][..dim],
                    &expected,
                    &format!("{context}, row {row}, query {query}"),
                );
            }
        }
    }
}

#[test]
fn attention_is_the_definitions_for_every_group_and_dtype() {
    let (mut host, mut random) = (Host::new(), random());
    for dtype in KvDtype::ALL {
        for style in Style::ALL {
            for (dim, group, heads, block_size, positions, rows) in [
                (32, 1, 2, 16, 1, 1),
                (64, 3, 2, 64, 90, 1),
                (128, 4, 1, 16, 300, 1),
                (96, 7, 1, 32, 257, 1),
                (32, 16, 1, 256, 256, 1),
                (256, 32, 1, 128, 40, 1),
                (64, 3, 1, 64, 280, 10),
                (128, 1, 1, 16, 530, 32),
                (256, 4, 1, 64, 65, 8),
                (32, 5, 2, 16, 7, 6),
            ] {
                let case = Case {
                    dtype,
                    style,
                    dim,
                    group,
                    heads,
                    block_size,
                    positions,
                    rows,
                };
                check(&mut host, &mut random, &case);
            }
        }
    }
}

#[test]
fn heads_of_sixteen_and_eighty_dimensions_attend_too() {
    let (mut host, mut random) = (Host::new(), random());
    for dtype in [KvDtype::F32, KvDtype::F16] {
        for (dim, group, rows) in [(16, 2, 1), (80, 2, 5), (112, 1, 1), (240, 3, 2)] {
            let case = Case {
                dtype,
                style: Style::Ordinary,
                dim,
                group,
                heads: 1,
                block_size: 16,
                positions: 270,
                rows,
            };
            check(&mut host, &mut random, &case);
        }
    }
}
