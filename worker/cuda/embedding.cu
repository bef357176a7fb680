// Rows on their way in and out of the layers: embeddings as fixed-point sums, the rows that the head looks at, and poison on
// its way to other ranks.

#include "kernel.h"

struct EmbedRowsArgs {
    const float *rows;
    int64_t *sums;
    uint32_t *poison;
    uint32_t cols;
    uint32_t padding;
};

KERNEL(embed_rows, EmbedRowsArgs, 256) {
    const uint64_t begin = (uint64_t)blockIdx.x * args.cols;
    for (uint32_t c = threadIdx.x; c < args.cols; c += 256) {
        int64_t fixed;
        if (!to_fixed(args.rows[begin + c], fixed)) args.poison[blockIdx.x] = 1;
        args.sums[begin + c] = fixed;
    }
}

struct TakeRowsArgs {
    const float *x;
    const uint32_t *poison;
    const uint32_t *rows;
    float *taken;
    uint32_t *taken_poison;
    uint32_t cols;
    uint32_t padding;
};

KERNEL(take_rows, TakeRowsArgs, 256) {
    const uint32_t row = args.rows[blockIdx.x];
    const float *x = args.x + (uint64_t)row * args.cols;
    float *taken = args.taken + (uint64_t)blockIdx.x * args.cols;
    for (uint32_t c = threadIdx.x; c < args.cols; c += 256) taken[c] = x[c];
    if (threadIdx.x == 0) args.taken_poison[blockIdx.x] = args.poison[row];
}

struct SealSumsArgs {
    const uint32_t *poison;
    int64_t *tail;
    uint32_t tokens;
    uint32_t padding;
};

KERNEL(seal_sums, SealSumsArgs, 256) {
    const uint32_t token = blockIdx.x * 256 + threadIdx.x;
    if (token < args.tokens) args.tail[token] = args.poison[token] ? (int64_t)1 << 30 : 0;
}
