//! Which kernel multiplies how many tokens by which weights, and its launch.

use super::{
    device::{Gemm, GemmDtype, GpuDevice, GpuError, LaunchShape},
    kernel::{Arguments as _, FastRowsArgs, Kernel, MatmulArgs},
    packed_rows::PackedKind,
};

/// What becomes of the rows' dots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Product {
    /// They are the output.
    Columns,
    /// Each unit's is rounded to an integer and added.
    Partials,
}

/// Tokens that a kernel multiplies at once.
const TOKENS: [u32; 6] = [1, 2, 4, 8, 16, 64];
/// From here on kernels are bound by arithmetic, and work on tiles of four row groups.
const TILED: u32 = 16;
const TILE_ROWS: usize = 64;
const TILE_GROUPS: u32 = 4;
/// Blocks that keep a large GPU busy. Units are dealt over more blocks where there are fewer.
const BLOCKS_WANTED: u32 = 512;

impl Product {
    /// For at least so many tokens, if there is one.
    fn kernel(self, kind: PackedKind, tokens: u32) -> (Kernel, u32) {
        let place = TOKENS
            .iter()
            .position(|most| tokens <= *most)
            .unwrap_or(TOKENS.len() - 1);
        (self.kernels(kind)[place], TOKENS[place])
    }

    #[rustfmt::skip]
    fn kernels(self, kind: PackedKind) -> [Kernel; 6] {
        use Kernel::*;
        match (self, kind) {
            (Self::Columns, PackedKind::F32) => [ColumnsF32x1, ColumnsF32x2, ColumnsF32x4, ColumnsF32x8, ColumnsF32x16, ColumnsF32x64],
            (Self::Columns, PackedKind::F16) => [ColumnsF16x1, ColumnsF16x2, ColumnsF16x4, ColumnsF16x8, ColumnsF16x16, ColumnsF16x64],
            (Self::Columns, PackedKind::BF16) => [ColumnsBF16x1, ColumnsBF16x2, ColumnsBF16x4, ColumnsBF16x8, ColumnsBF16x16, ColumnsBF16x64],
            (Self::Columns, PackedKind::Int8) => [ColumnsInt8x1, ColumnsInt8x2, ColumnsInt8x4, ColumnsInt8x8, ColumnsInt8x16, ColumnsInt8x64],
            (Self::Columns, PackedKind::Int8Min) => [ColumnsInt8Minx1, ColumnsInt8Minx2, ColumnsInt8Minx4, ColumnsInt8Minx8, ColumnsInt8Minx16, ColumnsInt8Minx64],
            (Self::Columns, PackedKind::Int8Halves) => [ColumnsInt8Halvesx1, ColumnsInt8Halvesx2, ColumnsInt8Halvesx4, ColumnsInt8Halvesx8, ColumnsInt8Halvesx16, ColumnsInt8Halvesx64],
            (Self::Partials, PackedKind::F32) => [PartialsF32x1, PartialsF32x2, PartialsF32x4, PartialsF32x8, PartialsF32x16, PartialsF32x64],
            (Self::Partials, PackedKind::F16) => [PartialsF16x1, PartialsF16x2, PartialsF16x4, PartialsF16x8, PartialsF16x16, PartialsF16x64],
            (Self::Partials, PackedKind::BF16) => [PartialsBF16x1, PartialsBF16x2, PartialsBF16x4, PartialsBF16x8, PartialsBF16x16, PartialsBF16x64],
            (Self::Partials, PackedKind::Int8) => [PartialsInt8x1, PartialsInt8x2, PartialsInt8x4, PartialsInt8x8, PartialsInt8x16, PartialsInt8x64],
            (Self::Partials, PackedKind::Int8Min) => [PartialsInt8Minx1, PartialsInt8Minx2, PartialsInt8Minx4, PartialsInt8Minx8, PartialsInt8Minx16, PartialsInt8Minx64],
            (Self::Partials, PackedKind::Int8Halves) => [PartialsInt8Halvesx1, PartialsInt8Halvesx2, PartialsInt8Halvesx4, PartialsInt8Halvesx8, PartialsInt8Halvesx16, PartialsInt8Halvesx64],
        }
    }

    /// Multiplies all of `args.tokens`.
    pub fn launch<D: GpuDevice>(self, device: &mut D, kind: PackedKind, args: &MatmulArgs) -> Result<(), GpuError> {
        let deal = match self {
            Self::Columns => 1,
            Self::Partials => {
                let [x, y] = self.blocks(kind, args);
                BLOCKS_WANTED.div_ceil((x * y).max(1)).min(args.num_units)
            }
        };
        self.launch_dealt(device, kind, args, deal)
    }

    /// As [`Self::launch`], with the units dealt over `deal` blocks: that changes no sum.
    pub fn launch_dealt<D: GpuDevice>(
        self,
        device: &mut D,
        kind: PackedKind,
        args: &MatmulArgs,
        deal: u32,
    ) -> Result<(), GpuError> {
        if args.tokens == 0 || args.num_row_groups == 0 || (self == Self::Partials && args.num_units == 0) {
            return Ok(());
        }
        let (kernel, at_once) = self.kernel(kind, args.tokens);
        let [x, y] = self.blocks(kind, args);
        let shape = LaunchShape::new([x, y, deal], 256).shared(shared_bytes(kind, at_once as usize));
        args.launch(device, kernel, shape)
    }

    fn blocks(self, kind: PackedKind, args: &MatmulArgs) -> [u32; 2] {
        let (_, at_once) = self.kernel(kind, args.tokens);
        match at_once < TILED {
            true => [args.num_row_groups, 1],
            false => [args.num_row_groups.div_ceil(TILE_GROUPS), args.tokens.div_ceil(at_once)],
        }
    }
}

/// A product of the fast mode: few tokens are bound by reading the weights, which a kernel of our own does; the rest is the
/// matrix library's.
pub fn fast_product<D: GpuDevice>(device: &mut D, gemm: &Gemm) -> Result<(), GpuError> {
    let kernel = match gemm.tokens {
        0 => return Ok(()),
        1 => Kernel::FastRows1,
        2 => Kernel::FastRows2,
        3..=4 => Kernel::FastRows4,
        _ => return device.gemm(gemm),
    };
    if gemm.dtype != GemmDtype::BF16 {
        return device.gemm(gemm);
    }
    let args = FastRowsArgs {
        weights: gemm.weights,
        x: gemm.x,
        out: gemm.out,
        rows: gemm.rows,
        cols: gemm.cols,
        tokens: gemm.tokens,
        out_stride: gemm.out_stride,
        accumulate: u32::from(gemm.accumulate),
        padding: 0,
    };
    let shape = LaunchShape::new([gemm.rows.div_ceil(8), 1, 1], 256);
    args.launch(device, kernel, shape)
}

/// As `few.h` and `tiles.cu` lay it out.
fn shared_bytes(kind: PackedKind, tokens: usize) -> usize {
    if tokens < TILED as usize {
        let planes = match kind {
            PackedKind::F32 | PackedKind::F16 | PackedKind::BF16 => 1,
            PackedKind::Int8 => 2,
            PackedKind::Int8Min | PackedKind::Int8Halves => 4,
        };
        return 2 * 16 * planes * tokens * 16 * 4;
    }
    let words = if kind.wants_int8() { 8 } else { 32 };
    let weights = 2 * (words * (TILE_ROWS + 4) + 16);
    let x = 2 * words * (tokens + 4);
    4 * (weights + x + 4 * TILE_ROWS + 4 * tokens)
}
