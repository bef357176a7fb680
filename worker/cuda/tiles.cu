// Products of many tokens: 64 rows times 16 or 64 tokens a block, bound by arithmetic.
//
// Weights and activations of a pair go to shared memory, columns outside, so that a thread reads its four rows and its tokens
// side by side. A thread owns its rows and tokens from the first column to the last: each chain is its own, in order.

#include "few.h"

constexpr int TILE_ROWS = 64;
constexpr int THREAD_ROWS = 4;
constexpr int TILE_GROUPS = TILE_ROWS / LANES;
// Words between columns: a multiple of four, so that four rows are one load, and not of 32.
constexpr int ROW_STRIDE = TILE_ROWS + 4;

template <class Weights, int TOKENS>
struct Tile {
    // Words of a sub-block of a row: floats, or four int8 each.
    static constexpr int WORDS = Weights::INT8 ? SUB_BLOCK / 4 : SUB_BLOCK;
    // The second sub-block begins 16 banks after the first: two half warps write at once.
    static constexpr int HALF_STRIDE = WORDS * ROW_STRIDE + 16;
    static constexpr int X_STRIDE = TOKENS + 4;

    uint32_t weights[2 * HALF_STRIDE];
    uint32_t x[2 * WORDS * X_STRIDE];
    float scales[2][2][TILE_ROWS];
    float x_scales[2][2][TOKENS];
};

template <class Weights, int TOKENS, bool PARTIALS>
__device__ __forceinline__ void load_weights(Tile<Weights, TOKENS> &tile, const MatmulArgs &args, const Pairs &pairs,
                                             const PairPlace &place) {
    using T = Tile<Weights, TOKENS>;
    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const uint32_t group = warp / 2, row_group = blockIdx.x * TILE_GROUPS + group;
    // Groups beyond the last compute the last once more.
    const uint32_t from = row_group < args.num_row_groups ? row_group : args.num_row_groups - 1;
    const uint8_t *pair = pair_of<Weights, PARTIALS>(args, pairs, from, place);
    uint32_t *column = tile.weights + lane / LANES * T::HALF_STRIDE + group * LANES + lane % LANES;
    // Two warps share a row group.
#pragma unroll
    for (int j = warp % 2; j < Weights::LOADS; j += 2) {
        Words words = load_once(pair + j * 512 + lane * 16);
        if constexpr (Weights::INT8) {
            for (int i = 0; i < 4; i++) column[(j * 4 + i) * ROW_STRIDE] = words.word[i];
        } else {
            float values[Weights::IN_LOAD];
            Weights::Values::unpack(words, values);
            for (int i = 0; i < Weights::IN_LOAD; i++)
                column[(j * Weights::IN_LOAD + i) * ROW_STRIDE] = bits_of(values[i]);
        }
    }
    if constexpr (Weights::INT8) {
        const float *scales = (const float *)(pair + Weights::SCALES_AT);
        const uint32_t plane = warp % 2;
        if (plane == 0 || Weights::WITH != NOTHING)
            tile.scales[lane / LANES][plane][group * LANES + lane % LANES] = scales[plane * WARP + lane];
    }
}

template <class Weights, int TOKENS>
__device__ __forceinline__ void load_x(Tile<Weights, TOKENS> &tile, const MatmulArgs &args, uint32_t first_token,
                                       uint32_t sub_block, uint32_t num_sub_blocks) {
    using T = Tile<Weights, TOKENS>;
    // Four words of a token at a time.
    constexpr int FOURS = 2 * T::WORDS / 4;
    for (int i = threadIdx.x; i < FOURS * TOKENS; i += 256) {
        const uint32_t four = i % FOURS, at = i / FOURS;
        const uint32_t token = first_token + at < args.tokens ? first_token + at : args.tokens - 1;
        if (four * 4 >= num_sub_blocks * T::WORDS) continue;
        const uint64_t begin = (uint64_t)token * args.cols + sub_block * SUB_BLOCK;
        const Words words = Weights::INT8 ? ((const Words *)(args.int8.quants + begin))[four]
                                          : ((const Words *)(args.x + begin))[four];
        for (int k = 0; k < 4; k++) tile.x[(four * 4 + k) * T::X_STRIDE + at] = words.word[k];
    }
    if constexpr (Weights::INT8) {
        for (uint32_t i = threadIdx.x; i < num_sub_blocks * TOKENS; i += 256) {
            const uint32_t half = i / TOKENS, at = i % TOKENS;
            const uint32_t token = first_token + at < args.tokens ? first_token + at : args.tokens - 1;
            const uint64_t from = (uint64_t)token * (args.cols / SUB_BLOCK) + sub_block + half;
            tile.x_scales[half][0][at] = args.int8.scales[from];
            tile.x_scales[half][1][at] = args.int8.scaled_sums[from];
        }
    }
}

