// Paged attention: absolute chunks of 256 positions, each finished alone, then merged in order.
//
// A block takes one chunk of one KV head for all that read it together: the query heads that share it, of one row (decode) or
// of a few consecutive rows of a sequence (prefill). These pairs of row and query head are the *readers*. Each K and V leaves
// device memory once for all readers of a block; from shared memory it is read by the thread of its position (scores) or of its
// dimension (outputs), so that every chain of additions is one thread's, in order.

#include "attend_args.h"

// Dimensions of K in shared memory at a time, and floats between positions: four threads' loads of 16 bytes meet no bank twice.
constexpr int SLICE = 32;
constexpr int SLICE_STRIDE = SLICE + 4;
constexpr int STAGE_FLOATS = ATTENTION_CHUNK * SLICE_STRIDE;

// Values in 16 bytes of a plane.
template <int DTYPE>
constexpr int IN_LOAD = DTYPE == CELL_F32 ? 4 : DTYPE == CELL_F16 ? 8 : 16;

template <int DTYPE>
__device__ __forceinline__ void unpack(const CellPlaces &cells, const uint8_t *plane, const Words &words, uint64_t position,
                                       uint32_t d, float *out) {
    Floats *fours = (Floats *)out;
    const float scale =
        DTYPE == CELL_Q8_0
            ? from_half(cells.scales((uint8_t *)plane)[position * (cells.head_dim / SUB_BLOCK) + d / SUB_BLOCK])
            : 0.0f;
#pragma unroll
    for (int i = 0; i < IN_LOAD<DTYPE>; i += 4) {
        Floats four;
        for (int k = 0; k < 4; k++) {
            if (DTYPE == CELL_F32) four.value[k] = from_bits(words.word[k]);
            if (DTYPE == CELL_F16) four.value[k] = from_half((uint16_t)(words.word[(i + k) / 2 % 4] >> ((i + k) % 2 * 16)));
            if (DTYPE == CELL_Q8_0) four.value[k] = (float)(int8_t)(words.word[i / 4] >> (8 * k)) * scale;
        }
        fours[i / 4] = four;
    }
}

// Dimensions [first, first + width) of positions [begin, end) of K (0) or V (1), as floats: [position][stride].
template <int DTYPE>
__device__ __forceinline__ void stage_of(const CellPlaces &cells, const uint32_t *table, uint32_t head, uint32_t which,
                                         uint32_t begin, uint32_t end, uint32_t first, uint32_t width, uint32_t stride,
                                         float *stage) {
    constexpr int VALUES = IN_LOAD<DTYPE>;
    constexpr int BYTES = 16 / VALUES;
    const uint32_t loads = width / VALUES;
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < (end - begin) * loads; i += 256) {
        const uint32_t position = begin + i / loads, d = first + i % loads * VALUES;
        const uint64_t offset = position % cells.block_size;
        const uint8_t *plane = cells.plane(head, table[position / cells.block_size], which);
        const Words words = load_once(plane + (offset * cells.head_dim + d) * BYTES);
        unpack<DTYPE>(cells, plane, words, offset, d, stage + (position - begin) * stride + (d - first));
    }
}

__device__ __forceinline__ void stage(const CellPlaces &cells, const uint32_t *table, uint32_t head, uint32_t which,
                                      uint32_t begin, uint32_t end, uint32_t first, uint32_t width, uint32_t stride,
                                      float *out) {
    if (cells.dtype == CELL_F32) stage_of<CELL_F32>(cells, table, head, which, begin, end, first, width, stride, out);
    else if (cells.dtype == CELL_F16) stage_of<CELL_F16>(cells, table, head, which, begin, end, first, width, stride, out);
    else stage_of<CELL_Q8_0>(cells, table, head, which, begin, end, first, width, stride, out);
}

