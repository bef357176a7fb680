//! The kernels by name, and what each takes.
//!
//! A kernel takes one struct by value. `worker/cuda/*.cu` holds the same structs with typed pointers; addresses are u64
//! here, 0 where a pointer may be absent. Shapes are in elements, innermost last.

use bytemuck::{Pod, Zeroable};

use super::device::{GpuDevice, GpuError, LaunchShape};

/// Defines `Kernel`: each source file with its kernels and the arguments they share.
macro_rules! kernels {
    ($($file:literal: $($variant:ident $name:literal $arguments:ident),+;)+) => {
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Kernel {
            $($($variant,)+)+
        }

        impl Kernel {
            pub const ALL: &[Self] = &[$($(Self::$variant,)+)+];

            /// The function's name.
            pub const fn name(self) -> &'static str {
                match self {
                    $($(Self::$variant => $name,)+)+
                }
            }

            /// The source it is in, without `.cu`.
            pub const fn file(self) -> &'static str {
                match self {
                    $($(Self::$variant => $file,)+)+
                }
            }

            pub const fn argument_bytes(self) -> usize {
                match self {
                    $($(Self::$variant => size_of::<$arguments>(),)+)+
                }
            }
        }

        /// Calls a macro with the name of every kernel.
        #[cfg(feature = "cuda-on-host")]
        #[allow(unused_macros)]
        macro_rules! with_kernels {
            ($m:ident) => { $m! { $($($variant $name,)+)+ } };
        }
        #[cfg(feature = "cuda-on-host")]
        #[allow(unused_imports)]
        pub(super) use with_kernels;
    };
}

