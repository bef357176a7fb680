// The end of one phase and the begin of the next: sums into the residual, and its norm.

#include "kernel.h"

struct ResidualNormArgs {
    float *x;
    int64_t *sums;
    const float *reduced;
    const float *bias;
    const float *weight;
    float *normed;
    uint16_t *halves;
    Int8Rows int8;
    uint32_t *poison;
    uint32_t cols;
    float eps;
    uint32_t sealed;
    uint32_t padding;
};

__device__ __forceinline__ float take_sum(const ResidualNormArgs &args, uint64_t at) {
    if (args.reduced) return args.reduced[at];
    int64_t sum = args.sums[at];
    args.sums[at] = 0;
    return from_fixed(sum);
}

// Poison of all ranks, where a reduce has carried it here.
__device__ __forceinline__ void take_poison(const ResidualNormArgs &args, uint32_t token, uint32_t tokens) {
    uint64_t at = (uint64_t)tokens * args.cols + token;
    if (args.reduced) args.poison[token] = args.reduced[at] != 0.0f;
    else if (args.sums && args.sealed) {
        args.poison[token] = args.sums[at] != 0;
        args.sums[at] = 0;
    }
}

KERNEL(residual_norm, ResidualNormArgs, 256) {
    float *row = (float *)shared_bytes();
    float *inverse = row + args.cols;
    const uint32_t token = blockIdx.x;
    const uint64_t begin = (uint64_t)token * args.cols;
    const bool adds = args.sums || args.reduced;
    for (uint32_t c = threadIdx.x; c < args.cols; c += 256) {
        float x = args.x[begin + c];
        if (adds) x += take_sum(args, begin + c);
        if (args.bias) x += args.bias[c];
        if (adds || args.bias) args.x[begin + c] = x;
        row[c] = x;
    }
    if (threadIdx.x == 0) take_poison(args, token, gridDim.x);
    if (!args.weight) return;
    __syncthreads();
    if (threadIdx.x < WARP) {
        float squares = 0.0f;
        if (threadIdx.x < LANES) {
#pragma unroll 8
            for (uint32_t c = threadIdx.x; c < args.cols; c += LANES) squares = fmaf(row[c], row[c], squares);
        }
        float mean = sum_lanes(squares) / (float)args.cols;
        if (threadIdx.x == 0) *inverse = 1.0f / sqrtf(mean + args.eps);
    }
    __syncthreads();
    const float r = *inverse;
    for (uint32_t c = threadIdx.x; c < args.cols; c += 256) {
        float normed = (row[c] * r) * args.weight[c];
        args.normed[begin + c] = normed;
        if (args.halves) args.halves[begin + c] = to_bfloat(normed);
        if (args.int8.quants) quantize_column(normed, args.int8, args.poison, token, args.cols, c);
    }
}
