/* One row's floats to ranks of virtual columns, a byte each (quantise.py), and those of 64 nodes at once, for AVX-512
 * with VBMI.
 *
 * Idea: sixteen features at a time become raw keys and bytes that are 255 where a value is missing. A feature's bounds
 * are searched by sixteens: a compare and a population count find the sixteen, and another two the place in it. The
 * ranks stay in one to four registers, where one to three byte permutes find those that 64 nodes ask for; a compare
 * with their positions gives 64 decisions as one mask.
 *
 * Cost model, in cycles: 0.5 a feature, 4 a chunk, and 2 (64 columns) to 5 (256) a mask.
 *
 * Limits: masks are for 256 columns; beyond, ranks are in memory only (SINGLE_REGISTERS is 0). The tables' names start
 * with SINGLE_; where both kernels of an artifact read them, they are the same ones.
 */
#ifndef OUTRIDER_SINGLE_H
#define OUTRIDER_SINGLE_H

#include <immintrin.h>

#include "common.h"
#include "keys.h"
#include "single_tables.h"

#define SINGLE_UNROLL _Pragma("clang loop unroll(full)")

/* Scratch, in lines: keys of features, bytes of missing ones, ranks, and a line for ranks that no node reads. */
#define SINGLE_MISSING (4 * (FEATURES + 15) / 64 * 64)
#define SINGLE_RANKS (SINGLE_MISSING + (FEATURES + 63) / 64 * 64)
#define SINGLE_BYTES (SINGLE_RANKS + SINGLE_RANK_BYTES + 64)

/* ---- ranks ---- */

/* Raw keys, and 255 for what is missing. */
INLINE void single_keys(const uint32_t *row, uint8_t *scratch) {
    const __m512i all_but_sign = _mm512_set1_epi32(0x7fffffff), tiny = _mm512_set1_epi32(TINY_BITS);
    for (int first = 0; first < FEATURES; first += 16) {
        __mmask16 there = FEATURES - first < 16 ? (__mmask16)((1 << (FEATURES - first)) - 1) : (__mmask16)0xffff;
        __m512i bits = _mm512_maskz_loadu_epi32(there, row + first), size = _mm512_and_si512(bits, all_but_sign);
        __mmask16 missing = _mm512_cmpgt_epi32_mask(size, _mm512_set1_epi32(0x7f800000));
        if (ZERO_IS_MISSING) missing |= _mm512_cmple_epi32_mask(size, tiny);
        __m512i key = _mm512_xor_si512(bits, _mm512_and_si512(_mm512_srai_epi32(bits, 31), all_but_sign));
        if (TINY_IS_ZERO) key = _mm512_maskz_mov_epi32(_mm512_cmpgt_epi32_mask(size, tiny), key);
        key = _mm512_mask_mov_epi32(key, missing, _mm512_set1_epi32(INT32_MIN)); /* a NaN may be above every bound */
        _mm512_store_si512(scratch + 4 * first, key);
        _mm_store_si128((__m128i *)(scratch + SINGLE_MISSING + first), _mm_movm_epi8(missing));
    }
}

/* `left` and `right`: where the rank goes, with missing values as 0 and as 255. */
INLINE void single_search(const single_chunk_t *chunk, int levels, uint8_t *scratch) {
    __m512i key = _mm512_set1_epi32(((const int32_t *)scratch)[chunk->feature]);
    uint32_t rank = 0, missing = scratch[SINGLE_MISSING + chunk->feature];
    SINGLE_UNROLL for (int i = 0; i < levels; i++) {
        __m512i bounds = _mm512_load_si512(SINGLE_BOUNDS + chunk->level[i] + 16 * rank);
        rank = 16 * rank + (uint32_t)__builtin_popcount(_mm512_cmple_epi32_mask(bounds, key));
    }
    scratch[SINGLE_RANKS + chunk->left] = (uint8_t)(rank & ~missing);
    scratch[SINGLE_RANKS + chunk->right] = (uint8_t)(rank | missing);
}

/* `scratch`: SINGLE_BYTES, aligned to 64. */
INLINE void single_fill(const uint32_t *row, uint8_t *scratch) {
    const single_chunk_t *chunk = SINGLE_CHUNKS;
    single_keys(row, scratch);
    for (; chunk < SINGLE_CHUNKS + SINGLE_CHUNKS_1; chunk++) single_search(chunk, 1, scratch);
    for (; chunk < SINGLE_CHUNKS + SINGLE_CHUNKS_2; chunk++) single_search(chunk, 2, scratch);
}

/* ---- decisions ---- */

#if SINGLE_REGISTERS
typedef struct { __m512i part[SINGLE_REGISTERS]; } single_ranks_t;

INLINE single_ranks_t single_load(const uint8_t *scratch) {
    single_ranks_t ranks;
    SINGLE_UNROLL for (int i = 0; i < SINGLE_REGISTERS; i++)
        ranks.part[i] = _mm512_load_si512(scratch + SINGLE_RANKS + 64 * i);
    return ranks;
}

/* The ranks of 64 columns. */
INLINE __m512i single_pick(single_ranks_t ranks, __m512i columns) {
#if SINGLE_REGISTERS == 1
    return _mm512_permutexvar_epi8(columns, ranks.part[0]);
#elif SINGLE_REGISTERS == 2
    return _mm512_permutex2var_epi8(ranks.part[0], columns, ranks.part[1]);
#else
    __m512i low = _mm512_permutex2var_epi8(ranks.part[0], columns, ranks.part[1]);
    __m512i high = _mm512_permutex2var_epi8(ranks.part[2], columns, ranks.part[3]);
    return _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(columns), high);
#endif
}

/* Which of 64 nodes go right; `columns` and `positions` are theirs, a byte each, aligned to 64. */
INLINE uint64_t single_mask(single_ranks_t ranks, const uint8_t *columns, const uint8_t *positions) {
    __m512i rank = single_pick(ranks, _mm512_load_si512(columns));
    return _cvtmask64_u64(_mm512_cmpgt_epu8_mask(rank, _mm512_load_si512(positions)));
}
#else
typedef const uint8_t *single_ranks_t;

INLINE single_ranks_t single_load(const uint8_t *scratch) { return scratch + SINGLE_RANKS; }
#endif

#endif
