/* Shape for AVX2: all nodes of trees of up to 8 levels for 32 rows a register, batch. For the idea see shape.h.
 *
 * What differs: there are no mask registers, and bytes compare signed. So ranks and positions are stored xor 0x80, and a
 * blend needs no blend: leaf numbers on the right of a node all exceed those on its left, hence the leaf number of a
 * node is max(left, right & mask): compare, and, max. Leaves and the deep levels of the ranks' search are gathered.
 *
 * Cost model: per node and 32 rows a compare with memory, an and, a max, and, in tops, an addition; a broadcast for all
 * registers; per tree and 32 rows 4 gathers of 8. Ranks: per chunk and 32 rows about 16 instructions a level, of which
 * 4 are gathers from the fifth level on.
 *
 * Limits: depth 8, single leaf values, sums of float32, numeric splits only.
 *
 * Exactness: decisions are exact for every float32, by integer keys. Sums take an output's trees in order, whatever the
 * batch, as shape.h does: both give the same results.
 */
#ifndef OUTRIDER_SHAPE_AVX2_H
#define OUTRIDER_SHAPE_AVX2_H

#include <immintrin.h>

#include "common.h"
#include "finish_batch.h"

/* Bounds of one feature. `lane`: the feature's place in its group of four. `left`, `right`: where the ranks go, as
 * byte offsets, with missing values as 0 and as 255; a column that no node reads may share a dummy. */
typedef struct { uint32_t table, left, right; uint16_t lane, levels; } shape_avx2_chunk_t;
/* Four neighbouring features, from `first`, and how many chunks they have. */
typedef struct { uint32_t first, chunks; } shape_avx2_group_t;
#define ranks_chunk_t shape_avx2_chunk_t
#define ranks_group_t shape_avx2_group_t
#include "shape_avx2_tables.h"
#undef ranks_chunk_t
#undef ranks_group_t

#define SHAPE_AVX2_UNROLL _Pragma("clang loop unroll(full)")
#define SHAPE_AVX2_ROWS (32 * SHAPE_AVX2_REGISTERS) /* of a full block; bytes of a column and of a slot */
#define SHAPE_AVX2_SLOTS (1 << SHAPE_AVX2_TOP_LEVELS)
#define SHAPE_AVX2_STRIDE (FEATURES < 4 ? 4 : FEATURES)
#define SHAPE_AVX2_TINY 0x0554ad2e /* bits of the last float32 whose size is not above 1e-35 */

typedef __m256i shape_avx2_bytes_t[SHAPE_AVX2_REGISTERS];

INLINE __m256i shape_avx2_load(const void *from) { return _mm256_load_si256(from); }
INLINE void shape_avx2_store(void *to, __m256i value) { _mm256_store_si256(to, value); }

/* ---- ranks ---- */

/* 32 rows x 4 floats to 4 x 32. */
INLINE void shape_avx2_transpose(const float *rows, float *out) {
    SHAPE_AVX2_UNROLL for (int q = 0; q < 4; q++) {
        __m256 a[4];
        SHAPE_AVX2_UNROLL for (int i = 0; i < 4; i++) {
            const float *row = rows + (size_t)(8 * q + i) * SHAPE_AVX2_STRIDE;
            a[i] = _mm256_castps128_ps256(_mm_loadu_ps(row));
            a[i] = _mm256_insertf128_ps(a[i], _mm_loadu_ps(row + 4 * SHAPE_AVX2_STRIDE), 1);
        }
        __m256d low01 = _mm256_castps_pd(_mm256_unpacklo_ps(a[0], a[1]));
        __m256d high01 = _mm256_castps_pd(_mm256_unpackhi_ps(a[0], a[1]));
        __m256d low23 = _mm256_castps_pd(_mm256_unpacklo_ps(a[2], a[3]));
        __m256d high23 = _mm256_castps_pd(_mm256_unpackhi_ps(a[2], a[3]));
        _mm256_store_ps(out + 8 * q, _mm256_castpd_ps(_mm256_unpacklo_pd(low01, low23)));
        _mm256_store_ps(out + 32 + 8 * q, _mm256_castpd_ps(_mm256_unpackhi_pd(low01, low23)));
        _mm256_store_ps(out + 64 + 8 * q, _mm256_castpd_ps(_mm256_unpacklo_pd(high01, high23)));
        _mm256_store_ps(out + 96 + 8 * q, _mm256_castpd_ps(_mm256_unpackhi_pd(high01, high23)));
    }
}

