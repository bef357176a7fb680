// Where K and V lie, and where a step's rows stand in their sequences.
//
// A slab holds the cells of one KV head, one run per block; of each layer K, then V, both [block_size][head_dim], so that a
// position is one run of bytes. A plane of q8_0 is i8 quants in that order, then f16 scales [block_size][head_dim / 32].
#pragma once

#include "kernel.h"

enum CellDtype { CELL_F32 = 0, CELL_F16 = 1, CELL_Q8_0 = 2 };

struct CellPlaces {
    uint8_t *const *slabs;
    uint64_t cell_bytes;
    uint64_t layer_offset;
    uint32_t plane_bytes;
    uint32_t block_size;
    uint32_t head_dim;
    uint32_t dtype;

    // K (0) or V (1) of a block.
    __device__ __forceinline__ uint8_t *plane(uint32_t head, uint32_t block, uint32_t which) const {
        return slabs[head] + block * cell_bytes + layer_offset + which * plane_bytes;
    }

    // The scales of a plane of q8_0.
    __device__ __forceinline__ uint16_t *scales(uint8_t *plane) const {
        return (uint16_t *)(plane + block_size * head_dim);
    }
};

struct RowPlaces {
    const uint32_t *tables;
    const uint32_t *sequences;
    const uint32_t *positions;
    uint32_t table_stride;
    uint32_t padding;

    // The block table of a row's sequence.
    __device__ __forceinline__ const uint32_t *table(uint32_t row) const {
        return tables + (uint64_t)sequences[row] * table_stride;
    }
};