// The largest of a reader's scores. All lanes of the warp call and get it.
template <int READERS>
__device__ __forceinline__ float largest(const float *scores, uint32_t reader, uint32_t count) {
    float max = from_bits(0xff800000u);
    for (uint32_t p = threadIdx.x % WARP; p < count; p += WARP) {
        const float score = scores[p * READERS + reader];
        max = score > max ? score : max;
    }
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
        const float other = __shfl_xor_sync(FULL_WARP, max, lanes);
        max = other > max ? other : max;
    }
    return max;
}

// Shared: the stage, q [head_dim][READERS], scores [256][READERS].
template <int READERS>
__device__ __forceinline__ void attend(const AttendArgs &args) {
    constexpr int WARPS = 256 / WARP;
    const CellPlaces &cells = args.cells;
    const uint32_t dim = cells.head_dim, group = args.group, chunk = blockIdx.x, head = blockIdx.y;
    const AttendItem item = args.items[blockIdx.z];
    const uint32_t num_readers = item.rows * group;
    const uint32_t first_position = args.rows.positions[item.row];
    const uint32_t begin = chunk * ATTENTION_CHUNK;
    const uint32_t last_position = first_position + item.rows - 1;
    if (begin > last_position) return;
    const uint32_t end = last_position + 1 < begin + ATTENTION_CHUNK ? last_position + 1 : begin + ATTENTION_CHUNK;
    const uint32_t *table = args.rows.table(item.row);

    float *staged = (float *)shared_bytes();
    float *q = staged + STAGE_FLOATS;
    float *scores = q + dim * READERS;
    for (uint32_t i = threadIdx.x; i < dim * READERS; i += 256) {
        const uint32_t reader = i % READERS, d = i / READERS;
        const uint64_t row = item.row + reader / group;
        q[i] = reader < num_readers
                   ? args.columns[((row * args.heads + head) * (group + 2) + reader % group) * dim + d]
                   : 0.0f;
    }
    // How many positions of the chunk a reader sees.
    auto seen = [&](uint32_t reader) -> uint32_t {
        const uint32_t positions = first_position + reader / group + 1;
        const uint32_t until = positions < end ? positions : end;
        return until > begin ? until - begin : 0;
    };

    // Scores: a thread per position.
    float dots[READERS] = {};
    for (uint32_t first = 0; first < dim; first += SLICE) {
        const uint32_t width = dim - first < SLICE ? dim - first : SLICE;
        __syncthreads();
        stage(cells, table, head, 0, begin, end, first, width, SLICE_STRIDE, staged);
        __syncthreads();
        if (threadIdx.x < end - begin) {
            for (uint32_t d = 0; d < width; d += 4) {
                const Floats key = *(const Floats *)(staged + threadIdx.x * SLICE_STRIDE + d);
#pragma unroll
                for (int k = 0; k < 4; k++)
#pragma unroll
                    for (int r = 0; r < READERS; r++)
                        dots[r] = fmaf(q[(first + d + k) * READERS + r], key.value[k], dots[r]);
            }
        }
    }
    const float scale = 1.0f / sqrtf((float)dim);
    if (threadIdx.x < end - begin) {
#pragma unroll
        for (int r = 0; r < READERS; r++) scores[threadIdx.x * READERS + r] = dots[r] * scale;
    }
    __syncthreads();

    // Exponentials: a warp per reader.
    const uint32_t floats = dim + 2;
    auto partial = [&](uint32_t reader) -> float * {
        const uint64_t row = item.row - args.first_row + reader / group;
        return args.chunks + (((row * args.heads + head) * group + reader % group) * args.num_chunks + chunk) * floats;
    };
    for (uint32_t reader = threadIdx.x / WARP; reader < num_readers; reader += WARPS) {
        const uint32_t count = seen(reader);
        if (count == 0) continue;
        const float max = largest<READERS>(scores, reader, count);
        float sum = 0.0f;
        // Lanes l and l + 16 take positions by turns; a chain is that of positions p with p % 16 = l.
        for (uint32_t p = threadIdx.x % WARP; p < count; p += WARP) {
            float &score = scores[p * READERS + reader];
            score = exponential(score - max);
        }
        __syncwarp();
        if (threadIdx.x % WARP < LANES)
            for (uint32_t p = threadIdx.x % WARP; p < count; p += LANES) sum += scores[p * READERS + reader];
        sum = sum_lanes(sum);
        if (threadIdx.x % WARP == 0) {
            float *out = partial(reader);
            out[0] = max;
            out[1] = sum;
        }
    }

    // Outputs: a thread per two dimensions, for some readers.
    constexpr int OWN = (READERS + 1) / 2;
    const uint32_t pairs = dim / 2, pair = threadIdx.x % pairs, place = threadIdx.x / pairs, places = 256 / pairs;
    float outs[OWN][2] = {};
    uint32_t counts[OWN];
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        const uint32_t reader = place + i * places;
        counts[i] = place < places && reader < num_readers ? seen(reader) : 0;
    }
    const uint32_t in_tile = STAGE_FLOATS / dim / 8 * 8;
    for (uint32_t first = begin; first < end; first += in_tile) {
        const uint32_t until = end - first < in_tile ? end : first + in_tile;
        __syncthreads();
        stage(cells, table, head, 1, first, until, 0, dim, dim, staged);
        __syncthreads();
        for (uint32_t p = first - begin; p < until - begin; p++) {
            const float *value = staged + (p - (first - begin)) * dim + 2 * pair;
            const float v0 = value[0], v1 = value[1];
#pragma unroll
            for (int i = 0; i < OWN; i++) {
                if (p >= counts[i]) continue;
                const float e = scores[p * READERS + place + i * places];
                outs[i][0] = fmaf(e, v0, outs[i][0]);
                outs[i][1] = fmaf(e, v1, outs[i][1]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        if (counts[i] == 0) continue;
        float *out = partial(place + i * places) + 2 + 2 * pair;
        out[0] = outs[i][0];
        out[1] = outs[i][1];
    }
}

KERNEL_OF_TWO(attend_1, AttendArgs, 256) { attend<1>(args); }
KERNEL_OF_TWO(attend_2, AttendArgs, 256) { attend<2>(args); }
KERNEL(attend_4, AttendArgs, 256) { attend<4>(args); }
KERNEL(attend_8, AttendArgs, 256) { attend<8>(args); }
KERNEL(attend_16, AttendArgs, 256) { attend<16>(args); }
KERNEL(attend_32, AttendArgs, 256) { attend<32>(args); }

struct MergeChunksArgs {
    const float *chunks;
    float *out;
    uint16_t *halves;
    const uint32_t *positions;
    uint32_t head_dim;
    uint32_t num_heads;
    uint32_t num_chunks;
    uint32_t first_row;
};

KERNEL(merge_chunks, MergeChunksArgs, 256) {
    const uint32_t d = threadIdx.x, floats = args.head_dim + 2;
    if (d >= args.head_dim) return;
    const uint32_t row = args.first_row + blockIdx.y;
    const uint32_t num_chunks = args.positions[row] / ATTENTION_CHUNK + 1;
    const float *chunk = args.chunks + ((uint64_t)blockIdx.y * args.num_heads + blockIdx.x) * args.num_chunks * floats;
    float max = chunk[0], sum = chunk[1], out = chunk[2 + d];
    for (uint32_t i = 1; i < num_chunks; i++) {
        chunk += floats;
        const float both = chunk[0] > max ? chunk[0] : max;
        const float a = exponential(max - both), b = exponential(chunk[0] - both);
        out = fmaf(out, a, chunk[2 + d] * b);
        sum = fmaf(sum, a, chunk[1] * b);
        max = both;
    }
    const uint64_t at = ((uint64_t)row * args.num_heads + blockIdx.x) * args.head_dim + d;
    args.out[at] = out / sum;
    if (args.halves) args.halves[at] = to_bfloat(out / sum);
}