kernels! {
    "norm":
        ResidualNorm "residual_norm" ResidualNormArgs;
    "quantize":
        Quantize "quantize" QuantizeArgs;
    "embedding":
        EmbedRows "embed_rows" EmbedRowsArgs,
        TakeRows "take_rows" TakeRowsArgs,
        SealSums "seal_sums" SealSumsArgs;
    "columns":
        ColumnsF32x1 "columns_f32_1" MatmulArgs,
        ColumnsF32x2 "columns_f32_2" MatmulArgs,
        ColumnsF32x4 "columns_f32_4" MatmulArgs,
        ColumnsF32x8 "columns_f32_8" MatmulArgs,
        ColumnsF16x1 "columns_f16_1" MatmulArgs,
        ColumnsF16x2 "columns_f16_2" MatmulArgs,
        ColumnsF16x4 "columns_f16_4" MatmulArgs,
        ColumnsF16x8 "columns_f16_8" MatmulArgs,
        ColumnsBF16x1 "columns_bf16_1" MatmulArgs,
        ColumnsBF16x2 "columns_bf16_2" MatmulArgs,
        ColumnsBF16x4 "columns_bf16_4" MatmulArgs,
        ColumnsBF16x8 "columns_bf16_8" MatmulArgs,
        ColumnsInt8x1 "columns_int8_1" MatmulArgs,
        ColumnsInt8x2 "columns_int8_2" MatmulArgs,
        ColumnsInt8x4 "columns_int8_4" MatmulArgs,
        ColumnsInt8x8 "columns_int8_8" MatmulArgs,
        ColumnsInt8Minx1 "columns_int8_min_1" MatmulArgs,
        ColumnsInt8Minx2 "columns_int8_min_2" MatmulArgs,
        ColumnsInt8Minx4 "columns_int8_min_4" MatmulArgs,
        ColumnsInt8Minx8 "columns_int8_min_8" MatmulArgs,
        ColumnsInt8Halvesx1 "columns_int8_halves_1" MatmulArgs,
        ColumnsInt8Halvesx2 "columns_int8_halves_2" MatmulArgs,
        ColumnsInt8Halvesx4 "columns_int8_halves_4" MatmulArgs,
        ColumnsInt8Halvesx8 "columns_int8_halves_8" MatmulArgs;
    "partials":
        PartialsF32x1 "partials_f32_1" MatmulArgs,
        PartialsF32x2 "partials_f32_2" MatmulArgs,
        PartialsF32x4 "partials_f32_4" MatmulArgs,
        PartialsF32x8 "partials_f32_8" MatmulArgs,
        PartialsF16x1 "partials_f16_1" MatmulArgs,
        PartialsF16x2 "partials_f16_2" MatmulArgs,
        PartialsF16x4 "partials_f16_4" MatmulArgs,
        PartialsF16x8 "partials_f16_8" MatmulArgs,
        PartialsBF16x1 "partials_bf16_1" MatmulArgs,
        PartialsBF16x2 "partials_bf16_2" MatmulArgs,
        PartialsBF16x4 "partials_bf16_4" MatmulArgs,
        PartialsBF16x8 "partials_bf16_8" MatmulArgs,
        PartialsInt8x1 "partials_int8_1" MatmulArgs,
        PartialsInt8x2 "partials_int8_2" MatmulArgs,
        PartialsInt8x4 "partials_int8_4" MatmulArgs,
        PartialsInt8x8 "partials_int8_8" MatmulArgs,
        PartialsInt8Minx1 "partials_int8_min_1" MatmulArgs,
        PartialsInt8Minx2 "partials_int8_min_2" MatmulArgs,
        PartialsInt8Minx4 "partials_int8_min_4" MatmulArgs,
        PartialsInt8Minx8 "partials_int8_min_8" MatmulArgs,
        PartialsInt8Halvesx1 "partials_int8_halves_1" MatmulArgs,
        PartialsInt8Halvesx2 "partials_int8_halves_2" MatmulArgs,
        PartialsInt8Halvesx4 "partials_int8_halves_4" MatmulArgs,
        PartialsInt8Halvesx8 "partials_int8_halves_8" MatmulArgs;
    "tiles":
        ColumnsF32x16 "columns_f32_16" MatmulArgs,
        ColumnsF16x16 "columns_f16_16" MatmulArgs,
        ColumnsBF16x16 "columns_bf16_16" MatmulArgs,
        ColumnsInt8x16 "columns_int8_16" MatmulArgs,
        ColumnsInt8Minx16 "columns_int8_min_16" MatmulArgs,
        ColumnsInt8Halvesx16 "columns_int8_halves_16" MatmulArgs,
        PartialsF32x16 "partials_f32_16" MatmulArgs,
        PartialsF16x16 "partials_f16_16" MatmulArgs,
        PartialsBF16x16 "partials_bf16_16" MatmulArgs,
        PartialsInt8x16 "partials_int8_16" MatmulArgs,
        PartialsInt8Minx16 "partials_int8_min_16" MatmulArgs,
        PartialsInt8Halvesx16 "partials_int8_halves_16" MatmulArgs,
        ColumnsF32x64 "columns_f32_64" MatmulArgs,
        ColumnsF16x64 "columns_f16_64" MatmulArgs,
        ColumnsBF16x64 "columns_bf16_64" MatmulArgs,
        ColumnsInt8x64 "columns_int8_64" MatmulArgs,
        ColumnsInt8Minx64 "columns_int8_min_64" MatmulArgs,
        ColumnsInt8Halvesx64 "columns_int8_halves_64" MatmulArgs,
        PartialsF32x64 "partials_f32_64" MatmulArgs,
        PartialsF16x64 "partials_f16_64" MatmulArgs,
        PartialsBF16x64 "partials_bf16_64" MatmulArgs,
        PartialsInt8x64 "partials_int8_64" MatmulArgs,
        PartialsInt8Minx64 "partials_int8_min_64" MatmulArgs,
        PartialsInt8Halvesx64 "partials_int8_halves_64" MatmulArgs;
    "cells":
        WriteCells "write_cells" WriteCellsArgs,
        GatherCells "gather_cells" MoveCellsArgs,
        ScatterCells "scatter_cells" MoveCellsArgs;
    "attention":
        Attend1 "attend_1" AttendArgs,
        Attend2 "attend_2" AttendArgs,
        Attend4 "attend_4" AttendArgs,
        Attend8 "attend_8" AttendArgs,
        Attend16 "attend_16" AttendArgs,
        Attend32 "attend_32" AttendArgs,
        MergeChunks "merge_chunks" MergeChunksArgs;
    "fast_attention":
        AttendFast64 "attend_fast_64" AttendArgs,
        AttendFast128 "attend_fast_128" AttendArgs;
    "fast_rows":
        FastRows1 "fast_rows_1" FastRowsArgs,
        FastRows2 "fast_rows_2" FastRowsArgs,
        FastRows4 "fast_rows_4" FastRowsArgs;
    "gate":
        SiluGate "silu_gate" SiluGateArgs;
    "vocab":
        VocabSummaries "vocab_summaries" VocabSummariesArgs;
    "probe":
        ReadWords "read_words" ReadWordsArgs;
}

