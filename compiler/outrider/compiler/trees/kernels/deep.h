/* Deep: walks of 16 trees a register over 4-byte nodes, for AVX-512. What row_deep.h and deep_batch.h share.
 *
 * Idea: a deep tree is a chain of loads that miss, so what counts is loads a level and walks in flight. Features become
 * ranks of 16 bits once a row, so that a node is 4 bytes (deep_layout.py): a third to a half of K2's, and three
 * levels lie in one cache line. A row's ranks stay in one to four registers, where a permute finds the one that a node
 * asks for: a level is one gather, one permute, one compare and two additions for 16 trees. Lanes that have arrived
 * stay at their leaf; every two levels the walk stops if no lane moved.
 *
 * Ranks of a row: a search by sixteens, a compare and a population count a level, up to 65535 bounds in four levels.
 *
 * Fallbacks, chosen by the layout: more than 126 columns are gathered from memory; nodes whose fields need more than 32
 * bits are 8 bytes, a gather more a level; leaf values that have no place in a node are found by a gather more a tree.
 *
 * Cost model: depth * trees / 16 gathers a row, of about 9 to 15 cycles from L1 and L2 each when enough are in flight;
 * about 10 cycles a search. Memory: 4 bytes a node (8 where wide) and some percent of gaps; 4 bytes a bound.
 *
 * Limits: numeric splits only, 8191 columns, 2^27 nodes.
 *
 * Exactness: decisions are exact for every float32. Leaf values are held as float32 where they are that, or where their
 * rounding cannot be seen (deep_layout.py, fit_float), and added in double, trees of like
 * depth together. The sum is off by at most trees * 2^-53 * the sum of the leaves' sizes,
 * far less than a source that adds in float32 is off itself.
 */
#ifndef OUTRIDER_DEEP_H
#define OUTRIDER_DEEP_H

#include <immintrin.h>

#include "common.h"
#include "deep_tables.h"
#include "finish.h"
#include "forest.h"
#include "gather.h"
#include "keys.h"

#define DEEP_UNROLL _Pragma("clang loop unroll(full)")
#define DEEP_FLIGHT 8 /* walks in flight at most: two registers each, of 32 */

/* ---- ranks ---- */

/* `level`: where the tables begin, coarsest first. `column`: where the rank goes, and `missing`: what goes there for a
 * missing value; both the same where only one direction is in use. */
INLINE void deep_search(const uint32_t *row, const deep_search_t *search, int levels, uint16_t *ranks) {
    uint32_t bits = row[search->feature], rank = 0;
    const int missing = is_missing(bits);
    __m512i key = _mm512_set1_epi32(missing ? INT32_MIN : sort_key(bits)); /* a NaN may be above every bound */
    DEEP_UNROLL for (int i = 0; i < levels; i++) {
        __m512i bounds = _mm512_load_si512(DEEP_BOUNDS + search->level[i] + 16 * rank);
        rank = 16 * rank + (uint32_t)__builtin_popcount(_mm512_cmple_epi32_mask(bounds, key));
    }
    ranks[search->column[0]] = missing ? search->missing[0] : (uint16_t)rank;
    ranks[search->column[1]] = missing ? search->missing[1] : (uint16_t)rank;
}

/* The ranks of one row, uint16 [DEEP_STRIDE]; behind the columns that are searched, the two of leaves. */
static __attribute__((noinline, unused)) void deep_ranks(const uint32_t *row, uint16_t *ranks) {
    ranks[DEEP_COLUMNS] = 0;
    ranks[DEEP_COLUMNS + 1] = 0xffff;
    const deep_search_t *search = DEEP_SEARCHES;
    for (; search < DEEP_SEARCHES + DEEP_SEARCHES_1; search++) deep_search(row, search, 1, ranks);
    for (; search < DEEP_SEARCHES + DEEP_SEARCHES_2; search++) deep_search(row, search, 2, ranks);
    for (; search < DEEP_SEARCHES + DEEP_SEARCHES_3; search++) deep_search(row, search, 3, ranks);
    for (; search < DEEP_SEARCHES + DEEP_SEARCHES_4; search++) deep_search(row, search, 4, ranks);
}

/* ---- a level ---- */

#if DEEP_REGISTERS
typedef struct { __m512i part[DEEP_REGISTERS]; } deep_row_t;

INLINE deep_row_t deep_load(const uint16_t *ranks) {
    deep_row_t row;
    DEEP_UNROLL for (int i = 0; i < DEEP_REGISTERS; i++) row.part[i] = _mm512_load_si512(ranks + 32 * i);
    return row;
}
#else
typedef const uint16_t *deep_row_t;

