/* Sums of integers (fixed.py) -> sums of the forest's own type, with what they start at.
 *
 * `forest.h` gives FIXED_UNIT, what 1 stands for, and FIXED_WIDE: whether values have a second word of FIXED_LOW_BITS.
 */
#ifndef OUTRIDER_FIXED_H
#define OUTRIDER_FIXED_H

#include "common.h"
#include "forest.h"

#define FIXED_CARRY_EVERY 255 /* trees, after which second words are about to overflow */

/* Sums of first and of second words. The same number gives the same result, however the two share it. */
INLINE sum_t fixed_sum(int64_t first, int64_t second, uint32_t output) {
    double sum = (double)(first + (second >> FIXED_LOW_BITS));
    sum += (double)(second & ((1 << FIXED_LOW_BITS) - 1)) * (1.0 / (1 << FIXED_LOW_BITS));
    return (sum_t)((double)START[output] + sum * FIXED_UNIT);
}

/* Where there are no second words. */
INLINE sum_t fixed_first(int32_t first, uint32_t output) {
    return (sum_t)((double)START[output] + (double)first * FIXED_UNIT);
}

#endif
