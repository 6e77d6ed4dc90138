/* Perfect: trees of up to 6 levels, padded to perfect ones, for single rows and for batches, AVX-512 with VBMI.
 *
 * Idea: a tree of 6 levels has 63 nodes, numbered as in a heap from 1 on, and 64 leaves. A decision is `rank >
 * position` on a byte (quantise.py).
 *
 * - A single row decides all nodes of a tree with a permute and a compare (single.h), into a mask of 64 bits. Eight
 *   trees walk in a register: a step is two shifts, of the mask by the number of the node, and of the result into it.
 * - A batch keeps 64 rows a register: one compare decides a node for all, and a tree is evaluated bottom up in
 *   registers: the leaf number of a node is that of its left child, or, under the mask of the decision, that of its
 *   right child plus the leaves on the left.
 *
 * Both read the same columns and leaf values; a batch of PERFECT_CROSSOVER rows or more takes the second way. A leaf
 * value is an int32 (fixed.py), found by two permutes of two registers: the bytes of a word are the leaf numbers of
 * four rows, and a permute looks at the low bits of a word alone, so a shift brings each row's number forward in its
 * turn.
 *
 * Cost model, in cycles: a row takes 3 a tree of 6 levels to decide it and 3 to walk, and see single.h; a register of
 * 64 rows 1.4 a node, shared loads reckoned, 16 a tree for its value, and see ranks.h. Memory: 640 bytes a tree.
 *
 * Limits: 6 levels, splits on numbers, single leaf values, 256 columns, 256 outputs, sums that 32 bits suffice for.
 *
 * Exactness: decisions are exact for every float32. Sums are of integers, hence the same for a row and for a batch.
 */
#ifndef OUTRIDER_PERFECT_H
#define OUTRIDER_PERFECT_H

#include "common.h"
#include "fixed_batch.h"
#include "ranks.h"
#include "single.h"

#include "perfect_tables.h"

#define PERFECT_UNROLL _Pragma("clang loop unroll(full)")
#define PERFECT_ROWS (64 * PERFECT_REGISTERS) /* of a block; a column's ranks are as many bytes */
#define PERFECT_STRIDE (FEATURES < 4 ? 4 : FEATURES)
#define PERFECT_NODES 64 /* of a tree in the tables: node n is number 63 - n, and number 63 is none */
#define PERFECT_TOGETHER 64 /* trees that a row decides before it walks */
#define PERFECT_LEAVES (PERFECT_LEVELS == 6 ? 64 : 32)

/* ---- a single row ---- */

/* The leaf numbers of eight trees, by their masks: node n decides bit 63 - n, so a shift by the node's number brings
 * its decision to the top, and a double shift takes it into the number. */
INLINE __m512i perfect_leaves(__m512i masks) {
    __m512i at = _mm512_set1_epi64(1);
    PERFECT_UNROLL for (int level = 0; level < PERFECT_LEVELS; level++)
        at = _mm512_shldi_epi64(at, _mm512_sllv_epi64(masks, at), 1);
    return _mm512_sub_epi64(at, _mm512_set1_epi64(1 << PERFECT_LEVELS));
}

/* The sum of the values of trees. Some are decided before they are walked: walks that wait for masks would keep others
 * from starting. */
INLINE int32_t perfect_sum(single_ranks_t ranks, uint32_t tree, uint32_t end) {
    uint64_t masks[PERFECT_TOGETHER] __attribute__((aligned(64)));
    const __m512i lanes = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i first = _mm512_mullo_epi64(lanes, _mm512_set1_epi64(PERFECT_LEAVES));
    __m256i sums = _mm256_setzero_si256();
    while (tree < end) {
        uint32_t count = end - tree < PERFECT_TOGETHER ? end - tree : PERFECT_TOGETHER;
        const uint8_t *columns = PERFECT_COLUMNS + (size_t)PERFECT_NODES * tree;
        const uint8_t *positions = PERFECT_POSITIONS + (size_t)PERFECT_NODES * tree;
        const int32_t *values = PERFECT_VALUES + (size_t)PERFECT_LEAVES * tree;
        for (uint32_t i = 0; i < count; i++)
            masks[i] = single_mask(ranks, columns + PERFECT_NODES * i, positions + PERFECT_NODES * i);
        for (uint32_t i = 0; i < count; i += 8) {
            __mmask8 there = count - i < 8 ? (__mmask8)((1 << (count - i)) - 1) : (__mmask8)0xff;
            __m512i at = _mm512_add_epi64(first, perfect_leaves(_mm512_load_si512(masks + i)));
            __m256i none = _mm256_setzero_si256();
            sums = _mm256_add_epi32(sums, _mm512_mask_i64gather_epi32(none, there, at, values + PERFECT_LEAVES * i, 4));
        }
        tree += count;
    }
    return _mm512_reduce_add_epi32(_mm512_zextsi256_si512(sums));
}

