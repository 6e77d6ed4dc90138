/* Leaf numbers of 64 rows -> sums: values are integers (fixed.py), looked up a byte at a time, for AVX-512 with VBMI.
 *
 * Idea: a tree's values are four tables, one for each byte of an int32, the lowest first. One permute finds a byte for
 * 64 leaves, two or four where a tree has more than 64 or 128; unpacks put the bytes together and, on the way, undo the
 * order in which ranks.h leaves the rows. Sums of integers are exact, so they may be taken in any order.
 *
 * Wide values have a second word of 24 bits, which is added apart and carried over before it overflows.
 *
 * Cost model: a tree and 64 rows take 4, 8 or 16 permutes (64, 128 or 256 leaves) and 12 cheap instructions; wide ones
 * nearly twice as many.
 */
#ifndef OUTRIDER_PLANES_H
#define OUTRIDER_PLANES_H

#include <immintrin.h>

#include "common.h"
#include "fixed_batch.h"

#define PLANES_UNROLL _Pragma("clang loop unroll(full)")
#define PLANES (FIXED_WIDE ? 7 : 4) /* tables a tree */

/* Sums of 64 rows: `first` is what there is, `second` only counts for wide values. */
typedef struct { __m512i first[4], second[4]; } planes_sums_t;

/* Bytes of `leaves` 64, 128 or 256 entries, by the numbers of 64 leaves. */
INLINE __m512i planes_byte(const uint8_t *table, __m512i leaf, int leaves) {
    __m512i low = _mm512_load_si512(table);
    if (leaves <= 64) return _mm512_permutexvar_epi8(leaf, low);
    low = _mm512_permutex2var_epi8(low, leaf, _mm512_load_si512(table + 64));
    if (leaves <= 128) return low;
    __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(table + 128), leaf, _mm512_load_si512(table + 192));
    return _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(leaf), high);
}

/* Add words of 64 rows, given by their bytes. */
INLINE void planes_add_words(__m512i byte0, __m512i byte1, __m512i byte2, __m512i byte3, __m512i *sums) {
    __m512i low01 = _mm512_unpacklo_epi8(byte0, byte1), low23 = _mm512_unpacklo_epi8(byte2, byte3);
    __m512i high01 = _mm512_unpackhi_epi8(byte0, byte1), high23 = _mm512_unpackhi_epi8(byte2, byte3);
    sums[0] = _mm512_add_epi32(sums[0], _mm512_unpacklo_epi16(low01, low23));
    sums[1] = _mm512_add_epi32(sums[1], _mm512_unpackhi_epi16(low01, low23));
    sums[2] = _mm512_add_epi32(sums[2], _mm512_unpacklo_epi16(high01, high23));
    sums[3] = _mm512_add_epi32(sums[3], _mm512_unpackhi_epi16(high01, high23));
}

/* Add a tree's values for the leaves of 64 rows. `tables`: PLANES of `leaves` bytes. */
INLINE void planes_add(const uint8_t *tables, __m512i leaf, planes_sums_t *sums, int leaves) {
    planes_add_words(planes_byte(tables, leaf, leaves), planes_byte(tables + leaves, leaf, leaves),
                     planes_byte(tables + 2 * leaves, leaf, leaves), planes_byte(tables + 3 * leaves, leaf, leaves),
                     sums->first);
    if (FIXED_WIDE)
        planes_add_words(planes_byte(tables + 4 * leaves, leaf, leaves), planes_byte(tables + 5 * leaves, leaf, leaves),
                         planes_byte(tables + 6 * leaves, leaf, leaves), _mm512_setzero_si512(), sums->second);
}

/* Bring what the second words have beyond 24 bits over to the first. */
INLINE void planes_carry(planes_sums_t *sums) {
    if (!FIXED_WIDE) return;
    PLANES_UNROLL for (int q = 0; q < 4; q++) {
        sums->first[q] = _mm512_add_epi32(sums->first[q], _mm512_srli_epi32(sums->second[q], FIXED_LOW_BITS));
        sums->second[q] = _mm512_and_si512(sums->second[q], _mm512_set1_epi32((1 << FIXED_LOW_BITS) - 1));
    }
}

/* Sums in memory are as fixed_batch.h reads them. */
INLINE void planes_load(const int32_t *memory, size_t rows, planes_sums_t *sums) {
    PLANES_UNROLL for (int q = 0; q < 4; q++) {
        sums->first[q] = _mm512_load_si512(memory + 16 * q);
        if (FIXED_WIDE) sums->second[q] = _mm512_load_si512(memory + rows + 16 * q);
    }
}

INLINE void planes_store(int32_t *memory, size_t rows, const planes_sums_t *sums) {
    PLANES_UNROLL for (int q = 0; q < 4; q++) {
        _mm512_store_si512(memory + 16 * q, sums->first[q]);
        if (FIXED_WIDE) _mm512_store_si512(memory + rows + 16 * q, sums->second[q]);
    }
}

#endif