/* Ranks of 32 keys by a search tree (quantise.py). Byte 16 j + 4 q + i is row 8 q + 4 j + i. */
INLINE __m256i shape_avx2_search(const __m256i *keys, const int32_t *tree, int levels) {
    const __m256i one = _mm256_set1_epi32(1);
    __m256i at[4];
    SHAPE_AVX2_UNROLL for (int q = 0; q < 4; q++) at[q] = one;
    SHAPE_AVX2_UNROLL for (int level = 0; level < levels; level++) {
        SHAPE_AVX2_UNROLL for (int q = 0; q < 4; q++) {
            __m256i bound;
            if (level < 3)
                bound = _mm256_permutevar8x32_epi32(shape_avx2_load(tree), at[q]);
            else if (level == 3)
                bound = _mm256_permutevar8x32_epi32(shape_avx2_load(tree + 8), at[q]);
            else
                bound = _mm256_i32gather_epi32(tree, at[q], 4);
            /* 2 p + 1, and -1 where the bound is above the key */
            __m256i below = _mm256_cmpgt_epi32(bound, keys[q]);
            at[q] = _mm256_add_epi32(_mm256_add_epi32(_mm256_add_epi32(at[q], at[q]), one), below);
        }
    }
    SHAPE_AVX2_UNROLL for (int q = 0; q < 4; q++)
        at[q] = _mm256_and_si256(at[q], _mm256_set1_epi32((1 << levels) - 1));
    return _mm256_packus_epi16(_mm256_packus_epi32(at[0], at[1]), _mm256_packus_epi32(at[2], at[3]));
}

INLINE __m256i shape_avx2_ranks(const __m256i *keys, const int32_t *tree, uint32_t levels) {
    switch (levels) {
    case 1: return shape_avx2_search(keys, tree, 1);
    case 2: return shape_avx2_search(keys, tree, 2);
    case 3: return shape_avx2_search(keys, tree, 3);
    case 4: return shape_avx2_search(keys, tree, 4);
    case 5: return shape_avx2_search(keys, tree, 5);
    case 6: return shape_avx2_search(keys, tree, 6);
    case 7: return shape_avx2_search(keys, tree, 7);
    default: return shape_avx2_search(keys, tree, 8);
    }
}

/* 32 floats to raw keys; returns 255 in the bytes, in the order of ranks, of those that are missing. */
INLINE __m256i shape_avx2_keys(const float *floats, __m256i *keys) {
    __m256i missing[4];
    SHAPE_AVX2_UNROLL for (int q = 0; q < 4; q++) {
        __m256i bits = shape_avx2_load(floats + 8 * q), all = _mm256_set1_epi32(0x7fffffff);
        __m256i size = _mm256_and_si256(bits, all);
        missing[q] = _mm256_cmpgt_epi32(size, _mm256_set1_epi32(0x7f800000));
        keys[q] = _mm256_xor_si256(bits, _mm256_and_si256(_mm256_srai_epi32(bits, 31), all));
        __m256i tiny = _mm256_cmpgt_epi32(_mm256_set1_epi32(SHAPE_AVX2_TINY + 1), size);
        if (TINY_IS_ZERO) keys[q] = _mm256_andnot_si256(tiny, keys[q]);
        if (ZERO_IS_MISSING) missing[q] = _mm256_or_si256(missing[q], tiny);
    }
    return _mm256_packs_epi16(_mm256_packs_epi32(missing[0], missing[1]), _mm256_packs_epi32(missing[2], missing[3]));
}

/* Ranks of 32 rows, xor 0x80. */
static __attribute__((noinline)) void shape_avx2_fill(const float *rows, uint8_t *columns) {
    float values[4 * 32] __attribute__((aligned(64)));
    const __m256i sign = _mm256_set1_epi8(-128);
    const shape_avx2_group_t *group = SHAPE_AVX2_RANK_GROUPS, *end = group + SHAPE_AVX2_RANK_GROUP_COUNT;
    const shape_avx2_chunk_t *chunk = SHAPE_AVX2_RANK_CHUNKS;
    for (; group < end; group++) {
        shape_avx2_transpose(rows + group->first, values);
        for (const shape_avx2_chunk_t *last = chunk + group->chunks; chunk < last; chunk++) {
            __m256i keys[4], missing = shape_avx2_keys(values + 32 * chunk->lane, keys);
            __m256i ranks = shape_avx2_ranks(keys, SHAPE_AVX2_RANK_TABLES + chunk->table, chunk->levels);
            shape_avx2_store(columns + chunk->left, _mm256_xor_si256(_mm256_andnot_si256(missing, ranks), sign));
            shape_avx2_store(columns + chunk->right, _mm256_xor_si256(_mm256_or_si256(missing, ranks), sign));
        }
    }
}

