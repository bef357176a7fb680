// The fast mode's paged attention over f16 cells, on tensor cores.
//
// As in `attention.cu`, a block takes one chunk of 256 positions of one KV head for all that read it together, here up to 16
// readers, and leaves the chunk's maximum, sum and output for the same merge. Of its 4 warps each takes 64 positions. The
// product is mma.sync m16n8k16: readers are rows. K and V go from device memory into registers, 16 bytes a lane: a dot does not
// mind in which order its dimensions come, so a lane's 8 dimensions of K stand for the places that the instruction gives it, and
// q is taken in the same order; likewise V's dimensions stand for columns of the output in an order that only the end undoes.

#include "attend_args.h"

constexpr int READERS = 16;
constexpr int WARPS = 4;
constexpr int THREADS = WARPS * WARP;
constexpr int WARP_POSITIONS = ATTENTION_CHUNK / WARPS;
// Positions of one product.
constexpr int TILE = 8;
constexpr int TILES = WARP_POSITIONS / TILE;

// sums += a * b. a: 16 x 16 f16, b: 16 x 8 f16, as the instruction deals them over the lanes.
__device__ __forceinline__ void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef KVASIR_ON_HOST
    const uint32_t words[on_host::MATRIX_WORDS] = {a[0], a[1], a[2], a[3], b0, b1};
    const uint32_t *all = on_host::exchange_matrices(words);
    const unsigned lane = threadIdx.x % WARP;
    for (int i = 0; i < 4; i++) {
        const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (unsigned k = 0; k < 16; k++) {
            const unsigned in_quad = k % 8 / 2, shift = k % 2 * 16;
            const uint32_t *of_a = all + (row % 8 * 4 + in_quad) * on_host::MATRIX_WORDS;
            const uint32_t *of_b = all + (column * 4 + in_quad) * on_host::MATRIX_WORDS;
            const float left = from_half((uint16_t)(of_a[row / 8 + k / 8 * 2] >> shift));
            sums[i] += left * from_half((uint16_t)(of_b[4 + k / 8] >> shift));
        }
    }
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

__device__ __forceinline__ float fast_exponential(float x) {
#ifdef KVASIR_ON_HOST
    return exp2f(x * 1.44269504f);
#else
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * 1.44269504f));
    return result;
#endif
}

__device__ __forceinline__ uint32_t pack_halves(float low, float high) {
    return (uint32_t)to_half(low) | (uint32_t)to_half(high) << 16;
}

// The largest, or the sum, over the four lanes that share a row.
__device__ __forceinline__ float largest_of_row(float value) {
    for (int lanes = 1; lanes < 4; lanes *= 2) {
        const float other = __shfl_xor_sync(FULL_WARP, value, lanes);
        value = other > value ? other : value;
    }
    return value;
}

__device__ __forceinline__ float sum_of_row(float value) {
    for (int lanes = 1; lanes < 4; lanes *= 2) value += __shfl_xor_sync(FULL_WARP, value, lanes);
    return value;
}

// Where a block reads and writes, and who its readers are.
struct Block {
    const AttendArgs &args;
    AttendItem item;
    const uint32_t *table;
    uint32_t head, begin, end, first_position, num_readers;

    __device__ __forceinline__ Block(const AttendArgs &args) : args(args) {
        item = args.items[blockIdx.z];
        head = blockIdx.y;
        begin = blockIdx.x * ATTENTION_CHUNK;
        first_position = args.rows.positions[item.row];
        const uint32_t until = first_position + item.rows;
        end = until < begin + ATTENTION_CHUNK ? until : begin + ATTENTION_CHUNK;
        table = args.rows.table(item.row);
        num_readers = item.rows * args.group;
    }

    // One past the last position that a reader sees.
    __device__ __forceinline__ uint32_t seen_until(uint32_t reader) const {
        return first_position + reader / args.group + 1;
    }

    // K (0) or V (1) of a position. Positions beyond the last are the last once more: they get no weight.
    __device__ __forceinline__ const uint8_t *row(uint32_t which, uint32_t position) const {
        const CellPlaces &cells = args.cells;
        const uint32_t at = position < end ? position : end - 1;
        const uint8_t *plane = cells.plane(head, table[at / cells.block_size], which);
        return plane + (uint64_t)(at % cells.block_size) * cells.head_dim * 2;
    }

    // Dimension d of a reader's q; zero where there is no such reader.
    __device__ __forceinline__ float query(uint32_t reader, uint32_t d) const {
        if (reader >= num_readers) return 0.0f;
        const uint64_t row = (uint64_t)(item.row + reader / args.group) * args.heads + head;
        return args.columns[(row * (args.group + 2) + reader % args.group) * args.cells.head_dim + d];
    }

    __device__ __forceinline__ float *partial(uint32_t reader) const {
        const uint64_t row = (uint64_t)(item.row - args.first_row + reader / args.group) * args.heads + head;
        const uint64_t vector = (row * args.group + reader % args.group) * args.num_chunks + blockIdx.x;
        return args.chunks + vector * (args.cells.head_dim + 2);
    }
};

