// Into cells, and between their order here and that of transfer.

#include "cells.h"

struct WriteCellsArgs {
    float *columns;
    const float *biases;
    const float *q_norm;
    const float *k_norm;
    const float *rotations;
    uint32_t *poison;
    CellPlaces cells;
    RowPlaces rows;
    uint32_t group;
    uint32_t rope_dim;
    float eps;
    uint32_t heads;
};

// In place. row: [dim], in shared memory; one warp.
__device__ __forceinline__ void normalize_row(float *row, const float *weight, uint32_t dim, float eps) {
    float squares = 0.0f;
    if (threadIdx.x < LANES)
        for (uint32_t c = threadIdx.x; c < dim; c += LANES) squares = fmaf(row[c], row[c], squares);
    const float mean = __shfl_sync(FULL_WARP, sum_lanes(squares), 0) / (float)dim;
    const float r = 1.0f / sqrtf(mean + eps);
    __syncthreads();
    for (uint32_t c = threadIdx.x; c < dim; c += WARP) row[c] = (row[c] * r) * weight[c];
    __syncthreads();
}

__device__ __forceinline__ void rotate_row(float *row, const float *rotations, uint32_t rope_dim) {
    for (uint32_t pair = threadIdx.x; pair < rope_dim / 2; pair += WARP) {
        const float x0 = row[2 * pair], x1 = row[2 * pair + 1];
        const float cosine = rotations[2 * pair], sine = rotations[2 * pair + 1];
        row[2 * pair] = fmaf(x0, cosine, -(x1 * sine));
        row[2 * pair + 1] = fmaf(x0, sine, x1 * cosine);
    }
    __syncthreads();
}

// 32 values of a q8_0 row, one in each lane. False if the scale is not finite.
__device__ __forceinline__ bool write_q8_0(float value, int8_t *quant, uint16_t *scale) {
    const bool finite = __all_sync(FULL_WARP, is_finite(value));
    float amax = finite ? fabsf(value) : 0.0f;
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
        const float other = __shfl_xor_sync(FULL_WARP, amax, lanes);
        amax = other > amax ? other : amax;
    }
    const uint16_t half = finite ? to_half(amax / 127.0f) : 0x7e00;
    const float rounded = from_half(half);
    const bool holds = is_finite(rounded);
    *quant = holds && rounded != 0.0f ? (int8_t)(int)rintf(value * (127.0f / amax)) : 0;
    if (threadIdx.x == 0) *scale = half;
    return holds;
}

// Rounds a row into a plane. False if what was written is not finite.
__device__ __forceinline__ bool write_row(const CellPlaces &cells, uint8_t *plane, uint32_t offset, const float *row) {
    const uint32_t dim = cells.head_dim;
    bool finite = true;
    for (uint32_t d = threadIdx.x; d < dim; d += WARP) {
        const uint64_t at = (uint64_t)offset * dim + d;
        if (cells.dtype == CELL_F32) {
            ((float *)plane)[at] = row[d];
            finite &= is_finite(row[d]);
        } else if (cells.dtype == CELL_F16) {
            const uint16_t half = to_half(row[d]);
            ((uint16_t *)plane)[at] = half;
            finite &= is_finite(from_half(half));
        } else {
            uint16_t *scale = cells.scales(plane) + (uint64_t)offset * (dim / SUB_BLOCK) + d / SUB_BLOCK;
            finite &= write_q8_0(row[d], (int8_t *)plane + at, scale);
        }
    }
    return finite;
}

KERNEL(write_cells, WriteCellsArgs, 32) {
    float *row = (float *)shared_bytes();
    const uint32_t token = blockIdx.y, dim = args.cells.head_dim;
    const uint32_t head = blockIdx.x / (args.group + 2), part = blockIdx.x % (args.group + 2);
    float *columns = args.columns + ((uint64_t)token * gridDim.x + blockIdx.x) * dim;
    for (uint32_t d = threadIdx.x; d < dim; d += WARP) {
        float x = columns[d];
        if (args.biases) x += args.biases[(uint64_t)blockIdx.x * dim + d];
        row[d] = x;
    }
    __syncthreads();
    const bool is_query = part < args.group, is_value = part == args.group + 1;
    if (!is_value) {
        const float *norm = is_query ? args.q_norm : args.k_norm;
        if (norm) normalize_row(row, norm, dim, args.eps);
        rotate_row(row, args.rotations + (uint64_t)token * args.rope_dim, args.rope_dim);
    }
    if (is_query) {
        for (uint32_t d = threadIdx.x; d < dim; d += WARP) columns[d] = row[d];
        return;
    }
    const uint32_t position = args.rows.positions[token];
    const uint32_t block = args.rows.table(token)[position / args.cells.block_size];
    uint8_t *plane = args.cells.plane(head, block, is_value);
    if (!write_row(args.cells, plane, position % args.cells.block_size, row)) args.poison[token] = 1;
}

struct MoveCellsArgs {
    const uint32_t *blocks;
    uint8_t *packed;
    CellPlaces cells;
};

// K lies [head_dim][block_size] in transfer, V as here.
template <class Element>
__device__ __forceinline__ void move_plane(Element *here, Element *packed, uint32_t positions, uint32_t width,
                                           bool transposed, bool gathers) {
    for (uint32_t i = threadIdx.x; i < positions * width; i += 256) {
        const uint32_t at = transposed ? i % width * positions + i / width : i;
        if (gathers) packed[at] = here[i];
        else here[i] = packed[at];
    }
}

__device__ __forceinline__ void move_cell(const MoveCellsArgs &args, bool gathers) {
    const CellPlaces &cells = args.cells;
    const uint64_t plane = (uint64_t)blockIdx.x * cells.plane_bytes;
    const bool is_key = blockIdx.x % 2 == 0;
    uint8_t *here = cells.slabs[0] + args.blocks[blockIdx.y] * cells.cell_bytes + plane;
    uint8_t *packed = args.packed + blockIdx.y * cells.cell_bytes + plane;
    const uint32_t positions = cells.block_size, dim = cells.head_dim;
    if (cells.dtype == CELL_F32) {
        move_plane((uint32_t *)here, (uint32_t *)packed, positions, dim, is_key, gathers);
    } else if (cells.dtype == CELL_F16) {
        move_plane((uint16_t *)here, (uint16_t *)packed, positions, dim, is_key, gathers);
    } else {
        move_plane(here, packed, positions, dim, is_key, gathers);
        move_plane(cells.scales(here), cells.scales(packed), positions, dim / SUB_BLOCK, is_key, gathers);
    }
}

KERNEL(gather_cells, MoveCellsArgs, 256) { move_cell(args, true); }

KERNEL(scatter_cells, MoveCellsArgs, 256) { move_cell(args, false); }