/* ---- decisions ---- */

/* max(left, right where the node goes right). */
INLINE __m256i shape_avx2_choose(__m256i left, __m256i right, const uint8_t *columns, const uint32_t *position,
                                 const shape_avx2_column_t *column) {
    __m256i goes_right =
        _mm256_cmpgt_epi8(shape_avx2_load(columns + *column), _mm256_set1_epi32((int)*position));
    return _mm256_max_epu8(left, _mm256_and_si256(goes_right, right));
}

/* ---- blocks ---- */

#if SHAPE_AVX2_BLOCK
/* A shape is a set of nodes: bit 0 the root, bits 1 and 2 its children, 3 to 6 theirs. Nodes are stored in preorder. */
#define SHAPE_AVX2_HAS(shape, node) ((shape) >> (node) & 1)
#define SHAPE_AVX2_UNDER(shape, node)                                                     \
    (SHAPE_AVX2_HAS(shape, node) + SHAPE_AVX2_HAS(shape, 2 * (node) + 1) +                \
     SHAPE_AVX2_HAS(shape, 2 * (node) + 2))

/* The leaf numbers, from `leaf` on, below a node of the third, second and first level of a block. */
INLINE __m256i shape_avx2_third(int shape, int node, int leaf, const uint8_t *columns, const uint32_t *position,
                                const shape_avx2_column_t *column) {
    __m256i left = _mm256_set1_epi8((char)leaf);
    if (!SHAPE_AVX2_HAS(shape, node)) return left;
    return shape_avx2_choose(left, _mm256_set1_epi8((char)(leaf + 1)), columns, position, column);
}

INLINE __m256i shape_avx2_second(int shape, int node, int leaf, const uint8_t *columns, const uint32_t *position,
                                 const shape_avx2_column_t *column) {
    if (!SHAPE_AVX2_HAS(shape, node)) return _mm256_set1_epi8((char)leaf);
    int nodes = SHAPE_AVX2_HAS(shape, 2 * node + 1), next = 1 + nodes;
    __m256i left = shape_avx2_third(shape, 2 * node + 1, leaf, columns, position + 1, column + 1);
    __m256i right =
        shape_avx2_third(shape, 2 * node + 2, leaf + nodes + 1, columns, position + next, column + next);
    return shape_avx2_choose(left, right, columns, position, column);
}

INLINE __m256i shape_avx2_first(int shape, const uint8_t *columns, const uint32_t *position,
                                const shape_avx2_column_t *column) {
    if (!SHAPE_AVX2_HAS(shape, 0)) return _mm256_setzero_si256();
    int nodes = SHAPE_AVX2_UNDER(shape, 1), next = 1 + nodes;
    __m256i left = shape_avx2_second(shape, 1, 0, columns, position + 1, column + 1);
    __m256i right = shape_avx2_second(shape, 2, nodes + 1, columns, position + next, column + next);
    return shape_avx2_choose(left, right, columns, position, column);
}

typedef struct {
    const uint32_t *position, *slot;
    const shape_avx2_column_t *column;
    const uint16_t *count;
} shape_avx2_cursor_t;

/* The next group's blocks of one shape. */
INLINE void shape_avx2_loop(int shape, shape_avx2_cursor_t *at, const uint8_t *columns, uint8_t *buffer,
                            int registers) {
    int nodes = SHAPE_AVX2_HAS(shape, 0) + SHAPE_AVX2_UNDER(shape, 1) + SHAPE_AVX2_UNDER(shape, 2);
    for (uint32_t left = *at->count++; left; left--) {
        SHAPE_AVX2_UNROLL for (int i = 0; i < registers; i++)
            shape_avx2_store(buffer + *at->slot + 32 * i,
                             shape_avx2_first(shape, columns + 32 * i, at->position, at->column));
        at->slot++;
        at->position += nodes;
        at->column += nodes;
    }
}
#endif

/* ---- tops ---- */

/* A tree's perfect top, nodes numbered as in a heap, and the results of the blocks below it. */
typedef struct {
    const uint32_t *position;
    const shape_avx2_column_t *column;
    const uint8_t *columns, *buffer;
} shape_avx2_tree_t;

INLINE void shape_avx2_top0(const shape_avx2_tree_t *tree, int node, __m256i *leaf, int registers) {
    SHAPE_AVX2_UNROLL for (int i = 0; i < registers; i++) {
#if SHAPE_AVX2_BLOCK
        size_t slot = (size_t)(node - (SHAPE_AVX2_SLOTS - 1));
        leaf[i] = shape_avx2_load(tree->buffer + slot * SHAPE_AVX2_ROWS + 32 * i);
#else
        leaf[i] = _mm256_setzero_si256();
#endif
    }
}

