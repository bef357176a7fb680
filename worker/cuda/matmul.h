// Matrix products: how weights lie packed, and what one sub-block of a row times a token comes to.
//
// The definition adds 32-column sub-blocks in order, each a chain of its own (floats) or exact integer dots (int8). So what
// sub-blocks come to is computed anywhere, at any time; only the addition of what they came to has an order, and it is
// short. Kernels differ in who computes (`few.h`, `tiles.cu`), never in bits.
//
// A row group is 16 rows, a pair two sub-blocks; where a row has an odd number, zeros fill the last pair and are never
// added. A pair of a row group is one record: lane l of a warp owns row l % 16 of sub-block l / 16, and load j of its 16
// bytes lies at [j][lane], so a warp reads 512 bytes in a row. Then, for int8, f32 scales [lane] and, where a type has
// them, minima or scales of the second half [lane].
#pragma once

#include "kernel.h"

struct RowGroup {
    const uint8_t *weights;
    uint32_t out_row;
    uint32_t rows;
};

struct MatmulArgs {
    const void *pieces;
    const float *x;
    Int8Rows int8;
    void *out;
    uint32_t *poison;
    uint32_t num_row_groups;
    uint32_t num_units;
    uint32_t unit_sub_blocks;
    uint32_t last_sub_blocks;
    uint32_t cols;
    uint32_t tokens;
    uint32_t out_stride;
    uint32_t padding;
};

struct F32 {
    static constexpr int BYTES = 4;
    static __device__ __forceinline__ void unpack(const Words &words, float (&values)[4]) {
        for (int i = 0; i < 4; i++) values[i] = from_bits(words.word[i]);
    }
};

struct F16 {
    static constexpr int BYTES = 2;
    static __device__ __forceinline__ void unpack(const Words &words, float (&values)[8]) {
        for (int i = 0; i < 8; i++) values[i] = from_half((uint16_t)(words.word[i / 2] >> (i % 2 * 16)));
    }
};

struct BF16 {
    static constexpr int BYTES = 2;
    static __device__ __forceinline__ void unpack(const Words &words, float (&values)[8]) {
        for (int i = 0; i < 8; i++) values[i] = from_bfloat((uint16_t)(words.word[i / 2] >> (i % 2 * 16)));
    }
};

// What a lane holds of a pair, in registers.
template <class Element>
struct FloatWeights {
    static constexpr bool INT8 = false;
    // Floats that a sub-block of a row and token comes to.
    static constexpr int PLANES = 1;
    static constexpr int IN_LOAD = 16 / Element::BYTES;
    static constexpr int LOADS = SUB_BLOCK / IN_LOAD;
    static constexpr int PAIR_BYTES = LOADS * 512;
    using Values = Element;

    Words words[LOADS];

    __device__ __forceinline__ void load(const uint8_t *pair, uint32_t lane) {
#pragma unroll
        for (int j = 0; j < LOADS; j++) words[j] = load_once(pair + j * 512 + lane * 16);
    }

    // planes: [N][PLANES]
    template <int N>
    __device__ __forceinline__ void multiply(const MatmulArgs &args, const uint32_t (&tokens)[N], uint32_t sub_block,
                                             float (&planes)[N][PLANES]) const {
#pragma unroll
        for (int n = 0; n < N; n++) planes[n][0] = 0.0f;
        const float *x = args.x + sub_block * SUB_BLOCK;
#pragma unroll
        for (int j = 0; j < LOADS; j++) {
            float weights[IN_LOAD];
            Element::unpack(words[j], weights);
#pragma unroll
            for (int n = 0; n < N; n++) {
                const Floats *of_token = (const Floats *)(x + (uint64_t)tokens[n] * args.cols + j * IN_LOAD);
#pragma unroll
                for (int i = 0; i < IN_LOAD; i += 4) {
                    Floats four = of_token[i / 4];
                    for (int k = 0; k < 4; k++) planes[n][0] = fmaf(weights[i + k], four.value[k], planes[n][0]);
                }
            }
        }
    }

    static __device__ __forceinline__ float add(float sum, const float (&planes)[PLANES]) { return sum + planes[0]; }
};

// What a type has besides one scale.
enum Second { NOTHING, MINIMUM, HALF };

template <Second SECOND>
struct Int8Weights {
    static constexpr bool INT8 = true;
    static constexpr Second WITH = SECOND;
    static constexpr int PLANES = SECOND == NOTHING ? 2 : 4;
    static constexpr int LOADS = 2;
    static constexpr int SCALES_AT = LOADS * 512;
    static constexpr int PAIR_BYTES = SCALES_AT + (SECOND == NOTHING ? 1 : 2) * WARP * 4;

    Words words[LOADS];
    float scale;
    float second;

    __device__ __forceinline__ void load(const uint8_t *pair, uint32_t lane) {
#pragma unroll
        for (int j = 0; j < LOADS; j++) words[j] = load_once(pair + j * 512 + lane * 16);
        const float *scales = (const float *)(pair + SCALES_AT);
        scale = scales[lane];
        if (SECOND != NOTHING) second = scales[WARP + lane];
    }