INLINE deep_row_t deep_load(const uint16_t *ranks) { return ranks; }
#endif

/* The ranks that nodes ask for, in the low halves; the high halves hold anything. Permutes read only the low bits of a
 * node's column, which is why columns lie lowest. */
INLINE __m512i deep_look_up(deep_row_t row, __m512i node, __mmask16 all) {
    (void)all;
#if DEEP_REGISTERS == 1
    return _mm512_permutexvar_epi16(node, row.part[0]);
#elif DEEP_REGISTERS == 2
    return _mm512_permutex2var_epi16(row.part[0], node, row.part[1]);
#elif DEEP_REGISTERS == 4
    __m512i low = _mm512_permutex2var_epi16(row.part[0], node, row.part[1]);
    __m512i high = _mm512_permutex2var_epi16(row.part[2], node, row.part[3]);
    return _mm512_mask_mov_epi32(low, _mm512_test_epi32_mask(node, _mm512_set1_epi32(64)), high);
#else
    return GATHER_WORDS(all, _mm512_and_si512(node, _mm512_set1_epi32((1 << DEEP_COLUMN_BITS) - 1)), row, 2);
#endif
}

/* One level for 16 trees: `at` moves on; returns how far, from pair to pair: 0 at leaves. */
INLINE __m512i deep_step(deep_row_t row, __m512i *at, __m512i *node, __mmask16 all) {
#if DEEP_WIDE
    *node = GATHER_WORDS(all, *at, DEEP_NODES, 8);
    __m512i delta = GATHER_WORDS(all, *at, DEEP_NODES + 1, 8);
#else
    *node = GATHER_WORDS(all, *at, DEEP_NODES, 4);
    __m512i delta = _mm512_and_si512(_mm512_srli_epi32(*node, DEEP_COLUMN_BITS - 1),
                                     _mm512_set1_epi32((2 << (32 - DEEP_RANK_BITS - DEEP_COLUMN_BITS)) - 2));
#endif
    __m512i ranks = _mm512_slli_epi32(deep_look_up(row, *node, all), 32 - DEEP_RANK_BITS);
    __mmask16 right = _mm512_cmpgt_epu32_mask(ranks, *node);
    *at = _mm512_add_epi32(_mm512_andnot_si512(_mm512_set1_epi32(1), *at), delta);
    *at = _mm512_mask_add_epi32(*at, right, *at, _mm512_set1_epi32(1));
    return delta;
}

/* ---- leaves ---- */

/* Rows of values (DEEP_LEAF_IN_NODE, or leaf vectors), or the place of the value, of 16 leaves. */
INLINE __m512i deep_leaves(__m512i at, __m512i node) {
    (void)at, (void)node;
#if DEEP_LEAF_IN_NODE
    return _mm512_srli_epi32(node, 32 - DEEP_RANK_BITS);
#elif DEEP_WIDTH == 1
    return at;
#else
    return _mm512_i32gather_epi32(at, DEEP_LEAF_ROWS, 4);
#endif
}

#if DEEP_WIDTH == 1
/* The values of 16 leaves, in two registers. */
INLINE void deep_values(__m512i leaves, __m512d *low, __m512d *high) {
#if DEEP_FLOAT_LEAVES
    __m512 values = _mm512_i32gather_ps(leaves, DEEP_VALUES, 4);
    *low = _mm512_cvtps_pd(_mm512_castps512_ps256(values));
    *high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(values, 1));
#else
    *low = _mm512_i32gather_pd(_mm512_castsi512_si256(leaves), DEEP_VALUES, 8);
    *high = _mm512_i32gather_pd(_mm512_extracti32x8_epi32(leaves, 1), DEEP_VALUES, 8);
#endif
}
#endif