// Shared: maxima and sums [WARPS][READERS] each, then outputs [READERS][DIM].
template <int DIM>
__device__ __forceinline__ void attend_fast(const AttendArgs &args) {
    constexpr int SLABS = DIM / 32;
    constexpr int COLUMN_TILES = DIM / 8;
    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const uint32_t in_row = lane % 4, low_row = lane / 4, high_row = low_row + 8;
    const Block block(args);
    if (block.begin >= block.end) return;
    float *maxima = (float *)shared_bytes();
    float *sums = maxima + WARPS * READERS;
    float *outs = sums + WARPS * READERS;
    const uint32_t first = block.begin + warp * WARP_POSITIONS;

    // Scores.
    float scores[TILES][4] = {};
#pragma unroll
    for (int slab = 0; slab < SLABS; slab++) {
        // Eight dimensions of two readers: two products' share.
        uint32_t q[2][4];
        const uint32_t d = slab * 32 + in_row * 8;
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const uint32_t reader = k % 2 ? high_row : low_row, at = d + i * 4 + k / 2 * 2;
                q[i][k] = pack_halves(block.query(reader, at), block.query(reader, at + 1));
            }
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            const Words key = load_once(block.row(0, first + tile * TILE + low_row) + d * 2);
            multiply_add(scores[tile], q[0], key.word[0], key.word[1]);
            multiply_add(scores[tile], q[1], key.word[2], key.word[3]);
        }
    }

    // Weights: all warps go by the chunk's maximum.
    const float scale = 1.0f / sqrtf((float)DIM);
    const float nothing = from_bits(0xff800000u);
    const uint32_t until[2] = {block.seen_until(low_row), block.seen_until(high_row)};
    float max[2] = {nothing, nothing};
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t position = first + tile * TILE + in_row * 2 + i % 2;
            const bool seen = position < until[i / 2] && position < block.end;
            scores[tile][i] = seen ? scores[tile][i] * scale : nothing;
            max[i / 2] = scores[tile][i] > max[i / 2] ? scores[tile][i] : max[i / 2];
        }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        max[half] = largest_of_row(max[half]);
        if (in_row == 0) maxima[warp * READERS + (half ? high_row : low_row)] = max[half];
    }
    __syncthreads();
    float sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int half = 0; half < 2; half++)
        for (int other = 0; other < WARPS; other++) {
            const float theirs = maxima[other * READERS + (half ? high_row : low_row)];
            max[half] = theirs > max[half] ? theirs : max[half];
        }
    uint32_t weights[TILES][2];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float score = scores[tile][i];
            scores[tile][i] = score == nothing ? 0.0f : fast_exponential(score - max[i / 2]);
            sum[i / 2] += scores[tile][i];
        }
        weights[tile][0] = pack_halves(scores[tile][0], scores[tile][1]);
        weights[tile][1] = pack_halves(scores[tile][2], scores[tile][3]);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        sum[half] = sum_of_row(sum[half]);
        if (in_row == 0) sums[warp * READERS + (half ? high_row : low_row)] = sum[half];
    }

    // Outputs. Column tile j of lane row r is dimension j / 8 * 64 + r * 8 + j % 8.
    float out[COLUMN_TILES][4] = {};
#pragma unroll
    for (int pair = 0; pair < TILES / 2; pair++) {
        const uint32_t a[4] = {weights[2 * pair][0], weights[2 * pair][1], weights[2 * pair + 1][0],
                               weights[2 * pair + 1][1]};
        const uint32_t position = first + pair * 2 * TILE + in_row * 2;
        const uint8_t *rows[4] = {block.row(1, position), block.row(1, position + 1), block.row(1, position + TILE),
                                  block.row(1, position + TILE + 1)};
#pragma unroll
        for (int part = 0; part < DIM / 64; part++) {
            Words values[4];
#pragma unroll
            for (int i = 0; i < 4; i++) values[i] = load_once(rows[i] + (part * 64 + low_row * 8) * 2);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const uint32_t shift = j % 2 * 16;
                auto both = [&](int i) {
                    const uint32_t even = values[i].word[j / 2] >> shift & 0xffff;
                    return even | (values[i + 1].word[j / 2] >> shift & 0xffff) << 16;
                };
                multiply_add(out[part * 8 + j], a, both(0), both(2));
            }
        }
    }

    // Warps add theirs in turn. A product's column c of a tile is lane row c: its dimensions are undone here.
    for (uint32_t turn = 0; turn < WARPS; turn++) {
        if (warp == turn) {
#pragma unroll
            for (int tile = 0; tile < COLUMN_TILES; tile++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const uint32_t reader = i / 2 ? high_row : low_row, column = in_row * 2 + i % 2;
                    float &at = outs[reader * DIM + tile / 8 * 64 + column * 8 + tile % 8];
                    at = turn == 0 ? out[tile][i] : at + out[tile][i];
                }
        }
        __syncthreads();
    }
    for (uint32_t i = threadIdx.x; i < block.num_readers * DIM; i += THREADS) {
        const uint32_t reader = i / DIM, d = i % DIM;
        if (block.seen_until(reader) <= block.begin) continue;
        float *partial = block.partial(reader);
        partial[2 + d] = outs[i];
        if (d >= 2) continue;
        float value = d == 0 ? maxima[reader] : 0.0f;
        for (int other = 0; other < WARPS; other++) {
            const float theirs = (d == 0 ? maxima : sums)[other * READERS + reader];
            if (d == 1) value += theirs;
            else if (theirs > value) value = theirs;
        }
        partial[d] = value;
    }
}

KERNEL(attend_fast_64, AttendArgs, 128) { attend_fast<64>(args); }
KERNEL(attend_fast_128, AttendArgs, 128) { attend_fast<128>(args); }
