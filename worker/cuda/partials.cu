// Row-parallel products of few tokens: each unit's partial sum is rounded to an integer and added.

#include "few.h"

#define PARTIALS(suffix, Weights)                                                                  \
    KERNEL(partials_##suffix##_1, MatmulArgs, 256) { multiply_few<Weights, 1, true>(args); } \
    KERNEL(partials_##suffix##_2, MatmulArgs, 256) { multiply_few<Weights, 2, true>(args); } \
    KERNEL(partials_##suffix##_4, MatmulArgs, 256) { multiply_few<Weights, 4, true>(args); } \
    KERNEL(partials_##suffix##_8, MatmulArgs, 256) { multiply_few<Weights, 8, true>(args); }

FOR_ALL_WEIGHTS(PARTIALS)