    template <int N>
    __device__ __forceinline__ void multiply(const MatmulArgs &args, const uint32_t (&tokens)[N], uint32_t sub_block,
                                             float (&planes)[N][PLANES]) const {
#pragma unroll
        for (int n = 0; n < N; n++) {
            const Words *x = (const Words *)(args.int8.quants + (uint64_t)tokens[n] * args.cols + sub_block * SUB_BLOCK);
            int dots[2] = {0, 0};
#pragma unroll
            for (int j = 0; j < LOADS; j++) {
                Words quants = x[j];
                for (int i = 0; i < 4; i++)
                    dots[SECOND == HALF ? j : 0] =
                        __dp4a((int)words[j].word[i], (int)quants.word[i], dots[SECOND == HALF ? j : 0]);
            }
            const uint64_t at = (uint64_t)tokens[n] * (args.cols / SUB_BLOCK) + sub_block;
            const float x_scale = args.int8.scales[at];
            planes[n][0] = scale * x_scale;
            planes[n][1] = (float)dots[0];
            if (SECOND == MINIMUM) {
                planes[n][PLANES - 2] = second;
                planes[n][PLANES - 1] = args.int8.scaled_sums[at];
            }
            if (SECOND == HALF) {
                planes[n][PLANES - 2] = second * x_scale;
                planes[n][PLANES - 1] = (float)dots[1];
            }
        }
    }

    static __device__ __forceinline__ float add(float sum, const float (&planes)[PLANES]) {
        sum = fmaf(planes[0], planes[1], sum);
        return SECOND == NOTHING ? sum : fmaf(planes[PLANES - 2], planes[PLANES - 1], sum);
    }
};

using WeightsF32 = FloatWeights<F32>;
using WeightsF16 = FloatWeights<F16>;
using WeightsBF16 = FloatWeights<BF16>;
using WeightsInt8 = Int8Weights<NOTHING>;
using WeightsInt8Min = Int8Weights<MINIMUM>;
using WeightsInt8Halves = Int8Weights<HALF>;

// The pairs that a block works off: of one matrix, or of some units one after the other.
struct Pairs {
    uint32_t first_unit, end_unit;
    uint32_t unit_sub_blocks, last_unit, last_sub_blocks;

    // partials: the units are dealt over grid.z.
    __device__ __forceinline__ Pairs(const MatmulArgs &args, bool partials) {
        first_unit = partials ? args.num_units * blockIdx.z / gridDim.z : 0;
        end_unit = partials ? args.num_units * (blockIdx.z + 1) / gridDim.z : 1;
        unit_sub_blocks = args.unit_sub_blocks;
        last_unit = partials ? args.num_units - 1 : 0;
        last_sub_blocks = partials ? args.last_sub_blocks : args.unit_sub_blocks;
    }

    __device__ __forceinline__ uint32_t width(uint32_t unit) const {
        return unit == last_unit ? last_sub_blocks : unit_sub_blocks;
    }

    __device__ __forceinline__ uint32_t pairs_of(uint32_t unit) const { return (width(unit) + 1) / 2; }

    __device__ __forceinline__ uint32_t count() const {
        if (first_unit == end_unit) return 0;
        return (end_unit - first_unit - 1) * ((unit_sub_blocks + 1) / 2) + pairs_of(end_unit - 1);
    }
};

// One of them.
struct PairPlace {
    uint32_t unit, pair;

    __device__ __forceinline__ PairPlace(const Pairs &pairs, uint32_t index) {
        const uint32_t in_unit = (pairs.unit_sub_blocks + 1) / 2;
        unit = pairs.first_unit + index / in_unit;
        pair = index % in_unit;
    }

    __device__ __forceinline__ void next(const Pairs &pairs) {
        if (++pair == pairs.pairs_of(unit)) {
            pair = 0;
            unit++;
        }
    }
};

// Where the weights of a row group's pair lie.
template <class Weights, bool PARTIALS>
__device__ __forceinline__ const uint8_t *pair_of(const MatmulArgs &args, const Pairs &pairs, uint32_t row_group,
                                                  const PairPlace &place) {
    if (!PARTIALS) return ((const RowGroup *)args.pieces)[row_group].weights + (uint64_t)place.pair * Weights::PAIR_BYTES;
    const uint8_t *unit = ((const uint8_t *const *)args.pieces)[place.unit];
    return unit + ((uint64_t)row_group * pairs.pairs_of(place.unit) + place.pair) * Weights::PAIR_BYTES;
}

// Defines a kernel for each kind of weights: DEFINE(suffix, type).
#define FOR_ALL_WEIGHTS(DEFINE)            \
    DEFINE(f32, WeightsF32)                \
    DEFINE(f16, WeightsF16)                \
    DEFINE(bf16, WeightsBF16)              \
    DEFINE(int8, WeightsInt8)              \
    DEFINE(int8_min, WeightsInt8Min)       \
    DEFINE(int8_halves, WeightsInt8Halves)
