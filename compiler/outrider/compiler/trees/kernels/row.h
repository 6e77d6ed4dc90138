/* Row: single rows through trees of up to 9 levels, 16 trees a register, for AVX-512 with VBMI.
 *
 * Idea: a row's ranks (single.h), a byte a column, stay in one to four registers, where byte permutes find the one that
 * a node asks for: a node is 4 bytes, `position << 24 | column`, and goes right if `rank << 24` is above it. Trees are
 * padded to perfect ones and cut at levels 3 and 6. The three top levels lie side by side for 16 trees, so they take
 * plain loads and blends. Below are blocks of half a cache line: 7 nodes of levels 3 to 5; then 3 nodes of levels 6 and
 * 7 with their 4 leaves, or 7 nodes of levels 6 to 8. A walk touches two lines a tree, or three, and takes a gather for
 * each level below the top and for the leaf: 1, 4, 6 and 7 in all for depths of 3, 6, 8 and 9.
 *
 * Fallback: more than 256 columns are gathered from memory, a gather more a level.
 *
 * Cost model: trees / 16 * (depth * 10 instructions + gathers, of 9 to 15 cycles each with ROW_IN_FLIGHT * 16 trees in
 * flight), and single.h. Memory: 0.1, 0.6, 2.4 and 4.4 KB a tree for depths of 3, 6, 8 and 9.
 *
 * Limits: depth 9, 32768 columns, numeric splits, single leaf values, sums that 32 bits suffice for (fixed.py).
 *
 * Exactness: decisions are exact for every float32. Sums are of integers (fixed.py), hence in any order the same.
 */
#ifndef OUTRIDER_ROW_H
#define OUTRIDER_ROW_H

#include <immintrin.h>

#include "common.h"
#include "finish.h"
#include "fixed.h"
#include "forest.h"
#include "gather.h"
#include "row_tables.h"
#include "single.h"

#define ROW_UNROLL _Pragma("clang loop unroll(full)")
#define ROW_FLIGHT 8 /* groups of trees in flight at most */

/* ---- decisions ---- */

/* Which of 16 nodes go right. Permutes read the low byte of a node, its column, into the low byte. */
INLINE __mmask16 row_right(single_ranks_t row, __m512i node, __mmask16 all) {
    (void)all;
#if SINGLE_REGISTERS
    __m512i rank = single_pick(row, node);
#else
    __m512i rank = GATHER_WORDS(all, _mm512_and_si512(node, _mm512_set1_epi32(0xffffff)), row, 1);
#endif
    return _mm512_cmpgt_epu32_mask(_mm512_slli_epi32(rank, 24), node);
}

/* 2 * path, and 1 more where the mask is set. */
INLINE __m512i row_append(__m512i path, __mmask16 right) {
    path = _mm512_add_epi32(path, path);
    return _mm512_mask_add_epi32(path, right, path, _mm512_set1_epi32(1));
}

/* ---- a walk ---- */

/* The path through the three top levels, 0 to 7; `top`: seven nodes of 16 trees, breadth first. */
INLINE __m512i row_top(single_ranks_t row, const uint32_t *top, __mmask16 all) {
#define ROW_TOP(i) _mm512_load_si512(top + 16 * (i))
    __mmask16 first = row_right(row, ROW_TOP(0), all);
    __mmask16 second = row_right(row, _mm512_mask_mov_epi32(ROW_TOP(1), first, ROW_TOP(2)), all);
    __m512i low = _mm512_mask_mov_epi32(ROW_TOP(3), first, ROW_TOP(5));
    __m512i high = _mm512_mask_mov_epi32(ROW_TOP(4), first, ROW_TOP(6));
    __mmask16 third = row_right(row, _mm512_mask_mov_epi32(low, second, high), all);
    __m512i path = _mm512_maskz_mov_epi32(first, _mm512_set1_epi32(4));
    path = _mm512_mask_add_epi32(path, second, path, _mm512_set1_epi32(2));
    return _mm512_mask_add_epi32(path, third, path, _mm512_set1_epi32(1));
}

/* The blocks of `count` a tree that 16 paths lead to, in words from the group's first. */
INLINE __m512i row_blocks(__m512i path, int count) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_slli_epi32(_mm512_add_epi32(_mm512_mullo_epi32(lane, _mm512_set1_epi32(count)), path), 3);
}

/* Where a walk is: the `path` so far, a number, with its `block`, and the place `in` it, 1 the root, 2 and 3 below. */
typedef struct { __m512i path, block, in; } row_at_t;

/* `levels` levels down the blocks that the paths lead to, of which there are `blocks` a tree, from `table` on. */
INLINE void row_descend(single_ranks_t row, const uint32_t *table, int blocks, int levels, row_at_t *at, int groups,
                        __mmask16 all) {
    ROW_UNROLL for (int g = 0; g < groups; g++) {
        at[g].block = row_blocks(at[g].path, blocks);
        at[g].in = _mm512_set1_epi32(1);
    }
    ROW_UNROLL for (int level = 0; level < levels; level++) {
        ROW_UNROLL for (int g = 0; g < groups; g++) {
            const uint32_t *own = table + (size_t)g * 16 * 8 * (size_t)blocks;
            __m512i node = GATHER_WORDS(all, _mm512_or_si512(at[g].block, at[g].in), own, 4);
            at[g].in = row_append(at[g].in, row_right(row, node, all));
        }
    }
}