INLINE void perfect_row(const float *row, float *result, uint8_t *scratch) {
    sum_t sums[OUTPUTS];
    single_fill((const uint32_t *)row, scratch);
    single_ranks_t ranks = single_load(scratch);
    for (uint32_t output = 0; output < OUTPUTS; output++)
        sums[output] = fixed_first(perfect_sum(ranks, PERFECT_BEGIN[output], PERFECT_BEGIN[output + 1]), output);
    finish(sums, result);
}

/* ---- a batch ---- */

/* Where the rows of a tree's nodes are: ranks by column, and the tree's columns and positions. */
typedef struct {
    const uint8_t *ranks, *columns;
    const uint32_t *splats; /* a position as four times the same byte: a broadcast of words needs no shuffle */
} perfect_tree_t;

typedef __m512i perfect_bytes_t[PERFECT_REGISTERS];

INLINE void perfect_level0(const perfect_tree_t *tree, int node, __m512i *leaf, int registers) {
    (void)tree, (void)node;
    PERFECT_UNROLL for (int i = 0; i < registers; i++) leaf[i] = _mm512_setzero_si512();
}

/* The leaf numbers below a node that has `height` levels, its own included: left, or right + leaves on the left. */
#define PERFECT_DEFINE_LEVEL(height, below)                                                                        \
    INLINE void perfect_level##height(const perfect_tree_t *tree, int node, __m512i *leaf, int registers) {        \
        perfect_bytes_t right;                                                                                     \
        perfect_level##below(tree, 2 * node, leaf, registers);                                                     \
        perfect_level##below(tree, 2 * node + 1, right, registers);                                                \
        const uint8_t *ranks = tree->ranks + (size_t)tree->columns[63 - node] * PERFECT_ROWS;                      \
        __m512i position = _mm512_set1_epi32((int)tree->splats[63 - node]);                                        \
        __m512i leaves = ranks_opaque(_mm512_set1_epi8(1 << below));                                               \
        PERFECT_UNROLL for (int i = 0; i < registers; i++) {                                                       \
            __mmask64 goes_right = _mm512_cmplt_epu8_mask(position, _mm512_load_si512(ranks + 64 * i));            \
            leaf[i] = _mm512_mask_add_epi8(leaf[i], goes_right, right[i], leaves);                                 \
        }                                                                                                          \
    }
PERFECT_DEFINE_LEVEL(1, 0)
PERFECT_DEFINE_LEVEL(2, 1)
PERFECT_DEFINE_LEVEL(3, 2)
PERFECT_DEFINE_LEVEL(4, 3)
PERFECT_DEFINE_LEVEL(5, 4)
PERFECT_DEFINE_LEVEL(6, 5)
#define PERFECT_JOIN_(a, b) a##b
#define PERFECT_JOIN(a, b) PERFECT_JOIN_(a, b)
#define PERFECT_ROOT PERFECT_JOIN(perfect_level, PERFECT_LEVELS) /* a number, not an expression: it is pasted */

/* Add the values of 64 leaves: sums[b] has the rows of byte b of each word. */
INLINE void perfect_add(const int32_t *values, __m512i leaf, __m512i *sums) {
    PERFECT_UNROLL for (int byte = 0; byte < 4; byte++) {
        __m512i at = byte ? _mm512_srli_epi32(leaf, 8 * byte) : leaf;
        __m512i value = _mm512_permutex2var_epi32(_mm512_load_si512(values), at, _mm512_load_si512(values + 16));
        if (PERFECT_LEVELS == 6) {
            __m512i high =
                _mm512_permutex2var_epi32(_mm512_load_si512(values + 32), at, _mm512_load_si512(values + 48));
            value = _mm512_mask_mov_epi32(value, _mm512_test_epi32_mask(at, _mm512_set1_epi32(32)), high);
        }
        sums[byte] = _mm512_add_epi32(sums[byte], value);
    }
}

/* Sums of 64 rows in the order of rows: word k of sums[b] is row 16 (k % 4) + 4 (k / 4) + b, by ranks.h. */
INLINE void perfect_store(const __m512i *sums, int32_t *memory) {
    __m512i low01 = _mm512_unpacklo_epi32(sums[0], sums[1]), low23 = _mm512_unpacklo_epi32(sums[2], sums[3]);
    __m512i high01 = _mm512_unpackhi_epi32(sums[0], sums[1]), high23 = _mm512_unpackhi_epi32(sums[2], sums[3]);
    _mm512_store_si512(memory, _mm512_unpacklo_epi64(low01, low23));
    _mm512_store_si512(memory + 16, _mm512_unpackhi_epi64(low01, low23));
    _mm512_store_si512(memory + 32, _mm512_unpacklo_epi64(high01, high23));
    _mm512_store_si512(memory + 48, _mm512_unpackhi_epi64(high01, high23));
}

