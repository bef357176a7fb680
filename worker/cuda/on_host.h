// CUDA's words for a C++ compiler: a kernel's source as it is, run on the host.
//
// A grid runs block by block, a block's threads as fibers of the one calling thread, which change only where threads wait
// for each other: at barriers and in exchanges between the lanes of a warp. A barrier that not all threads reach is an
// error, not a hang. Memory has one order, so races that only a GPU shows are not found here.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace on_host {

struct Index {
    unsigned x, y, z;
};

// Where the running thread is.
struct Place {
    Index thread, block, block_count;
    unsigned char *shared;
};

extern thread_local Place here;

void wait_for_block();

// What all lanes of the warp bring: [lane][MATRIX_WORDS]. Stands until the second call after this one.
constexpr unsigned MATRIX_WORDS = 6;
const uint32_t *exchange_matrices(const uint32_t (&words)[MATRIX_WORDS]);

// Every lane brings a value and takes that of another lane.
uint32_t exchange(uint32_t value, unsigned lane);

}  // namespace on_host

#define threadIdx (on_host::here.thread)
#define blockIdx (on_host::here.block)
#define gridDim (on_host::here.block_count)

#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict

#define __syncthreads() on_host::wait_for_block()
#define __syncwarp() on_host::exchange(0, 0)

static inline float __shfl_sync(unsigned, float value, int lane) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits = on_host::exchange(bits, lane);
    memcpy(&value, &bits, 4);
    return value;
}

static inline float __shfl_xor_sync(unsigned mask, float value, int lanes) {
    return __shfl_sync(mask, value, (threadIdx.x & 31) ^ lanes);
}

static inline int __shfl_xor_sync(unsigned, int value, int lanes) {
    return (int)on_host::exchange((uint32_t)value, (threadIdx.x & 31) ^ lanes);
}

static inline int __all_sync(unsigned mask, int holds) {
    int all = holds != 0;
    for (int lanes = 16; lanes > 0; lanes /= 2) all &= __shfl_xor_sync(mask, all, lanes);
    return all;
}

static inline void atomicAdd(unsigned long long *sum, unsigned long long value) { *sum += value; }
static inline void atomicAdd(uint32_t *sum, uint32_t value) { *sum += value; }

// Dot of four signed bytes.
static inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 4; i++) sum += (int8_t)(a >> (8 * i)) * (int8_t)(b >> (8 * i));
    return sum;
}

// The body is a function of its own; Rust calls the one with C's name. Without arguments that one says how many bytes they are.
#define KERNEL(name, Args, threads)                          \
    static void name##_body(const Args &args);               \
    extern "C" uint32_t on_host_##name(const void *args) {   \
        if (!args) return sizeof(Args);                      \
        name##_body(*(const Args *)args);                    \
        return 0;                                            \
    }                                                        \
    static void name##_body(const Args &args)