/* Add the leaves of `groups` groups, from `first` on, to a row's sums. */
INLINE void deep_add(const __m512i *leaves, uint32_t first, int groups, double *sums) {
#if DEEP_WIDTH == 1 && OUTPUTS == 1
    (void)first;
    __m512d total = _mm512_setzero_pd();
    DEEP_UNROLL for (int g = 0; g < groups; g++) {
        __m512d low, high;
        deep_values(leaves[g], &low, &high);
        total = _mm512_add_pd(total, _mm512_add_pd(low, high));
    }
    sums[0] += _mm512_reduce_add_pd(total);
#elif DEEP_WIDTH == 1
    /* Trees are in the order of outputs: most groups are of one. */
    DEEP_UNROLL for (int g = 0; g < groups; g++) {
        __m512d low, high;
        deep_values(leaves[g], &low, &high);
        for (uint32_t i = DEEP_SEGMENT_START[first + g]; i < DEEP_SEGMENT_START[first + g + 1]; i++) {
            uint32_t lanes = DEEP_SEGMENT_LANES[i];
            __m512d part = _mm512_add_pd(_mm512_maskz_mov_pd((__mmask8)lanes, low),
                                         _mm512_maskz_mov_pd((__mmask8)(lanes >> 8), high));
            sums[DEEP_SEGMENT_OUTPUT[i]] += _mm512_reduce_add_pd(part);
        }
    }
#else
    double total[DEEP_WIDTH];
    for (int i = 0; i < DEEP_WIDTH; i++) total[i] = sums[i];
    for (int g = 0; g < groups; g++) {
        uint32_t row[16];
        _mm512_storeu_si512(row, leaves[g]);
        uint32_t lanes = DEEP_TREES - 16 * (first + g) < 16 ? DEEP_TREES - 16 * (first + g) : 16;
        for (uint32_t lane = 0; lane < lanes; lane++)
            for (uint32_t i = 0; i < DEEP_WIDTH; i++)
                total[i] += (double)DEEP_VALUES[(size_t)row[lane] * DEEP_WIDTH + i];
    }
    for (int i = 0; i < DEEP_WIDTH; i++) sums[i] = total[i];
#endif
}

/* Add `count` leaves, of trees that all add to the same sums; the list has room for whole registers. */
INLINE void deep_add_all(uint32_t *leaves, uint32_t count, double *sums) {
#if DEEP_WIDTH == 1
    __m512d total = _mm512_setzero_pd();
    _mm512_storeu_si512(leaves + count, _mm512_set1_epi32(DEEP_NOTHING));
    for (uint32_t i = 0; i < count; i += 16) {
        __m512d low, high;
        deep_values(_mm512_loadu_si512(leaves + i), &low, &high);
        total = _mm512_add_pd(total, _mm512_add_pd(low, high));
    }
    sums[0] += _mm512_reduce_add_pd(total);
#else
    double even[DEEP_WIDTH] = {0}, odd[DEEP_WIDTH] = {0}; /* two chains of additions instead of one */
    for (uint32_t i = 0; i < count; i += 2) {
        for (uint32_t k = 0; k < DEEP_WIDTH; k++) even[k] += (double)DEEP_VALUES[(size_t)leaves[i] * DEEP_WIDTH + k];
        if (i + 1 == count) break;
        for (uint32_t k = 0; k < DEEP_WIDTH; k++) odd[k] += (double)DEEP_VALUES[(size_t)leaves[i + 1] * DEEP_WIDTH + k];
    }
    for (uint32_t k = 0; k < DEEP_WIDTH; k++) sums[k] += even[k] + odd[k];
#endif
}

/* ---- a walk ---- */

/* `rows` rows, whose ranks lie DEEP_STRIDE apart and sums OUTPUTS apart, through `groups` groups of 16 trees from
 * `first` on, all in flight at once: rows * groups is DEEP_FLIGHT at most. */
INLINE void deep_walk(const uint16_t *ranks, int rows, uint32_t first, int groups, double *sums) {
    deep_row_t row[DEEP_FLIGHT];
    __m512i at[DEEP_FLIGHT], node[DEEP_FLIGHT], moved;
    const __mmask16 all = gather_mask();
    DEEP_UNROLL for (int r = 0; r < rows; r++) {
        row[r] = deep_load(ranks + r * DEEP_STRIDE);
        DEEP_UNROLL for (int g = 0; g < groups; g++)
            at[r * groups + g] = _mm512_load_si512(DEEP_ROOTS + 16 * (first + g));
    }
    do {
        DEEP_UNROLL for (int step = 0; step < 2; step++) {
            moved = _mm512_setzero_si512();
            DEEP_UNROLL for (int r = 0; r < rows; r++)
                DEEP_UNROLL for (int g = 0; g < groups; g++) {
                    int i = r * groups + g;
                    moved = _mm512_or_si512(moved, deep_step(row[r], &at[i], &node[i], all));
                }
        }
    } while (_mm512_test_epi32_mask(moved, moved));
    DEEP_UNROLL for (int i = 0; i < rows * groups; i++) node[i] = deep_leaves(at[i], node[i]);
    DEEP_UNROLL for (int r = 0; r < rows; r++) deep_add(node + r * groups, first, groups, sums + r * OUTPUTS);
}

/* One row's sums, without the base, to its results. */
INLINE void deep_finish(const double *sums, float *result) {
    sum_t whole[OUTPUTS];
    for (int i = 0; i < OUTPUTS; i++) whole[i] = (sum_t)((double)START[i] + sums[i]);
    finish(whole, result);
}

#endif
