/* float64 rows -> the float32 rows that kernels take, as narrow.py says; and float32 rows with ranks in them.
 *
 * Idea: where the source decides in float32, a double is rounded to the nearest. Where it decides in doubles, a double
 * x between two float32 is rounded up, unless a limit t of its feature has x <= t and lies below the float32 above x;
 * then down. Few numbers lie that near to a limit, so a Bloom filter, asked for the feature and the float32 above,
 * tells nearly all of the others apart; what passes is searched for among the limits of the feature. Numbers of ranked
 * features are replaced by their place among the limits, and categories by whole numbers.
 *
 * Cost: about 12 cycles a number, 6 where there are vectors to gather with, and a binary search for each number that
 * passes the filter. Rounding to the nearest takes less than one.
 *
 * Exactness: of doubles on integers, so that subnormals count though a CPU flushes them, but for categories between
 * -1e-308 and 0. Rounding to the nearest is the CPU's own, as it is the source library's.
 */
#ifndef OUTRIDER_NARROW_H
#define OUTRIDER_NARROW_H

#include "common.h"
#include "forest.h"
#include "narrow_tables.h"

#define NARROW_RARE static __attribute__((noinline, unused)) /* kept out of the loops; not every forest needs all */
#define NARROW_INFINITE 0x7ff0000000000000u
#define NARROW_NORMAL ((uint64_t)897 << 52) /* the least double that is a normal float32, and the first beyond them */
#define NARROW_BEYOND ((uint64_t)1151 << 52)
#define NARROW_REBIAS ((uint64_t)896 << 52) /* between the exponents of double and float32 */
#define NARROW_NAN 0x7fc00000u
#define NARROW_TINY 0x0554ad2eu /* the float32 nearest to 1e-35, as in keys.h */
#define NARROW_SIGN 0x80000000u

INLINE uint64_t narrow_bits(double value) {
    union { double value; uint64_t bits; } word = {value};
    return word.bits;
}

INLINE float narrow_float(uint32_t bits) {
    union { uint32_t bits; float value; } word = {bits};
    return word.value;
}

INLINE uint32_t narrow_single(float value) {
    union { float value; uint32_t bits; } word = {value};
    return word.bits;
}

/* The order of doubles as int64. -0 has a key of its own, below that of +0, with no limit between them. Not for NaN. */
INLINE int64_t narrow_key(uint64_t bits) {
    return (int64_t)bits < 0 ? (int64_t)(bits ^ (~(uint64_t)0 >> 1)) : (int64_t)bits;
}

INLINE uint64_t narrow_size(uint64_t bits) { return bits & (~(uint64_t)0 >> 1); }

/* The double of a float32. Not for NaN. */
INLINE uint64_t narrow_widen(uint32_t bits) {
    uint64_t size = bits & ~NARROW_SIGN, sign = (uint64_t)(bits & NARROW_SIGN) << 32;
    if (size >= 0x7f800000u) return sign | NARROW_INFINITE;
    if (size >= 0x00800000u) return sign | ((size << 29) + NARROW_REBIAS);
    return size ? sign | (narrow_bits((double)size) - ((uint64_t)149 << 52)) : sign;
}

/* The least float32 that is not below a double. */
INLINE uint32_t narrow_up(uint64_t bits) {
    uint64_t size = narrow_size(bits), digits = size, rest;
    uint32_t below, negative = (uint32_t)(bits >> 63);
    int shift = 29;
    if (size > NARROW_INFINITE) return NARROW_NAN;
    if (size >= NARROW_BEYOND) {
        if (negative) return size == NARROW_INFINITE ? 0xff800000u : 0xff7fffffu;
        return 0x7f800000u;
    }
    if (size < NARROW_NORMAL) {
        shift = 926 - (int)(size >> 52);
        if (shift > 63) shift = 63;
        digits = (size & (((uint64_t)1 << 52) - 1)) | (uint64_t)(size != 0) << 52;
    } else {
        digits -= NARROW_REBIAS;
    }
    below = (uint32_t)(digits >> shift);
    rest = digits & (((uint64_t)1 << shift) - 1);
    return negative ? below | NARROW_SIGN : below + (rest != 0);
}

/* The float32 below one that is not +0. */
INLINE uint32_t narrow_down(uint32_t bits) { return bits & NARROW_SIGN ? bits + 1 : bits - 1; }

/* How many limits of a feature are below a key. */
INLINE uint32_t narrow_place(uint32_t feature, int64_t key) {
    const int64_t *first = NARROW_LIMITS + NARROW_FIRST[feature];
    uint32_t count = NARROW_FIRST[feature + 1] - NARROW_FIRST[feature], place = 0;
    while (count) {
        uint32_t half = (count + 1) / 2;
        place += first[place + half - 1] < key ? half : 0;
        count -= half;
    }
    return place;
}

/* Whether a limit may lie just below this float32: three bits of a word are set then. Always for -1e-35 where zero is
 * missing. */
