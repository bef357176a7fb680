// What all kernels share: types, the scalar functions of the canonical arithmetic, and the few words that differ between
// a GPU and the host.
//
// The arithmetic is that of arith/reference.rs, bit for bit. So: built without contraction (-fmad=false, -ffp-contract=off)
// and without fast math; fmaf where the definition says mul_add; divisions and roots are IEEE's.
#pragma once

#ifdef KVASIR_ON_HOST
#include "on_host.h"
#define KERNEL_OF_TWO KERNEL
#else
#include <stdint.h>

#define KERNEL(name, Args, threads) \
    extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Args args)
// Takes as many registers as leave room for two blocks: the compiler's own guess is fewer, and spills.
#define KERNEL_OF_TWO(name, Args, threads) \
    extern "C" __global__ void __launch_bounds__(threads, 2) name(const __grid_constant__ Args args)
#endif

#define FULL_WARP 0xffffffffu

constexpr int WARP = 32;
constexpr int SUB_BLOCK = 32;
constexpr int LANES = 16;
constexpr int ATTENTION_CHUNK = 256;

struct alignas(16) Words {
    uint32_t word[4];
};

struct alignas(16) Floats {
    float value[4];
};

struct Int8Rows {
    int8_t *quants;
    float *scales;
    float *scaled_sums;
};

// A block's shared memory, all of it.
__device__ __forceinline__ unsigned char *shared_bytes() {
#ifdef KVASIR_ON_HOST
    return on_host::here.shared;
#else
    extern __shared__ __align__(16) unsigned char bytes[];
    return bytes;
#endif
}

// 16 bytes that are read once: they leave the first cache to what is read again.
__device__ __forceinline__ Words load_once(const void *pointer) {
    Words words;
#ifdef KVASIR_ON_HOST
    memcpy(&words, pointer, sizeof words);
#else
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words.word[0]), "=r"(words.word[1]), "=r"(words.word[2]), "=r"(words.word[3])
                 : "l"(pointer));
#endif
    return words;
}

__device__ __forceinline__ uint32_t bits_of(float value) {
#ifdef KVASIR_ON_HOST
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
#else
    return __float_as_uint(value);
#endif
}

__device__ __forceinline__ float from_bits(uint32_t bits) {
#ifdef KVASIR_ON_HOST
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
#else
    return __uint_as_float(bits);
#endif
}

__device__ __forceinline__ float from_half(uint16_t bits) {
#ifdef KVASIR_ON_HOST
    _Float16 half;
    memcpy(&half, &bits, sizeof half);
    return (float)half;
#else
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#endif
}

__device__ __forceinline__ uint16_t to_half(float value) {
    uint16_t bits;
#ifdef KVASIR_ON_HOST
    _Float16 half = (_Float16)value;
    memcpy(&bits, &half, sizeof bits);
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#endif
    return bits;
}

__device__ __forceinline__ float from_bfloat(uint16_t bits) { return from_bits((uint32_t)bits << 16); }

// Ties to even; what is not a number stays none.
__device__ __forceinline__ uint16_t to_bfloat(float value) {
    const uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

__device__ __forceinline__ bool is_finite(float value) { return (bits_of(value) & 0x7f800000u) != 0x7f800000u; }

// A value as a count of 2^-30, ties to even. False unless it is finite and below 2^20: then it counts 0.
__device__ __forceinline__ bool to_fixed(float value, int64_t &fixed) {
    fixed = 0;
    if (!(fabsf(value) < (float)(1 << 20))) return false;
    double scaled = (double)value * (double)(1 << 30);
#ifdef KVASIR_ON_HOST
    fixed = llrint(scaled);
#else
    fixed = __double2ll_rn(scaled);
#endif
    return true;
}

__device__ __forceinline__ float from_fixed(int64_t sum) { return (float)((double)sum * (1.0 / (double)(1 << 30))); }

// e^x: the definition's polynomial.
__device__ __forceinline__ float exponential(float x) {
    if (x > 88.0f) return from_bits(0x7f800000u);
    if (x < -87.0f) return 0.0f;
    if (x != x) return x;
    float n = rintf(x * 1.44269504f);
    float r = fmaf(n, -0.69314575f, x);
    r = fmaf(n, -1.4286068e-6f, r);
    float p = 0.001381454f;
    p = fmaf(p, r, 0.008368745f);
    p = fmaf(p, r, 0.04166839f);
    p = fmaf(p, r, 0.16666521f);
    p = fmaf(p, r, 0.49999994f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    return p * from_bits((uint32_t)((int32_t)n + 127) << 23);
}

// The fixed tree over 16 lanes; all lanes of the warp call, each half for itself.
__device__ __forceinline__ float sum_lanes(float value) {
    for (int lanes = LANES / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(FULL_WARP, value, lanes);
    return value;
}

// 32 columns of a token become int8, one column in each lane of the warp. cols, column: of the whole row. A column that is
// not finite poisons the token, and the 32 count as zeros.
__device__ __forceinline__ void quantize_column(float value, const Int8Rows &rows, uint32_t *poison, uint32_t token,
                                                uint32_t cols, uint32_t column) {
    bool finite = __all_sync(FULL_WARP, is_finite(value));
    float amax = finite ? fabsf(value) : 0.0f;
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
        float other = __shfl_xor_sync(FULL_WARP, amax, lanes);
        amax = other > amax ? other : amax;
    }
    int quant = 0;
    float scale = 0.0f;
    if (amax >= from_bits((127 - 100) << 23)) {
        quant = (int)rintf(value * (127.0f / amax));
        scale = amax / 127.0f;
    }
    int sum = quant;
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(FULL_WARP, sum, lanes);
    rows.quants[(uint64_t)token * cols + column] = (int8_t)quant;
    if (column % SUB_BLOCK == 0) {
        uint64_t at = (uint64_t)token * (cols / SUB_BLOCK) + column / SUB_BLOCK;
        rows.scales[at] = scale;
        rows.scaled_sums[at] = scale * (float)sum;
        if (!finite) poison[token] = 1;
    }
}
