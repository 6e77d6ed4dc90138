/* Sums -> results: average, transform, complement. What every kernel ends with.
 *
 * Idea: the forest's arithmetic (`forest.h`) is settled by macros, so only the one transform is compiled. A row's sums
 * are of sum_t (float or double, as the source library adds) and start at START; results are float32.
 *
 * Exactness: in double from the sum on, with the functions of math.h, so results do not depend on the target.
 */
#ifndef OUTRIDER_FINISH_H
#define OUTRIDER_FINISH_H

#include "common.h"
#include "forest.h"
#include "math.h"

INLINE double transform(double x) {
#if TRANSFORM == SIGMOID
    return 1.0 / (1.0 + exponential(-SCALE * x));
#elif TRANSFORM == EXPONENTIAL
    return exponential(x);
#elif TRANSFORM == EXPONENTIAL_RATIO
    return exponential(-0.6931471805599453 * x / SCALE);
#elif TRANSFORM == ISOLATION
    return -exponential(-0.6931471805599453 * x / SCALE);
#elif TRANSFORM == HINGE
    return x > 0.0 ? 1.0 : 0.0;
#elif TRANSFORM == SIGNED_SQUARE
    return x < 0.0 ? -(x * x) : x * x;
#elif TRANSFORM == LOG_ONE_PLUS_EXP
    return log_one_plus_exp(x);
#else
    return x;
#endif
}

/* One row: OUTPUTS sums -> COLUMNS_OUT results. */
INLINE void finish(const sum_t *sums, float *result) {
    double value[OUTPUTS];
    for (uint32_t i = 0; i < OUTPUTS; i++) value[i] = (double)AVERAGED(sums[i], i);
#if TRANSFORM == SOFTMAX || TRANSFORM == SOFTMAX_ZERO || TRANSFORM == ARGMAX
    uint32_t best = 0;
    for (uint32_t i = 1; i < OUTPUTS; i++)
        if (value[i] > value[best]) best = i;
#if TRANSFORM == ARGMAX
    result[0] = (float)best;
#else
    double most = value[best], total = 0.0;
#if TRANSFORM == SOFTMAX_ZERO
    /* What is 0, or within 1e-7f of it, takes no part: it stays, by the factor that the others have. */
    for (uint32_t i = 0; i < OUTPUTS; i++) {
        int takes_part = value[i] > (double)1e-7f || value[i] < -(double)1e-7f;
        value[i] = takes_part ? exponential(value[i] - most) : value[i] * exponential(-most);
        if (takes_part) total += value[i];
    }
#else
    for (uint32_t i = 0; i < OUTPUTS; i++) total += value[i] = exponential(value[i] - most);
#endif
    for (uint32_t i = 0; i < OUTPUTS; i++) result[i] = (float)(value[i] / total);
#endif
#elif COMPLEMENT
    double p = transform(value[0]);
    result[0] = (float)(1.0 - p);
    result[1] = (float)p;
#else
    for (uint32_t i = 0; i < OUTPUTS; i++) result[i] = (float)transform(value[i]);
#endif
}

#endif