// Adds one sub-block to the thread's sums.
template <class Weights, int TOKENS, int N>
__device__ __forceinline__ void add_sub_block(const Tile<Weights, TOKENS> &tile, uint32_t half, uint32_t row, uint32_t token,
                                              float (&sums)[THREAD_ROWS][N]) {
    using T = Tile<Weights, TOKENS>;
    const uint32_t *weights = tile.weights + half * T::HALF_STRIDE + row;
    const uint32_t *x = tile.x + half * T::WORDS * T::X_STRIDE + token;
    if constexpr (Weights::INT8) {
        constexpr int DOTS = Weights::WITH == HALF ? 2 : 1;
        int dots[DOTS][THREAD_ROWS][N] = {};
#pragma unroll
        for (int k = 0; k < T::WORDS; k++) {
            const Words four = *(const Words *)(weights + k * ROW_STRIDE);
            for (int n = 0; n < N; n++)
                for (int r = 0; r < THREAD_ROWS; r++) {
                    int &dot = dots[k * DOTS / T::WORDS][r][n];
                    dot = __dp4a((int)four.word[r], (int)x[k * T::X_STRIDE + n], dot);
                }
        }
        for (int n = 0; n < N; n++)
            for (int r = 0; r < THREAD_ROWS; r++) {
                const float x_scale = tile.x_scales[half][0][token + n];
                float &sum = sums[r][n];
                sum = fmaf(tile.scales[half][0][row + r] * x_scale, (float)dots[0][r][n], sum);
                if constexpr (Weights::WITH == MINIMUM)
                    sum = fmaf(tile.scales[half][1][row + r], tile.x_scales[half][1][token + n], sum);
                if constexpr (Weights::WITH == HALF)
                    sum = fmaf(tile.scales[half][1][row + r] * x_scale, (float)dots[DOTS - 1][r][n], sum);
            }
    } else {
        float chains[THREAD_ROWS][N] = {};
#pragma unroll 8
        for (int k = 0; k < T::WORDS; k++) {
            const Words four = *(const Words *)(weights + k * ROW_STRIDE);
            for (int n = 0; n < N; n++) {
                const float value = from_bits(x[k * T::X_STRIDE + n]);
                for (int r = 0; r < THREAD_ROWS; r++) chains[r][n] = fmaf(from_bits(four.word[r]), value, chains[r][n]);
            }
        }
        for (int n = 0; n < N; n++)
            for (int r = 0; r < THREAD_ROWS; r++) sums[r][n] += chains[r][n];
    }
}

template <class Weights, int TOKENS, bool PARTIALS>
__device__ __forceinline__ void multiply_tile(const MatmulArgs &args) {
    constexpr int N = TOKENS / 16;
    Tile<Weights, TOKENS> &tile = *(Tile<Weights, TOKENS> *)shared_bytes();
    const uint32_t row = threadIdx.x % 16 * THREAD_ROWS, token = threadIdx.x / 16 * N;
    const uint32_t first_token = blockIdx.y * TOKENS;
    const Pairs pairs(args, PARTIALS);
    const uint32_t num_pairs = pairs.count();
    float sums[THREAD_ROWS][N] = {};
    int64_t totals[THREAD_ROWS][N] = {};
    bool in_bounds[N];
    for (int n = 0; n < N; n++) in_bounds[n] = true;

    PairPlace place(pairs, 0);
    for (uint32_t i = 0; i < num_pairs; i++) {
        const uint32_t width = pairs.width(place.unit);
        const uint32_t left = width - 2 * place.pair;
        __syncthreads();
        load_weights<Weights, TOKENS, PARTIALS>(tile, args, pairs, place);
        load_x<Weights, TOKENS>(tile, args, first_token, place.unit * pairs.unit_sub_blocks + 2 * place.pair,
                                left < 2 ? left : 2);
        __syncthreads();
        add_sub_block<Weights, TOKENS, N>(tile, 0, row, token, sums);
        if (left > 1) add_sub_block<Weights, TOKENS, N>(tile, 1, row, token, sums);
        if (PARTIALS && left <= 2) {
            for (int n = 0; n < N; n++)
                for (int r = 0; r < THREAD_ROWS; r++) {
                    int64_t fixed;
                    in_bounds[n] &= to_fixed(sums[r][n], fixed);
                    totals[r][n] += fixed;
                    sums[r][n] = 0.0f;
                }
        }
        place.next(pairs);
    }
    const uint32_t row_group = blockIdx.x * TILE_GROUPS + row / LANES;
    if (row_group >= args.num_row_groups) return;
    for (int n = 0; n < N; n++) {
        const uint32_t to = first_token + token + n;
        if (to >= args.tokens) return;
        for (int r = 0; r < THREAD_ROWS; r++) {
            Ending<PARTIALS> ending;
            ending.sum = sums[r][n];
            ending.total = totals[r][n];
            ending.in_bounds = in_bounds[n];
            if (PARTIALS) {
                ending.write(args, to, row_group * LANES + row % LANES + r);
            } else {
                const RowGroup group = ((const RowGroup *)args.pieces)[row_group];
                if (row % LANES + r < group.rows) ending.write(args, to, group.out_row + row % LANES + r);
            }
        }
    }
}

#define TILES(suffix, Weights)                                                                        \
    KERNEL(columns_##suffix##_16, MatmulArgs, 256) { multiply_tile<Weights, 16, false>(args); }  \
    KERNEL(columns_##suffix##_64, MatmulArgs, 256) { multiply_tile<Weights, 64, false>(args); }  \
    KERNEL(partials_##suffix##_16, MatmulArgs, 256) { multiply_tile<Weights, 16, true>(args); }  \
    KERNEL(partials_##suffix##_64, MatmulArgs, 256) { multiply_tile<Weights, 64, true>(args); }

FOR_ALL_WEIGHTS(TILES)