/// A kernel's arguments, and who takes them.
pub trait Arguments: Pod {
    /// Launches `kernel`, which takes these.
    fn launch<D: GpuDevice>(&self, device: &mut D, kernel: Kernel, shape: LaunchShape) -> Result<(), GpuError> {
        let arguments = bytemuck::bytes_of(self);
        shape.check(kernel, arguments)?;
        device.launch_bytes(kernel, shape, arguments)
    }
}

impl<A: Pod> Arguments for A {}

/// Where activations are left as int8. All 0 where nobody wants them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Int8Rows {
    /// i8 `[tokens][cols]`
    pub quants: u64,
    /// f32 `[tokens][cols / 32]`
    pub scales: u64,
    /// f32 `[tokens][cols / 32]`: scale times the sum of the quants
    pub scaled_sums: u64,
}

/// A phase's sums go into the residual, and the residual is normalized for the next. A block of 256 threads per token.
/// Shared: cols floats.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct ResidualNormArgs {
    /// f32 `[tokens][cols]`: the residual, read and written
    pub x: u64,
    /// i64 `[tokens][cols]`, then i64 `[tokens]` of poison where `sealed`; read and left as zeros. Or 0.
    pub sums: u64,
    /// f32 `[tokens][cols]`, then f32 `[tokens]` of poison: sums that the host has reduced. Or 0.
    pub reduced: u64,
    /// f32 `[cols]`, added after the sums. Or 0.
    pub bias: u64,
    /// f32 `[cols]`. Or 0: nothing is normalized.
    pub weight: u64,
    /// f32 `[tokens][cols]`
    pub normed: u64,
    /// bf16 `[tokens][cols]`, of the fast mode. Or 0.
    pub halves: u64,
    pub int8: Int8Rows,
    /// u32 `[tokens]`
    pub poison: u64,
    pub cols: u32,
    pub eps: f32,
    /// 1 where `sums` ends with poison of all ranks.
    pub sealed: u32,
    pub padding: u32,
}

/// Activations become int8. A warp per 32 columns: grid [ceil(cols / 256), tokens], 256 threads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct QuantizeArgs {
    /// f32 `[tokens][cols]`
    pub x: u64,
    pub int8: Int8Rows,
    /// u32 `[tokens]`
    pub poison: u64,
    pub cols: u32,
    pub padding: u32,
}

/// Embedding rows as fixed-point sums. Grid `[tokens]`, 256 threads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct EmbedRowsArgs {
    /// f32 `[tokens][cols]`; zeros for a token of another rank
    pub rows: u64,
    /// i64 `[tokens][cols]`, written
    pub sums: u64,
    /// u32 `[tokens]`
    pub poison: u64,
    pub cols: u32,
    pub padding: u32,
}

