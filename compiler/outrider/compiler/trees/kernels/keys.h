/* float32 -> integers, on which every decision is made: the C twin of forest.py's `sort_key`.
 *
 * Idea: an int32 whose order is that of the floats, with -0 equal to +0, turns `x < t`, `x <= t` and double thresholds
 * into one exact test, `sort_key(x) >= bound`. Missing values are told apart before, categories become positions in a
 * set. The forest's own rules (`forest.h`) settle what counts as missing, zero and unknown.
 *
 * Exactness: every float32 is decided as the source library decides it, subnormals included; integers only, but for the
 * truncation of categories, so that a CPU that flushes subnormals decides alike.
 */
#ifndef OUTRIDER_KEYS_H
#define OUTRIDER_KEYS_H

#include "common.h"
#include "forest.h"

INLINE int is_nan(uint32_t bits) { return (bits & 0x7fffffffu) > 0x7f800000u; }

/* |x| <= 1e-35, as LightGBM compares it: the last float32 that is not above it has these bits. */
#define TINY_BITS 0x0554ad2e
INLINE int is_tiny(uint32_t bits) { return (bits & 0x7fffffffu) <= TINY_BITS; }

/* The order of floats as int32; -0 is +0. Not for NaN. */
INLINE int32_t sort_key(uint32_t bits) {
    if (TINY_IS_ZERO && is_tiny(bits)) bits = 0;
    if (bits == 0x80000000u) bits = 0;
    return (int32_t)bits < 0 ? (int32_t)(bits ^ 0x7fffffffu) : (int32_t)bits;
}

/* Whether a numeric value takes a node's default side. */
INLINE int is_missing(uint32_t bits) { return is_nan(bits) || (ZERO_IS_MISSING && is_tiny(bits)); }

/* Position in a category set: 0 unknown, 1 missing, c + 2 for the category c. */
INLINE int32_t category(uint32_t bits) {
    if (is_nan(bits)) return 1;
    union { uint32_t bits; float value; } word = {bits};
    if (NEGATIVE_FRACTION_IS_ZERO ? word.value <= -1.0f : word.value < 0.0f) return 0;
    if (word.value >= 16777216.0f) return 0;
    int32_t number = (int32_t)word.value;
    if (EXACT_CATEGORIES && (float)number != word.value) return 0;
    return number + 2;
}

#endif
