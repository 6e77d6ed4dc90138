/* Row-deep: single rows through deep forests, walks of all trees side by side. Limits and exactness: deep.h.
 *
 * Idea: of 100 walks the deepest takes twice as many levels as most. So all trees go down some levels, ROW_DEEP_GROUPS
 * registers of them in flight; then the walks that have arrived are taken out, and the others moved together, since to
 * one row's ranks it does not matter which tree a lane is of. That repeats every few levels, with fewer registers.
 *
 * Where trees add to different sums, lanes must stay: walks in flight wait for the deepest of them (deep_walk).
 *
 * Cost model: a gather and about 12 cycles a level, shared by the 16 walks of a register that are under way; 10 cycles
 * a register to move walks together. Nothing is kept from row to row but the caches.
 */
#ifndef OUTRIDER_ROW_DEEP_H
#define OUTRIDER_ROW_DEEP_H

#include "deep.h"
#include "row_deep_tables.h"

#define ROW_DEEP_FIRST 10  /* levels before walks are moved together for the first time, */
#define ROW_DEEP_LEVELS 3  /* and for each next time */
#define ROW_DEEP_LANES (16 * (DEEP_GROUPS + ROW_DEEP_TOGETHER))

/* ---- walks that move together ---- */

/* Walks under way, by node, and leaves of those that have arrived, as deep_leaves tells them. */
typedef struct { uint32_t *going, *arrived, going_count, arrived_count; } row_deep_walks_t;

/* Append the chosen lanes to a list, which has room for a register more. */
INLINE uint32_t row_deep_append(uint32_t *list, uint32_t count, __mmask16 chosen, __m512i lanes) {
    _mm512_storeu_si512(list + count, _mm512_maskz_compress_epi32(chosen, lanes));
    return count + (uint32_t)__builtin_popcount(chosen);
}

/* The first `count` lanes of some registers go `levels` levels down from the nodes at `from`, which may lie behind what
 * `walks` has so far. */
INLINE void row_deep_down(deep_row_t row, const uint32_t *from, uint32_t count, int registers, int levels,
                          row_deep_walks_t *walks) {
    __m512i at[DEEP_FLIGHT], node[DEEP_FLIGHT], delta[DEEP_FLIGHT];
    const __mmask16 all = gather_mask();
    DEEP_UNROLL for (int r = 0; r < registers; r++) at[r] = _mm512_loadu_si512(from + 16 * r);
    for (int level = 0; level < levels; level++)
        DEEP_UNROLL for (int r = 0; r < registers; r++) delta[r] = deep_step(row, &at[r], &node[r], all);
    DEEP_UNROLL for (int r = 0; r < registers; r++) {
        uint32_t left = count > 16u * (uint32_t)r ? count - 16 * (uint32_t)r : 0;
        __mmask16 there = left < 16 ? (__mmask16)((1u << left) - 1) : (__mmask16)0xffff;
        __mmask16 going = _mm512_mask_test_epi32_mask(there, delta[r], delta[r]);
        __mmask16 arrived = there & (__mmask16)~going;
        walks->going_count = row_deep_append(walks->going, walks->going_count, going, at[r]);
        walks->arrived_count =
            row_deep_append(walks->arrived, walks->arrived_count, arrived, deep_leaves(at[r], node[r]));
    }
}

/* All walks from the roots to the leaves. */
INLINE void row_deep_walk(deep_row_t row, row_deep_walks_t *walks) {
    enum { REST = DEEP_GROUPS % ROW_DEEP_GROUPS };
    const uint32_t trees = DEEP_TREES;
    uint32_t first = 0;
    for (; first + ROW_DEEP_GROUPS <= DEEP_GROUPS; first += ROW_DEEP_GROUPS)
        row_deep_down(row, DEEP_ROOTS + 16 * first, trees - 16 * first, ROW_DEEP_GROUPS, ROW_DEEP_FIRST, walks);
    if (REST) row_deep_down(row, DEEP_ROOTS + 16 * first, trees - 16 * first, REST, ROW_DEEP_FIRST, walks);
    while (walks->going_count) {
        uint32_t count = walks->going_count;
        DEEP_UNROLL for (int r = 0; r < ROW_DEEP_TOGETHER; r++) /* lanes beyond the walks are at a leaf, too */
            _mm512_storeu_si512(walks->going + count + 16 * r, _mm512_set1_epi32(DEEP_NOWHERE));
        walks->going_count = 0;
        for (first = 0; first + 32 < count; first += 16 * ROW_DEEP_TOGETHER)
            row_deep_down(row, walks->going + first, count - first, ROW_DEEP_TOGETHER, ROW_DEEP_LEVELS, walks);
        if (first < count) row_deep_down(row, walks->going + first, count - first, 2, ROW_DEEP_LEVELS, walks);
    }
}

/* ---- the kernel ---- */

static size_t row_deep_workspace(int64_t batch) {
    (void)batch;
    return ROUND_UP(sizeof(uint16_t) * DEEP_STRIDE) + 2 * sizeof(uint32_t) * ROW_DEEP_LANES;
}

static void row_deep_run(const float *rows, float *results, int64_t batch, void *workspace) {
    uint16_t *ranks = workspace;
    for (int64_t row = 0; row < batch; row++) {
        double sums[OUTPUTS] = {0};
        deep_ranks((const uint32_t *)rows + (size_t)row * FEATURES, ranks);
#if DEEP_WIDTH > 1 || OUTPUTS == 1
        uint32_t *lanes = (uint32_t *)((char *)workspace + ROUND_UP(sizeof(uint16_t) * DEEP_STRIDE));
        row_deep_walks_t walks = {lanes, lanes + ROW_DEEP_LANES, 0, 0};
        row_deep_walk(deep_load(ranks), &walks);
        deep_add_all(walks.arrived, DEEP_TREES, sums);
#else
        enum { REST = DEEP_GROUPS % ROW_DEEP_GROUPS };
        for (uint32_t first = 0; first + ROW_DEEP_GROUPS <= DEEP_GROUPS; first += ROW_DEEP_GROUPS)
            deep_walk(ranks, 1, first, ROW_DEEP_GROUPS, sums);
        if (REST) deep_walk(ranks, 1, DEEP_GROUPS - REST, REST, sums);
#endif
        deep_finish(sums, results + (size_t)row * COLUMNS_OUT);
    }
}

#endif