/// Some rows of the residual, and their poison. Grid `[rows]`, 256 threads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct TakeRowsArgs {
    /// f32 `[tokens][cols]`
    pub x: u64,
    /// u32 `[tokens]`
    pub poison: u64,
    /// u32 `[rows]`
    pub rows: u64,
    /// f32 `[rows][cols]`
    pub taken: u64,
    /// u32 `[rows]`
    pub taken_poison: u64,
    pub cols: u32,
    pub padding: u32,
}

/// Poison goes to the end of the sums, so that the reduce carries it to all ranks. Grid `[ceil(tokens / 256)]`, 256 threads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct SealSumsArgs {
    /// u32 `[tokens]`
    pub poison: u64,
    /// i64 `[tokens]`
    pub tail: u64,
    pub tokens: u32,
    pub padding: u32,
}

/// Sixteen rows of packed weights, and where their results go.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable, PartialEq, Eq)]
pub struct RowGroup {
    pub weights: u64,
    pub out_row: u32,
    /// 1 to 16
    pub rows: u32,
}

/// A matrix product. 256 threads.
///
/// Columns: a block per row group (`_1` to `_8`: as many tokens), or per four row groups and 16 or 64 tokens.
/// Partials: the grid is the same, and the units may be dealt over grid.z. Shared: see `worker/cuda/matmul.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct MatmulArgs {
    /// Columns: `RowGroup[num_row_groups]`. Partials: u64 `[num_units]`, the address of each unit's weights.
    pub pieces: u64,
    /// f32 `[tokens][cols]`
    pub x: u64,
    pub int8: Int8Rows,
    /// Columns: f32 `[tokens][out_stride]`. Partials: i64 `[tokens][out_stride]`, added to.
    pub out: u64,
    /// u32 `[tokens]`
    pub poison: u64,
    pub num_row_groups: u32,
    pub num_units: u32,
    /// 32-column sub-blocks of each unit, and of the last.
    pub unit_sub_blocks: u32,
    pub last_sub_blocks: u32,
    pub cols: u32,
    pub tokens: u32,
    pub out_stride: u32,
    pub padding: u32,
}

/// bf16 weights times few tokens, added in whatever order is quick: of the fast mode. A warp per row: grid [ceil(rows / 8)],
/// 256 threads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct FastRowsArgs {
    /// bf16 `[rows][cols]`
    pub weights: u64,
    /// bf16 `[tokens][cols]`
    pub x: u64,
    /// f32 `[tokens][out_stride]`
    pub out: u64,
    pub rows: u32,
    pub cols: u32,
    pub tokens: u32,
    pub out_stride: u32,
    /// 1: `out` is added to.
    pub accumulate: u32,
    pub padding: u32,
}

/// Where cells lie. `dtype`: 0 f32, 1 f16, 2 q8_0.
///
/// A layer of a cell is K, then V; each is `[block_size][head_dim]`, for q8_0 followed by f16 scales
/// `[block_size][head_dim / 32]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct CellPlaces {
    /// u64 `[heads]`: the slab of each local KV head
    pub slabs: u64,
    pub cell_bytes: u64,
    /// Of this layer in a cell.
    pub layer_offset: u64,
    pub plane_bytes: u32,
    pub block_size: u32,
    pub head_dim: u32,
    pub dtype: u32,
}

/// Where a step's rows are: its sequences' block tables, and each row's place.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct RowPlaces {
    /// u32 `[sequences][table_stride]`
    pub tables: u64,
    /// u32 `[tokens]`: which table
    pub sequences: u64,
    /// u32 `[tokens]`
    pub positions: u64,
    pub table_stride: u32,
    pub padding: u32,
}

