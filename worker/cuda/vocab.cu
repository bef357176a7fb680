// What a vocab unit's logits come to: enough to merge the greedy choice and log-probabilities over units.

#include "kernel.h"

struct Summary {
    float max;
    uint32_t argmax;
    float sum_exp;
    uint32_t finite;
};

struct VocabSummariesArgs {
    const float *logits;
    const uint32_t *units;
    Summary *summaries;
    uint32_t stride;
    uint32_t num_units;
};

// The largest, with its index: ties go to the lower one. All lanes get it.
__device__ __forceinline__ void take_largest(float &max, int &index) {
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
        float other = __shfl_xor_sync(FULL_WARP, max, lanes);
        int other_index = __shfl_xor_sync(FULL_WARP, index, lanes);
        if (other > max || (other == max && other_index < index)) {
            max = other;
            index = other_index;
        }
    }
}

KERNEL(vocab_summaries, VocabSummariesArgs, 256) {
    float *terms = (float *)shared_bytes();
    const uint32_t begin = args.units[blockIdx.x];
    const int rows = (int)(args.units[blockIdx.x + 1] - begin);
    float *of_warps = terms + (rows + LANES - 1) / LANES * LANES;
    int *index_of_warps = (int *)(of_warps + 8);
    int *finite_of_warps = index_of_warps + 8;
    const float *logits = args.logits + (uint64_t)blockIdx.y * args.stride + begin;

    // NaN is never larger; where all are NaN or -infinity, the index says nothing.
    float max = from_bits(0xff800000u);
    int index = rows;
    bool finite = true;
    for (int i = threadIdx.x; i < rows; i += 256) {
        float logit = logits[i];
        finite &= is_finite(logit);
        if (logit > max) {
            max = logit;
            index = i;
        }
    }
    take_largest(max, index);
    finite = __all_sync(FULL_WARP, finite);
    if (threadIdx.x % WARP == 0) {
        of_warps[threadIdx.x / WARP] = max;
        index_of_warps[threadIdx.x / WARP] = index;
        finite_of_warps[threadIdx.x / WARP] = finite;
    }
    __syncthreads();
    for (int warp = 0; warp < 8; warp++) {
        float other = of_warps[warp];
        if (other > max || (other == max && index_of_warps[warp] < index)) {
            max = other;
            index = index_of_warps[warp];
        }
        finite &= finite_of_warps[warp] != 0;
    }
    for (int i = threadIdx.x; i < rows; i += 256) terms[i] = exponential(logits[i] - max);
    __syncthreads();
    if (threadIdx.x >= WARP) return;
    float sum = 0.0f;
    if (threadIdx.x < LANES) {
#pragma unroll 8
        for (int i = threadIdx.x; i < rows; i += LANES) sum += terms[i];
    }
    sum = sum_lanes(sum);
    if (threadIdx.x == 0) {
        Summary &summary = args.summaries[(uint64_t)blockIdx.y * args.num_units + blockIdx.x];
        summary.max = max;
        summary.argmax = index < rows ? index : 0;
        summary.sum_exp = sum;
        summary.finite = finite;
    }
}
