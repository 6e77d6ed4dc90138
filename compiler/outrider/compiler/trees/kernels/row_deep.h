/* Row-deep: single rows through deep forests, ROW_DEEP_GROUPS groups of 16 trees in flight.
 *
 * Idea, limits and exactness: deep.h.
 *
 * Cost model: the latency of a level, a gather and about 12 cycles, is shared by 16 * ROW_DEEP_GROUPS trees; 7 groups
 * take 15 registers and saturate the gathers. Nothing is kept from row to row but the caches.
 */
#ifndef OUTRIDER_ROW_DEEP_H
#define OUTRIDER_ROW_DEEP_H

#include "deep.h"
#include "row_deep_tables.h"

static size_t row_deep_workspace(int64_t batch) {
    (void)batch;
    return ROUND_UP(sizeof(uint16_t) * DEEP_STRIDE);
}

static void row_deep_run(const float *rows, float *results, int64_t batch, void *workspace) {
    enum { REST = DEEP_GROUPS % ROW_DEEP_GROUPS };
    uint16_t *ranks = workspace;
    for (int64_t row = 0; row < batch; row++) {
        double sums[OUTPUTS] = {0};
        deep_ranks((const uint32_t *)rows + (size_t)row * FEATURES, ranks);
        for (uint32_t first = 0; first + ROW_DEEP_GROUPS <= DEEP_GROUPS; first += ROW_DEEP_GROUPS)
            deep_walk(ranks, 1, first, ROW_DEEP_GROUPS, sums);
        if (REST) deep_walk(ranks, 1, DEEP_GROUPS - REST, REST, sums);
        deep_finish(sums, results + (size_t)row * COLUMNS_OUT);
    }
}

#endif