/// Biases, norms and rotation of q and k; K and V to the cells. A warp per head vector: grid [heads * (group + 2), tokens], 32
/// threads. Shared: head_dim floats.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct WriteCellsArgs {
    /// f32 `[tokens][heads][group + 2][head_dim]`: q, k, v of each local KV head; q is left normed and rotated
    pub columns: u64,
    /// f32 `[heads][group + 2][head_dim]`. Or 0.
    pub biases: u64,
    /// f32 `[head_dim]` each. Or 0.
    pub q_norm: u64,
    pub k_norm: u64,
    /// f32 `[tokens][rope_dim / 2][2]`: cosine, sine
    pub rotations: u64,
    /// u32 `[tokens]`
    pub poison: u64,
    pub cells: CellPlaces,
    pub rows: RowPlaces,
    pub group: u32,
    pub rope_dim: u32,
    pub eps: f32,
    pub heads: u32,
}

/// Cells out of, or into, the order of transfer: `kv::CellLayout`'s. Grid `[layers * 2, cells]`, 256 threads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct MoveCellsArgs {
    /// u32 `[cells]`: the block of each, in slab 0 of `cells.slabs`
    pub blocks: u64,
    /// `[cells][cell_bytes]`
    pub packed: u64,
    pub cells: CellPlaces,
}

/// A few rows of one sequence that attend together.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable, PartialEq, Eq)]
pub struct AttendItem {
    /// First row of the step.
    pub row: u32,
    /// Consecutive rows, of one sequence. rows * group is at most the kernel's number.
    pub rows: u32,
}

/// Attention of a chunk of 256 positions: grid [chunks, heads, items], 256 threads. Shared: see `worker/cuda/attention.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct AttendArgs {
    /// As `write_cells` left them.
    pub columns: u64,
    /// `AttendItem[items]`
    pub items: u64,
    /// f32 `[rows from first_row][heads][group][chunks][head_dim + 2]`: max, sum, output. Of chunks that a row has.
    pub chunks: u64,
    pub cells: CellPlaces,
    pub rows: RowPlaces,
    pub group: u32,
    pub heads: u32,
    pub num_chunks: u32,
    pub first_row: u32,
}

/// Chunks are merged in order: grid [heads * group, rows], head_dim threads, rounded up to whole warps.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct MergeChunksArgs {
    /// As `AttendArgs::chunks`.
    pub chunks: u64,
    /// f32 `[tokens][heads][group][head_dim]`
    pub out: u64,
    /// The same as bf16, of the fast mode. Or 0.
    pub halves: u64,
    /// u32 `[tokens]`
    pub positions: u64,
    pub head_dim: u32,
    pub num_heads: u32,
    pub num_chunks: u32,
    pub first_row: u32,
}

/// The gated activation. A warp per 32 columns: grid [ceil(cols / 256), tokens], 256 threads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct SiluGateArgs {
    /// f32 `[tokens][2][cols]`: gate, up
    pub columns: u64,
    /// f32 `[2][cols]`. Or 0.
    pub biases: u64,
    /// f32 `[tokens][cols]`
    pub inner: u64,
    /// bf16 `[tokens][cols]`, of the fast mode. Or 0.
    pub halves: u64,
    pub int8: Int8Rows,
    /// u32 `[tokens]`
    pub poison: u64,
    pub cols: u32,
    pub padding: u32,
}

/// What a vocab unit's logits come to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable, PartialEq)]
pub struct Summary {
    pub max: f32,
    pub argmax: u32,
    pub sum_exp: f32,
    pub finite: u32,
}

/// Grid `[units, rows]`, 256 threads. Shared: rows of the largest unit, in floats.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct VocabSummariesArgs {
    /// f32 `[rows][stride]`
    pub logits: u64,
    /// u32 `[units + 1]`: where each unit begins in a row
    pub units: u64,
    /// `Summary[rows][units]`
    pub summaries: u64,
    pub stride: u32,
    pub num_units: u32,
}

/// Memory is read and summed: any grid, 256 threads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct ReadWordsArgs {
    /// 16 bytes each: `[count]`
    pub words: u64,
    /// u32 `[blocks]`, added to: of the u32 that a block read
    pub sums: u64,
    pub count: u64,
}
