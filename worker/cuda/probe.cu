// Reads memory and does nothing else: what a kernel can get of the device's bandwidth, which other kernels are held against.

#include "kernel.h"

struct ReadWordsArgs {
    const Words *words;
    // One per block; of the words that its threads read.
    uint32_t *sums;
    uint64_t count;
};

constexpr int IN_FLIGHT = 8;

KERNEL(read_words, ReadWordsArgs, 256) {
    const uint64_t threads = (uint64_t)gridDim.x * 256;
    uint32_t sum = 0;
    uint64_t at = (uint64_t)blockIdx.x * 256 + threadIdx.x;
    for (; at + (IN_FLIGHT - 1) * threads < args.count; at += IN_FLIGHT * threads) {
        Words words[IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++) words[i] = load_once(args.words + at + i * threads);
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++) sum += words[i].word[0] + words[i].word[1] + words[i].word[2] + words[i].word[3];
    }
    for (; at < args.count; at += threads) {
        const Words words = load_once(args.words + at);
        sum += words.word[0] + words.word[1] + words.word[2] + words.word[3];
    }
    // Integers: the sum is the same whoever adds first.
    atomicAdd(args.sums + blockIdx.x, sum);
}