/* The leaf numbers below a node that has `height` levels of the top below it, itself included. */
#define SHAPE_AVX2_DEFINE_TOP(height, below)                                                                         \
    INLINE void shape_avx2_top##height(const shape_avx2_tree_t *tree, int node, __m256i *leaf, int registers) {      \
        shape_avx2_bytes_t right;                                                                                    \
        shape_avx2_top##below(tree, 2 * node + 1, leaf, registers);                                                  \
        shape_avx2_top##below(tree, 2 * node + 2, right, registers);                                                 \
        SHAPE_AVX2_UNROLL for (int i = 0; i < registers; i++) {                                                      \
            right[i] = _mm256_add_epi8(right[i], _mm256_set1_epi8((char)(1 << (SHAPE_AVX2_BLOCK + below))));         \
            leaf[i] = shape_avx2_choose(leaf[i], right[i], tree->columns + 32 * i, tree->position + node,            \
                                        tree->column + node);                                                        \
        }                                                                                                            \
    }
SHAPE_AVX2_DEFINE_TOP(1, 0)
SHAPE_AVX2_DEFINE_TOP(2, 1)
SHAPE_AVX2_DEFINE_TOP(3, 2)
SHAPE_AVX2_DEFINE_TOP(4, 3)
SHAPE_AVX2_DEFINE_TOP(5, 4)
SHAPE_AVX2_DEFINE_TOP(6, 5)
SHAPE_AVX2_DEFINE_TOP(7, 6)
SHAPE_AVX2_DEFINE_TOP(8, 7)
#define SHAPE_AVX2_JOIN_(a, b) a##b
#define SHAPE_AVX2_JOIN(a, b) SHAPE_AVX2_JOIN_(a, b)
#define SHAPE_AVX2_TOP SHAPE_AVX2_JOIN(shape_avx2_top, SHAPE_AVX2_TOP_LEVELS)

/* ---- leaves and sums ---- */

/* Add the values of 8 leaves, given as words. */
INLINE void shape_avx2_add(const float *values, __m256i leaf, float *sums) {
    _mm256_store_ps(sums, _mm256_add_ps(_mm256_load_ps(sums), _mm256_i32gather_ps(values, leaf, 4)));
}

/* Add the values of 32 leaves to the sums of their rows; unpacks restore the rows' order. */
INLINE void shape_avx2_add_leaves(const float *values, __m256i leaf, float *sums) {
    __m256i zero = _mm256_setzero_si256();
    __m256i low = _mm256_unpacklo_epi8(leaf, zero), high = _mm256_unpackhi_epi8(leaf, zero);
    shape_avx2_add(values, _mm256_unpacklo_epi16(low, zero), sums);
    shape_avx2_add(values, _mm256_unpackhi_epi16(low, zero), sums + 8);
    shape_avx2_add(values, _mm256_unpacklo_epi16(high, zero), sums + 16);
    shape_avx2_add(values, _mm256_unpackhi_epi16(high, zero), sums + 24);
}

/* All trees for `registers` times 32 rows. `sums` is [outputs][SHAPE_AVX2_ROWS]. */
INLINE void shape_avx2_trees(const uint8_t *columns, uint8_t *buffer, float *sums, int registers) {
    shape_avx2_tree_t tree = {SHAPE_AVX2_TOP_POSITION, SHAPE_AVX2_TOP_COLUMN, columns, buffer};
    const float *values = SHAPE_AVX2_LEAVES;
#if SHAPE_AVX2_BLOCK
    shape_avx2_cursor_t at = {SHAPE_AVX2_BLOCK_POSITION, SHAPE_AVX2_BLOCK_SLOT, SHAPE_AVX2_BLOCK_COLUMN,
                              SHAPE_AVX2_BLOCK_COUNT};
#endif
    for (uint32_t first = 0; first < TREES; first += SHAPE_AVX2_GROUP) {
#if SHAPE_AVX2_BLOCK
#define SHAPE_AVX2_ONE(shape) shape_avx2_loop(shape, &at, columns, buffer, registers);
        SHAPE_AVX2_EACH(SHAPE_AVX2_ONE)
#endif
        uint32_t end = first + SHAPE_AVX2_GROUP < TREES ? first + SHAPE_AVX2_GROUP : TREES;
        tree.buffer = buffer;
        for (uint32_t number = first; number < end; number++) {
            shape_avx2_bytes_t leaf;
            SHAPE_AVX2_TOP(&tree, 0, leaf, registers);
            float *sum = sums + (size_t)SHAPE_AVX2_TREE_OUTPUT(number) * SHAPE_AVX2_ROWS;
            SHAPE_AVX2_UNROLL for (int i = 0; i < registers; i++)
                shape_avx2_add_leaves(values, leaf[i], sum + 32 * i);
            tree.position += SHAPE_AVX2_SLOTS - 1;
            tree.column += SHAPE_AVX2_SLOTS - 1;
            tree.buffer += SHAPE_AVX2_SLOTS * SHAPE_AVX2_ROWS;
            values += 1 << SHAPE_AVX2_DEPTH;
        }
    }
}

