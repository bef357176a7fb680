// A matrix times 1 to 8 tokens: bound by reading the weights.
//
// A block of 8 warps owns 16 rows. A tile is 8 pairs, one per warp; what its sub-blocks come to goes through shared memory to
// 16 * N threads, one per row and token, which add in order while the warps work on the next tile. The next tile's weights
// are asked for before this one's are used.
#pragma once

#include "matmul.h"

constexpr int TILE_PAIRS = 8;
constexpr int TILE_SLOTS = 2 * TILE_PAIRS;

// The end of a row's and token's chain: a float, or a unit's partial as an integer.
template <bool PARTIALS>
struct Ending {
    float sum = 0.0f;
    int64_t total = 0;
    bool in_bounds = true;

    __device__ __forceinline__ void end_unit() {
        if (!PARTIALS) return;
        int64_t fixed;
        in_bounds &= to_fixed(sum, fixed);
        total += fixed;
        sum = 0.0f;
    }

    __device__ __forceinline__ void write(const MatmulArgs &args, uint32_t token, uint32_t row) const {
        const uint64_t at = (uint64_t)token * args.out_stride + row;
        if (PARTIALS) {
            // Integers: whoever adds first, the sum is the same.
            atomicAdd((unsigned long long *)args.out + at, (unsigned long long)total);
            if (!in_bounds) args.poison[token] = 1;
        } else {
            ((float *)args.out)[at] = sum;
        }
    }
};

template <class Weights, int N, bool PARTIALS>
__device__ __forceinline__ void multiply_few(const MatmulArgs &args) {
    constexpr int TILE_FLOATS = TILE_SLOTS * Weights::PLANES * N * LANES;
    float *tiles = (float *)shared_bytes();
    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const uint32_t half = lane / LANES, row = lane % LANES;
    const Pairs pairs(args, PARTIALS);
    const uint32_t num_pairs = pairs.count();
    uint32_t tokens[N];
    for (int n = 0; n < N; n++) tokens[n] = n < (int)args.tokens ? n : args.tokens - 1;

    Ending<PARTIALS> ending;
    PairPlace added(pairs, 0);
    Weights weights;
    PairPlace place(pairs, warp);
    if (warp < num_pairs) weights.load(pair_of<Weights, PARTIALS>(args, pairs, blockIdx.x, place), lane);
    for (uint32_t first = 0; first < num_pairs; first += TILE_PAIRS) {
        float *tile = tiles + first / TILE_PAIRS % 2 * TILE_FLOATS;
        if (first + warp < num_pairs) {
            Weights now = weights;
            const PairPlace here = place;
            const uint32_t next = first + TILE_PAIRS + warp;
            if (next < num_pairs) {
                place = PairPlace(pairs, next);
                weights.load(pair_of<Weights, PARTIALS>(args, pairs, blockIdx.x, place), lane);
            }
            // The second half of an odd unit's last pair is nobody's: it computes the first once more.
            uint32_t sub_block = 2 * here.pair + half;
            if (sub_block >= pairs.width(here.unit)) sub_block--;
            float planes[N][Weights::PLANES];
            now.template multiply<N>(args, tokens, here.unit * pairs.unit_sub_blocks + sub_block, planes);
            for (int n = 0; n < N; n++)
                for (int p = 0; p < Weights::PLANES; p++)
                    tile[(((2 * warp + half) * N + n) * Weights::PLANES + p) * LANES + row] = planes[n][p];
        }
        __syncthreads();
        if (threadIdx.x < LANES * N) {
            const uint32_t end = num_pairs - first < TILE_PAIRS ? num_pairs - first : TILE_PAIRS;
            const uint32_t token = threadIdx.x / LANES;
            for (uint32_t i = 0; i < end; i++) {
                const uint32_t width = pairs.width(added.unit);
                for (uint32_t h = 0; h < 2; h++) {
                    const uint32_t sub_block = 2 * added.pair + h;
                    if (sub_block >= width) continue;
                    float planes[Weights::PLANES];
                    for (int p = 0; p < Weights::PLANES; p++)
                        planes[p] = tile[(((2 * i + h) * N + token) * Weights::PLANES + p) * LANES + row];
                    ending.sum = Weights::add(ending.sum, planes);
                    if (sub_block + 1 == width) ending.end_unit();
                }
                added.next(pairs);
            }
        }
    }
    const uint32_t token = threadIdx.x / LANES;
    if (token >= args.tokens || token >= N) return;
    if (PARTIALS) {
        ending.write(args, token, blockIdx.x * LANES + row);
    } else {
        const RowGroup group = ((const RowGroup *)args.pieces)[blockIdx.x];
        if (row < group.rows) ending.write(args, token, group.out_row + row);
    }
}
