// The fast mode's products of few tokens: a warp reads a row of bf16 weights once for all of them. No order is kept.

#include "kernel.h"

struct FastRowsArgs {
    const uint16_t *weights;
    const uint16_t *x;
    float *out;
    uint32_t rows;
    uint32_t cols;
    uint32_t tokens;
    uint32_t out_stride;
    uint32_t accumulate;
    uint32_t padding;
};

constexpr int IN_LOAD = 8;

__device__ __forceinline__ float low(uint32_t word) { return from_bits(word << 16); }

__device__ __forceinline__ float high(uint32_t word) { return from_bits(word & 0xffff0000u); }

template <int N>
__device__ __forceinline__ void multiply_rows(const FastRowsArgs &args) {
    const uint32_t row = blockIdx.x * (256 / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= args.rows) return;
    const uint16_t *weights = args.weights + (uint64_t)row * args.cols;
    float sums[N] = {};
#pragma unroll 4
    for (uint32_t c = lane * IN_LOAD; c < args.cols; c += WARP * IN_LOAD) {
        const Words words = load_once(weights + c);
#pragma unroll
        for (int n = 0; n < N; n++) {
            const uint32_t token = n < (int)args.tokens ? n : args.tokens - 1;
            const Words x = *(const Words *)(args.x + (uint64_t)token * args.cols + c);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                sums[n] = fmaf(low(words.word[i]), low(x.word[i]), sums[n]);
                sums[n] = fmaf(high(words.word[i]), high(x.word[i]), sums[n]);
            }
        }
    }
#pragma unroll
    for (int n = 0; n < N; n++) {
        for (int lanes = WARP / 2; lanes > 0; lanes /= 2) sums[n] += __shfl_xor_sync(FULL_WARP, sums[n], lanes);
        if (lane != 0 || n >= (int)args.tokens) continue;
        float *out = args.out + (uint64_t)n * args.out_stride + row;
        *out = args.accumulate ? *out + sums[n] : sums[n];
    }
}

KERNEL(fast_rows_1, FastRowsArgs, 256) { multiply_rows<1>(args); }
KERNEL(fast_rows_2, FastRowsArgs, 256) { multiply_rows<2>(args); }
KERNEL(fast_rows_4, FastRowsArgs, 256) { multiply_rows<4>(args); }
