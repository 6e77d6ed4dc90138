/* Sums of integers of many rows -> results: fixed.h and finish_batch.h together.
 *
 * Sums lie [outputs][FIXED_WORDS][rows]: of first words and, where values are wide, of second ones.
 */
#ifndef OUTRIDER_FIXED_BATCH_H
#define OUTRIDER_FIXED_BATCH_H

#include "finish_batch.h"
#include "fixed.h"

#define FIXED_WORDS (FIXED_WIDE ? 2 : 1)

/* Results of `count` rows; `rows` is how many the sums have room for, a multiple of FINISH_LANES. */
INLINE void fixed_finish(const int32_t *memory, size_t rows, float *results, uint32_t count) {
    for (uint32_t row = 0; row < count; row += FINISH_LANES) {
        sum_t sums[OUTPUTS * FINISH_LANES] __attribute__((aligned(64)));
        for (uint32_t i = 0; i < OUTPUTS; i++) {
            const int32_t *first = memory + (size_t)i * FIXED_WORDS * rows + row;
            FINISH_EACH(lane) sums[i * FINISH_LANES + lane] =
                FIXED_WIDE ? fixed_sum(first[lane], (uint32_t)first[rows + lane], i) : fixed_first(first[lane], i);
        }
        finish_lanes(sums, FINISH_LANES, results + (size_t)row * COLUMNS_OUT,
                     count - row < FINISH_LANES ? count - row : FINISH_LANES);
    }
}

#endif
