/* One row's floats to ranks of virtual columns, a byte each (quantise.py), and those of 64 nodes at once, for AVX-512
 * with VBMI.
 *
 * Idea: a feature's bounds are searched by sixteens: a compare and a population count find the sixteen, and another two
 * the place in it. The ranks stay in one to four registers, where one to three byte permutes find those that 64 nodes
 * ask for; a compare with their positions gives 64 decisions as one mask.
 *
 * Cost model, in cycles: 10 a chunk, and 2 (64 columns) to 5 (256) a mask.
 *
 * Limits: 256 columns. The tables' names start with SINGLE_; an artifact has one row kernel only.
 */
#ifndef OUTRIDER_SINGLE_H
#define OUTRIDER_SINGLE_H

#include <immintrin.h>

#include "common.h"
#include "keys.h"
#include "single_tables.h"

#define SINGLE_UNROLL _Pragma("clang loop unroll(full)")
#define SINGLE_BYTES (64 * SINGLE_REGISTERS + 64) /* ranks, and behind them a line for those that no node reads */

typedef struct { __m512i part[SINGLE_REGISTERS]; } single_ranks_t;

/* `left` and `right`: where the rank goes, with missing values as 0 and as 255. */
INLINE void single_search(const uint32_t *row, const single_chunk_t *chunk, int levels, uint8_t *ranks) {
    uint32_t bits = row[chunk->feature], rank = 0;
    __m512i key = _mm512_set1_epi32(sort_key(bits));
    SINGLE_UNROLL for (int i = 0; i < levels; i++) {
        __m512i bounds = _mm512_load_si512(SINGLE_BOUNDS + chunk->level[i] + 16 * rank);
        rank = 16 * rank + (uint32_t)__builtin_popcount(_mm512_cmple_epi32_mask(bounds, key));
    }
    int missing = is_missing(bits);
    ranks[chunk->left] = missing ? 0 : (uint8_t)rank;
    ranks[chunk->right] = missing ? 255 : (uint8_t)rank;
}

/* `scratch`: SINGLE_BYTES, aligned to 64. */
INLINE void single_fill(const uint32_t *row, uint8_t *scratch) {
    const single_chunk_t *chunk = SINGLE_CHUNKS;
    for (; chunk < SINGLE_CHUNKS + SINGLE_CHUNKS_1; chunk++) single_search(row, chunk, 1, scratch);
    for (; chunk < SINGLE_CHUNKS + SINGLE_CHUNKS_2; chunk++) single_search(row, chunk, 2, scratch);
}

INLINE single_ranks_t single_load(const uint8_t *scratch) {
    single_ranks_t ranks;
    SINGLE_UNROLL for (int i = 0; i < SINGLE_REGISTERS; i++) ranks.part[i] = _mm512_load_si512(scratch + 64 * i);
    return ranks;
}

/* Which of 64 nodes go right; `columns` and `positions` are theirs, a byte each, aligned to 64. */
INLINE uint64_t single_mask(single_ranks_t ranks, const uint8_t *columns, const uint8_t *positions) {
    __m512i column = _mm512_load_si512(columns);
#if SINGLE_REGISTERS == 1
    __m512i rank = _mm512_permutexvar_epi8(column, ranks.part[0]);
#else
    __m512i rank = _mm512_permutex2var_epi8(ranks.part[0], column, ranks.part[1]);
#if SINGLE_REGISTERS == 4
    __m512i high = _mm512_permutex2var_epi8(ranks.part[2], column, ranks.part[3]);
    rank = _mm512_mask_mov_epi8(rank, _mm512_movepi8_mask(column), high);
#endif
#endif
    return _cvtmask64_u64(_mm512_cmpgt_epu8_mask(rank, _mm512_load_si512(positions)));
}

#endif
