/* Gathers of 16 words that do not wait for each other.
 *
 * A gather consumes its mask, so compilers set an all-ones mask before each by comparing a mask register with itself,
 * usually the one that the latest comparison wrote. CPUs take that for a dependency, and gathers that could overlap
 * wait for one another's decisions: on Zen 4 walks took 1.7 times as long. Here the mask is a copy of one that the
 * compiler cannot see through; take it once, outside of loops.
 */
#ifndef OUTRIDER_GATHER_H
#define OUTRIDER_GATHER_H

#include <immintrin.h>

#include "common.h"

INLINE __mmask16 gather_mask(void) {
    __mmask16 all = 0xffff;
    __asm__("" : "+k"(all));
    return all;
}

/* Words at `base` + 4 * `at`, or `scale` in place of 4. */
#define GATHER_WORDS(all, at, base, scale) _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), all, at, base, scale)

#endif