/* The same for three levels, which end a block. */
INLINE void row_pass(single_ranks_t row, const uint32_t *table, int blocks, row_at_t *at, int groups, __mmask16 all) {
    row_descend(row, table, blocks, 3, at, groups, all);
    ROW_UNROLL for (int g = 0; g < groups; g++)
        at[g].path =
            _mm512_add_epi32(_mm512_slli_epi32(at[g].path, 3), _mm512_and_si512(at[g].in, _mm512_set1_epi32(7)));
}

/* The leaf values of `groups` groups of 16 trees, from `first` on, all in flight at once. */
INLINE void row_walk(single_ranks_t row, uint32_t first, int groups, __m512i *leaves) {
    row_at_t at[ROW_FLIGHT];
    const __mmask16 all = gather_mask();
    const size_t tree = (size_t)first * 16;
    ROW_UNROLL for (int g = 0; g < groups; g++) at[g].path = row_top(row, ROW_TOPS + (tree + 16 * (size_t)g) * 7, all);
#if ROW_DEPTH > 3
    row_pass(row, ROW_MIDDLES + tree * 64, 8, at, groups, all);
#endif
#if ROW_DEPTH == 8
    row_descend(row, ROW_BOTTOMS + tree * 512, 64, 2, at, groups, all);
    ROW_UNROLL for (int g = 0; g < groups; g++) {
        const uint32_t *own = ROW_BOTTOMS + (tree + 16 * (size_t)g) * 512;
        leaves[g] = GATHER_WORDS(all, _mm512_or_si512(at[g].block, at[g].in), own, 4);
    }
#else
#if ROW_DEPTH == 9
    row_pass(row, ROW_BOTTOMS + tree * 512, 64, at, groups, all);
#endif
    ROW_UNROLL for (int g = 0; g < groups; g++) {
        const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        __m512i place = _mm512_add_epi32(_mm512_slli_epi32(lane, ROW_DEPTH), at[g].path);
        leaves[g] = GATHER_WORDS(all, place, ROW_LEAVES + ((tree + 16 * (size_t)g) << ROW_DEPTH), 4);
    }
#endif
}

/* ---- sums ---- */

#if OUTPUTS == 1
typedef struct { __m512i lanes; } row_sums_t;

INLINE void row_add(const __m512i *leaves, uint32_t first, int groups, row_sums_t *sums) {
    (void)first;
    ROW_UNROLL for (int g = 0; g < groups; g++) sums->lanes = _mm512_add_epi32(sums->lanes, leaves[g]);
}

INLINE int32_t row_sum(const row_sums_t *sums, int output) {
    (void)output;
    return _mm512_reduce_add_epi32(sums->lanes);
}
#else
typedef struct { int32_t output[OUTPUTS]; } row_sums_t;

/* Trees are in the order of outputs: most groups are of one. */
INLINE void row_add(const __m512i *leaves, uint32_t first, int groups, row_sums_t *sums) {
    ROW_UNROLL for (int g = 0; g < groups; g++)
        for (uint32_t i = ROW_SEGMENT_START[first + g]; i < ROW_SEGMENT_START[first + g + 1]; i++)
            sums->output[ROW_SEGMENT_OUTPUT[i]] +=
                _mm512_mask_reduce_add_epi32((__mmask16)ROW_SEGMENT_LANES[i], leaves[g]);
}

INLINE int32_t row_sum(const row_sums_t *sums, int output) { return sums->output[output]; }
#endif

/* ---- the kernel ---- */

static size_t row_workspace(int64_t batch) {
    (void)batch;
    return SINGLE_BYTES;
}

static void row_run(const float *rows, float *results, int64_t batch, void *workspace) {
    enum { REST = ROW_GROUPS % ROW_IN_FLIGHT };
    for (int64_t done = 0; done < batch; done++) {
        row_sums_t sums = {0};
        __m512i leaves[ROW_FLIGHT];
        single_fill((const uint32_t *)rows + (size_t)done * FEATURES, workspace);
        single_ranks_t row = single_load(workspace);
        for (uint32_t first = 0; first + ROW_IN_FLIGHT <= ROW_GROUPS; first += ROW_IN_FLIGHT) {
            row_walk(row, first, ROW_IN_FLIGHT, leaves);
            row_add(leaves, first, ROW_IN_FLIGHT, &sums);
        }
        if (REST) {
            row_walk(row, ROW_GROUPS - REST, REST, leaves);
            row_add(leaves, ROW_GROUPS - REST, REST, &sums);
        }
        sum_t whole[OUTPUTS];
        for (int i = 0; i < OUTPUTS; i++) whole[i] = fixed_first(row_sum(&sums, i), i);
        finish(whole, results + (size_t)done * COLUMNS_OUT);
    }
}

#endif