INLINE uint32_t narrow_near(uint32_t feature, uint32_t up) {
    uint32_t mixed = up + feature * 0x9e3779b9u;
    mixed = (mixed ^ mixed >> 15) * 0x85ebca6bu;
    uint32_t bits = 1u << (mixed >> 13 & 31) | 1u << (mixed >> 8 & 31) | 1u << (mixed >> 3 & 31);
    return !(bits & ~NARROW_FILTER[mixed >> 18 >> (14 - NARROW_FILTER_LOG)]);
}

/* The float32 for a double that is rounded `up` to one that may have a limit just below it. Where zero is missing, the
 * float32 before and after the tiny ones are neighbours. */
NARROW_RARE uint32_t narrow_search(uint32_t feature, uint64_t bits, uint32_t up) {
    const uint32_t after = NARROW_TINY + 1, before = after | NARROW_SIGN, tiny = NARROW_TINY | NARROW_SIGN;
    int64_t key = narrow_key(bits);
    if (ZERO_IS_MISSING && up == tiny && bits != narrow_widen(tiny)) up = after;
    uint32_t at = NARROW_FIRST[feature] + narrow_place(feature, key);
    if (at == NARROW_FIRST[feature + 1] || NARROW_LIMITS[at] >= narrow_key(narrow_widen(up))) return up;
    return ZERO_IS_MISSING && up == after ? before : narrow_down(up);
}

/* A category as a whole number; -1 for an unknown one. */
INLINE float narrow_category(double x) {
    if (x != x) return narrow_float(NARROW_NAN);
    if (!(NEGATIVE_FRACTION_IS_ZERO ? x > -1.0 : x >= 0.0) || x >= 16777216.0) return -1.0f;
    int32_t number = (int32_t)x;
    return EXACT_CATEGORIES && (double)number != x ? -1.0f : (float)number;
}

/* A number's place among all limits of its feature, from 1 on; 0 for numbers that are missing since they are tiny. */
NARROW_RARE float narrow_rank(uint32_t feature, uint64_t bits) {
    if (narrow_size(bits) > NARROW_INFINITE) return narrow_float(NARROW_NAN);
    if (ZERO_IS_MISSING && narrow_size(bits) <= narrow_widen(NARROW_TINY)) return 0.0f;
    return (float)(1 + narrow_place(feature, narrow_key(bits)));
}

/* One row of doubles. Numbers that are 0, NaN or normal float32 take a loop that compilers turn into vectors. */
INLINE void narrow_row(const double *row, float *out) {
#if NARROW_NEAREST
    for (uint32_t i = 0; i < FEATURES; i++) out[i] = (float)row[i];
#else
    uint64_t odd = 0;
    for (uint32_t i = 0; i < FEATURES; i++) {
        uint64_t bits = narrow_bits(row[i]), size = narrow_size(bits);
        uint32_t below = (uint32_t)((size - NARROW_REBIAS) >> 29), sign = (uint32_t)(bits >> 32) & NARROW_SIGN;
        uint32_t more = (size & 0x1fffffff) != 0 && !sign;
        uint32_t found = sign | (below + more);
        found = size ? found : sign;
        found = size > NARROW_INFINITE ? NARROW_NAN : found;
        odd |= (size - 1 < NARROW_NORMAL - 1) | (size - NARROW_BEYOND <= NARROW_INFINITE - NARROW_BEYOND);
        out[i] = narrow_float(found);
    }
    if (odd)
        for (uint32_t i = 0; i < FEATURES; i++) out[i] = narrow_float(narrow_up(narrow_bits(row[i])));
#if NARROW_FILTERED
    uint32_t near = 0;
    for (uint32_t i = 0; i < FEATURES; i++) near |= narrow_near(i, narrow_single(out[i]));
    for (uint32_t i = 0; near && i < FEATURES; i++) {
        uint32_t up = narrow_single(out[i]);
        if (narrow_near(i, up)) out[i] = narrow_float(narrow_search(i, narrow_bits(row[i]), up));
    }
#endif
    for (uint32_t i = 0; i < NARROW_CATEGORIES; i++)
        out[NARROW_CATEGORY[i]] = narrow_category(row[NARROW_CATEGORY[i]]);
    for (uint32_t i = 0; i < NARROW_RANKED; i++)
        out[NARROW_RANK[i]] = narrow_rank(NARROW_RANK[i], narrow_bits(row[NARROW_RANK[i]]));
#endif
}

/* One row of float32, where features are ranked. */
INLINE void narrow_copy(const float *row, float *out) {
    for (uint32_t i = 0; i < FEATURES; i++) out[i] = row[i];
    for (uint32_t i = 0; i < NARROW_RANKED; i++) {
        uint32_t bits = narrow_single(row[NARROW_RANK[i]]);
        if ((bits & ~NARROW_SIGN) <= 0x7f800000u) out[NARROW_RANK[i]] = narrow_rank(NARROW_RANK[i], narrow_widen(bits));
    }
}

#endif