static __attribute__((noinline)) void shape_avx2_trees_32(const uint8_t *columns, uint8_t *buffer, float *sums) {
    shape_avx2_trees(columns, buffer, sums, 1);
}

#if SHAPE_AVX2_REGISTERS > 1
static __attribute__((noinline)) void shape_avx2_trees_full(const uint8_t *columns, uint8_t *buffer, float *sums) {
    shape_avx2_trees(columns, buffer, sums, SHAPE_AVX2_REGISTERS);
}
#endif

typedef struct {
    uint8_t *columns, *buffer;
    float *sums, *copy;
} shape_avx2_workspace_t;

#define SHAPE_AVX2_COLUMN_BYTES ((size_t)(SHAPE_AVX2_COLUMNS + 1) * SHAPE_AVX2_ROWS) /* the last for ranks unread */
#define SHAPE_AVX2_BUFFER_BYTES \
    (SHAPE_AVX2_BLOCK ? (size_t)SHAPE_AVX2_GROUP * SHAPE_AVX2_SLOTS * SHAPE_AVX2_ROWS : 0)
#define SHAPE_AVX2_SUM_BYTES ((size_t)OUTPUTS * SHAPE_AVX2_ROWS * sizeof(float))

INLINE shape_avx2_workspace_t shape_avx2_divide(void *workspace) {
    uint8_t *columns = workspace, *buffer = columns + SHAPE_AVX2_COLUMN_BYTES;
    uint8_t *sums = buffer + SHAPE_AVX2_BUFFER_BYTES, *copy = sums + SHAPE_AVX2_SUM_BYTES;
    return (shape_avx2_workspace_t){columns, buffer, (float *)sums, (float *)copy};
}

static size_t shape_avx2_workspace(int64_t batch) {
    (void)batch;
    return SHAPE_AVX2_COLUMN_BYTES + SHAPE_AVX2_BUFFER_BYTES + SHAPE_AVX2_SUM_BYTES +
           (size_t)32 * SHAPE_AVX2_STRIDE * sizeof(float);
}

/* Ranks of up to 32 rows. Fewer than 32, or rows of fewer than 4 floats, are copied first. */
INLINE void shape_avx2_rank(const float *rows, uint32_t count, float *copy, uint8_t *columns) {
    if (count < 32 || FEATURES < 4) {
        for (uint32_t row = 0; row < count; row++)
            for (uint32_t i = 0; i < FEATURES; i++)
                copy[(size_t)row * SHAPE_AVX2_STRIDE + i] = rows[(size_t)row * FEATURES + i];
        rows = copy;
    }
    shape_avx2_fill(rows, columns);
}

static void shape_avx2_run(const float *rows, float *results, int64_t batch, void *workspace) {
    shape_avx2_workspace_t at = shape_avx2_divide(workspace);
    for (int64_t done = 0; done < batch; done += SHAPE_AVX2_ROWS) {
        uint32_t count = batch - done < SHAPE_AVX2_ROWS ? (uint32_t)(batch - done) : SHAPE_AVX2_ROWS;
        for (uint32_t first = 0; first < count; first += 32)
            shape_avx2_rank(rows + (size_t)(done + first) * FEATURES, count - first < 32 ? count - first : 32, at.copy,
                            at.columns + first);
        for (uint32_t i = 0; i < OUTPUTS; i++)
            for (uint32_t row = 0; row < SHAPE_AVX2_ROWS; row++) at.sums[(size_t)i * SHAPE_AVX2_ROWS + row] = START[i];
#if SHAPE_AVX2_REGISTERS > 1
        if (count > 32)
            shape_avx2_trees_full(at.columns, at.buffer, at.sums);
        else
#endif
            shape_avx2_trees_32(at.columns, at.buffer, at.sums);
        finish_rows(at.sums, SHAPE_AVX2_ROWS, results + (size_t)done * COLUMNS_OUT, count);
    }
}

#endif
