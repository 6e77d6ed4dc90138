/* Deep-batch: many rows through deep forests. Idea, limits and exactness: deep.h.
 *
 * Idea: trees outermost. The nodes of 16 * DEEP_BATCH_GROUPS trees, some 100 KB to 1 MB, stay in L2 while all rows of a
 * block pass, DEEP_BATCH_ROWS of them in flight. A large block reads the forest from memory less often; ranks and sums
 * of DEEP_BATCH_BLOCK rows share L2 with the nodes.
 *
 * Cost model: gathers as in deep.h, from L2. For few rows more groups in flight are better than more rows, which wait
 * for the deepest of their walks together.
 */
#ifndef OUTRIDER_DEEP_BATCH_H
#define OUTRIDER_DEEP_BATCH_H

#include "deep.h"
#include "deep_batch_tables.h"

/* Rows of a block of this batch, rounded up to what is in flight. */
INLINE size_t deep_batch_rows(int64_t batch) {
    size_t rows = batch < DEEP_BATCH_BLOCK ? (size_t)batch : DEEP_BATCH_BLOCK;
    return (rows + DEEP_BATCH_ROWS - 1) / DEEP_BATCH_ROWS * DEEP_BATCH_ROWS;
}

static size_t deep_batch_workspace(int64_t batch) {
    size_t rows = deep_batch_rows(batch);
    return ROUND_UP(rows * DEEP_STRIDE * sizeof(uint16_t)) + ROUND_UP(rows * OUTPUTS * sizeof(double));
}

/* `groups` groups of trees, from `first` on, for `count` rows. */
INLINE void deep_batch_trees(const uint16_t *ranks, size_t count, uint32_t first, int groups, double *sums) {
    for (size_t row = 0; row < count; row += DEEP_BATCH_ROWS)
        deep_walk(ranks + row * DEEP_STRIDE, DEEP_BATCH_ROWS, first, groups, sums + row * OUTPUTS);
}

static void deep_batch_run(const float *rows, float *results, int64_t batch, void *workspace) {
    enum { REST = DEEP_GROUPS % DEEP_BATCH_GROUPS };
    uint16_t *ranks = workspace;
    double *sums = (double *)((char *)workspace + ROUND_UP(deep_batch_rows(batch) * DEEP_STRIDE * sizeof(uint16_t)));
    for (int64_t done = 0; done < batch; done += DEEP_BATCH_BLOCK) {
        size_t count = batch - done < DEEP_BATCH_BLOCK ? (size_t)(batch - done) : DEEP_BATCH_BLOCK;
        size_t padded = deep_batch_rows((int64_t)count);
        for (size_t row = 0; row < padded; row++) /* rows in flight beyond the last repeat it */
            deep_ranks((const uint32_t *)rows + ((size_t)done + (row < count ? row : count - 1)) * FEATURES,
                       ranks + row * DEEP_STRIDE);
        for (size_t i = 0; i < padded * OUTPUTS; i++) sums[i] = 0.0;
        for (uint32_t first = 0; first + DEEP_BATCH_GROUPS <= DEEP_GROUPS; first += DEEP_BATCH_GROUPS)
            deep_batch_trees(ranks, padded, first, DEEP_BATCH_GROUPS, sums);
        if (REST) deep_batch_trees(ranks, padded, DEEP_GROUPS - REST, REST, sums);
        for (size_t row = 0; row < count; row++)
            deep_finish(sums + row * OUTPUTS, results + ((size_t)done + row) * COLUMNS_OUT);
    }
}

#endif
