/* Sums -> results for many rows: what finish.h does to one, in loops over FINISH_LANES rows that compilers vectorise.
 *
 * Limits: 256 outputs, whose sums of a few rows lie on the stack. Sums lie [outputs][rows], as kernels that keep rows
 * in lanes leave them. The arithmetic is that of finish.h to the last bit: each row takes the same operations in the
 * same order.
 */
#ifndef OUTRIDER_FINISH_BATCH_H
#define OUTRIDER_FINISH_BATCH_H

#include "finish.h"

#define FINISH_LANES 16
#define FINISH_EACH(lane) for (uint32_t lane = 0; lane < FINISH_LANES; lane++)

/* FINISH_LANES rows of sums, `stride` apart from output to output, to the results of the first `count`. */
INLINE void finish_lanes(const sum_t *sums, size_t stride, float *results, uint32_t count) {
#if TRANSFORM == SOFTMAX
    double value[OUTPUTS][FINISH_LANES], most[FINISH_LANES], total[FINISH_LANES];
    for (uint32_t i = 0; i < OUTPUTS; i++)
        FINISH_EACH(lane) value[i][lane] = (double)AVERAGED(sums[i * stride + lane], i);
    FINISH_EACH(lane) most[lane] = value[0][lane];
    for (uint32_t i = 1; i < OUTPUTS; i++)
        FINISH_EACH(lane) most[lane] = value[i][lane] > most[lane] ? value[i][lane] : most[lane];
    FINISH_EACH(lane) total[lane] = 0.0;
    for (uint32_t i = 0; i < OUTPUTS; i++) {
        FINISH_EACH(lane) value[i][lane] = exponential(value[i][lane] - most[lane]);
        FINISH_EACH(lane) total[lane] += value[i][lane];
    }
    float part[OUTPUTS][FINISH_LANES];
    for (uint32_t i = 0; i < OUTPUTS; i++) FINISH_EACH(lane) part[i][lane] = (float)(value[i][lane] / total[lane]);
    for (uint32_t row = 0; row < count; row++)
        for (uint32_t i = 0; i < OUTPUTS; i++) results[(size_t)row * OUTPUTS + i] = part[i][row];
#elif TRANSFORM == ARGMAX || COMPLEMENT || OUTPUTS > 1
    for (uint32_t row = 0; row < count; row++) {
        sum_t own[OUTPUTS];
        for (uint32_t i = 0; i < OUTPUTS; i++) own[i] = sums[i * stride + row];
        finish(own, results + (size_t)row * COLUMNS_OUT);
    }
#else
    float result[FINISH_LANES];
    FINISH_EACH(lane) result[lane] = (float)transform((double)AVERAGED(sums[lane], 0));
    if (count == FINISH_LANES) {
        FINISH_EACH(lane) results[lane] = result[lane];
    } else {
        for (uint32_t row = 0; row < count; row++) results[row] = result[row];
    }
    (void)stride;
#endif
}

/* `count` rows; `sums` has room for that many, rounded up to FINISH_LANES. */
INLINE void finish_rows(const sum_t *sums, size_t stride, float *results, uint32_t count) {
    for (uint32_t row = 0; row < count; row += FINISH_LANES)
        finish_lanes(sums + row, stride, results + (size_t)row * COLUMNS_OUT,
                     count - row < FINISH_LANES ? count - row : FINISH_LANES);
}

#endif
