// The gated activation of the FFN: silu(gate) * up, in int8 too where the next product wants that.

#include "kernel.h"

struct SiluGateArgs {
    const float *columns;
    const float *biases;
    float *inner;
    uint16_t *halves;
    Int8Rows int8;
    uint32_t *poison;
    uint32_t cols;
    uint32_t padding;
};

KERNEL(silu_gate, SiluGateArgs, 256) {
    const uint32_t c = blockIdx.x * 256 + threadIdx.x;
    const uint32_t token = blockIdx.y;
    // Whole warps: cols is a multiple of 32.
    if (c >= args.cols) return;
    const float *row = args.columns + (uint64_t)token * 2 * args.cols;
    float gate = row[c];
    float up = row[args.cols + c];
    if (args.biases) {
        gate += args.biases[c];
        up += args.biases[args.cols + c];
    }
    const float inner = (gate / (1.0f + exponential(-gate))) * up;
    args.inner[(uint64_t)token * args.cols + c] = inner;
    if (args.halves) args.halves[(uint64_t)token * args.cols + c] = to_bfloat(inner);
    if (args.int8.quants) quantize_column(inner, args.int8, args.poison, token, args.cols, c);
}