/* All trees for `registers` times 64 rows. `sums` is [outputs][PERFECT_ROWS]; trees are in the order of outputs. */
INLINE void perfect_trees(const uint8_t *ranks, int32_t *sums, int registers) {
    perfect_tree_t tree = {ranks, PERFECT_COLUMNS, PERFECT_SPLATS};
    const int32_t *values = PERFECT_VALUES;
    for (uint32_t output = 0; output < OUTPUTS; output++) {
        __m512i sum[4 * PERFECT_REGISTERS];
        PERFECT_UNROLL for (int i = 0; i < 4 * registers; i++) sum[i] = _mm512_setzero_si512();
        for (uint32_t left = PERFECT_BEGIN[output + 1] - PERFECT_BEGIN[output]; left; left--) {
            perfect_bytes_t leaf;
            PERFECT_ROOT(&tree, 1, leaf, registers);
            PERFECT_UNROLL for (int i = 0; i < registers; i++) perfect_add(values, leaf[i], sum + 4 * i);
            tree.columns += PERFECT_NODES;
            tree.splats += PERFECT_NODES;
            values += PERFECT_LEAVES;
        }
        PERFECT_UNROLL for (int i = 0; i < registers; i++)
            perfect_store(sum + 4 * i, sums + (size_t)output * PERFECT_ROWS + 64 * i);
    }
}

static __attribute__((noinline)) void perfect_trees_64(const uint8_t *ranks, int32_t *sums) {
    perfect_trees(ranks, sums, 1);
}

#if PERFECT_REGISTERS > 1
static __attribute__((noinline)) void perfect_trees_full(const uint8_t *ranks, int32_t *sums) {
    perfect_trees(ranks, sums, PERFECT_REGISTERS);
}
#endif

typedef struct {
    uint8_t *ranks; /* the last column is for ranks that no node reads */
    int32_t *sums;
    float *copy;
} perfect_workspace_t;

#define PERFECT_RANK_BYTES ((size_t)(PERFECT_COLUMN_COUNT + 1) * PERFECT_ROWS)
#define PERFECT_SUM_BYTES (sizeof(int32_t) * OUTPUTS * PERFECT_ROWS)
#define PERFECT_COPY_BYTES (sizeof(float) * 64 * PERFECT_STRIDE)

INLINE perfect_workspace_t perfect_divide(void *workspace) {
    uint8_t *ranks = workspace;
    void *sums = ranks + PERFECT_RANK_BYTES, *copy = ranks + PERFECT_RANK_BYTES + PERFECT_SUM_BYTES;
    return (perfect_workspace_t){ranks, sums, copy};
}

/* Ranks of up to 64 rows. Fewer than 64, or rows too short for ranks.h, are copied first. */
INLINE void perfect_rank(const float *rows, uint32_t count, float *copy, uint8_t *ranks) {
    if (count < 64 || FEATURES < 4) {
        for (uint32_t row = 0; row < count; row++)
            for (uint32_t i = 0; i < FEATURES; i++)
                copy[(size_t)row * PERFECT_STRIDE + i] = rows[(size_t)row * FEATURES + i];
        rows = copy;
    }
    ranks_fill(rows, PERFECT_STRIDE, PERFECT_RANK_GROUPS, PERFECT_RANK_GROUP_COUNT, PERFECT_RANK_CHUNKS, BOUNDS, ranks,
               (ranks_rules_t){ZERO_IS_MISSING, TINY_IS_ZERO, 0});
}

INLINE void perfect_batch(const float *rows, float *results, int64_t batch, perfect_workspace_t at) {
    for (int64_t done = 0; done < batch; done += PERFECT_ROWS) {
        uint32_t count = batch - done < PERFECT_ROWS ? (uint32_t)(batch - done) : PERFECT_ROWS;
        for (uint32_t first = 0; first < count; first += 64)
            perfect_rank(rows + (size_t)(done + first) * FEATURES, count - first < 64 ? count - first : 64, at.copy,
                         at.ranks + first);
#if PERFECT_REGISTERS > 1
        if (count > 64)
            perfect_trees_full(at.ranks, at.sums);
        else
#endif
            perfect_trees_64(at.ranks, at.sums);
        fixed_finish(at.sums, PERFECT_ROWS, results + (size_t)done * COLUMNS_OUT, count);
    }
}

/* ---- the kernel's interface ---- */

static size_t perfect_workspace(int64_t batch) {
    return batch < PERFECT_CROSSOVER ? SINGLE_BYTES : PERFECT_RANK_BYTES + PERFECT_SUM_BYTES + PERFECT_COPY_BYTES;
}

static void perfect_run(const float *rows, float *results, int64_t batch, void *workspace) {
    if (batch >= PERFECT_CROSSOVER) {
        perfect_batch(rows, results, batch, perfect_divide(workspace));
        return;
    }
    for (int64_t row = 0; row < batch; row++)
        perfect_row(rows + (size_t)row * FEATURES, results + (size_t)row * COLUMNS_OUT, workspace);
}

#endif
