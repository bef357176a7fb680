// Activations become int8, per 32 columns of a token.

#include "kernel.h"

struct QuantizeArgs {
    const float *x;
    Int8Rows int8;
    uint32_t *poison;
    uint32_t cols;
    uint32_t padding;
};

KERNEL(quantize, QuantizeArgs, 256) {
    const uint32_t c = blockIdx.x * 256 + threadIdx.x;
    const uint32_t token = blockIdx.y;
    // Whole warps: cols is a multiple of 32.
    if (c >= args.cols) return;
    quantize_column(args.x[(uint64_t)token * args.cols + c], args.int8, args.poison, token, args.cols, c);
}
