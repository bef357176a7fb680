// Column-parallel products of few tokens: rows of matrices, each with its place in the output.

#include "few.h"

#define COLUMNS(suffix, Weights)                                                                  \
    KERNEL(columns_##suffix##_1, MatmulArgs, 256) { multiply_few<Weights, 1, false>(args); } \
    KERNEL_OF_TWO(columns_##suffix##_2, MatmulArgs, 256) { multiply_few<Weights, 2, false>(args); } \
    KERNEL(columns_##suffix##_4, MatmulArgs, 256) { multiply_few<Weights, 4, false>(args); } \
    KERNEL(columns_##suffix##_8, MatmulArgs, 256) { multiply_few<Weights, 8, false>(args); }

FOR_ALL_WEIGHTS(COLUMNS)
