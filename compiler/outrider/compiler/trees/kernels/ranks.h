/* Floats of 64 rows to ranks of virtual columns, a byte a row (quantise.py), for AVX-512 with VBMI.
 *
 * Idea: no gathers. Four features of 64 rows are brought in by 16-byte loads at any stride, transposed 4 x 4 inside
 * the lanes, and turned into integer keys. A key is searched for in a chunk's bounds by permutes alone: none at the
 * first level, one at the next four, then up to 1, 2 and 4 two-register permutes, fewer where the last level has few
 * bounds (quantise.py).
 *
 * Cost model: per chunk and 64 rows about 4 * (5 + 2 * levels + permutes) instructions, 8 levels about 140.
 *
 * Order: byte 16 j + 4 q + i of a column is row 16 q + 4 j + i, which is what packs inside the lanes leave. Unpacks
 * inside the lanes bring it back, so kernels that widen by unpacking never pay for it.
 *
 * Limits: rows of at least 4 floats (the last group of features overlaps its neighbour, so no row is read past its
 * end). Exactness: keys are integers, hence decisions are exact for every float32, whatever the rounding and flushing
 * modes of the caller.
 */
#ifndef OUTRIDER_RANKS_H
#define OUTRIDER_RANKS_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "bounds.h"
#include "columns.h"
#include "common.h"

#define RANKS_ROWS 64
#define RANKS_TINY 0x0554ad2e /* bits of the last float32 whose size is not above 1e-35 */

/* What varies in how a source reads a number: see Forest. `inverted`: whether any complement is read. */
typedef struct { int zero_is_missing, tiny_is_zero, inverted; } ranks_rules_t;

#define RANKS_UNROLL _Pragma("clang loop unroll(full)")

/* 64 rows x 4 floats, `stride` floats apart, to 4 x 64. */
INLINE void ranks_transpose(const float *rows, size_t stride, float *out) {
    RANKS_UNROLL for (int q = 0; q < 4; q++) {
        __m512 a[4];
        RANKS_UNROLL for (int i = 0; i < 4; i++) {
            const float *row = rows + (size_t)(16 * q + i) * stride;
            a[i] = _mm512_castps128_ps512(_mm_loadu_ps(row));
            a[i] = _mm512_insertf32x4(a[i], _mm_loadu_ps(row + 4 * stride), 1);
            a[i] = _mm512_insertf32x4(a[i], _mm_loadu_ps(row + 8 * stride), 2);
            a[i] = _mm512_insertf32x4(a[i], _mm_loadu_ps(row + 12 * stride), 3);
        }
        __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(a[0], a[1]));
        __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(a[0], a[1]));
        __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(a[2], a[3]));
        __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(a[2], a[3]));
        _mm512_store_pd(out + 16 * q, _mm512_unpacklo_pd(low01, low23));
        _mm512_store_pd(out + 64 + 16 * q, _mm512_unpackhi_pd(low01, low23));
        _mm512_store_pd(out + 128 + 16 * q, _mm512_unpacklo_pd(high01, high23));
        _mm512_store_pd(out + 192 + 16 * q, _mm512_unpackhi_pd(high01, high23));
    }
}

/* A constant that the compiler cannot see through. It would turn masked additions of a known one into mask to vector,
 * shift and or. */
INLINE __m512i ranks_opaque(__m512i value) {
    __asm__("" : "+v"(value));
    return value;
}

/* The bounds at level 5, 6 or 7, of which there are `pairs` pairs of registers: which one, say the decisions of levels
 * 5 and 6. Where there is none for a decision, `none` is set. */
INLINE __m512i ranks_deep(const int32_t *table, __m512i at, int pairs, __mmask16 at5, __mmask16 at6, __mmask16 *none) {
#define RANKS_PAIR(i) \
    _mm512_permutex2var_epi32(_mm512_load_si512(table + 32 * (i)), at, _mm512_load_si512(table + 32 * (i) + 16))
    __m512i low = RANKS_PAIR(0);
    if (pairs > 1) low = _mm512_mask_mov_epi32(low, at5, RANKS_PAIR(1));
    if (pairs <= 2) {
        *none = pairs == 1 ? at5 | at6 : at6;
        return low;
    }
    __m512i high = RANKS_PAIR(2);
    if (pairs == 4) high = _mm512_mask_mov_epi32(high, at5, RANKS_PAIR(3));
    *none = pairs == 4 ? 0 : at5 & at6;
    return _mm512_mask_mov_epi32(low, at6, high);
}

/* The bounds at levels 0 to 4. Few entries are loaded as often as a permute needs them. */
INLINE __m512i ranks_shallow(const int32_t *table, __m512i at, int level, __mmask16 above0) {
    switch (level) {
    case 0: return _mm512_set1_epi32(table[14]);
    case 1: return _mm512_mask_mov_epi32(_mm512_set1_epi32(table[12]), above0, _mm512_set1_epi32(table[13]));
    case 2: {
        __m512 four = _mm512_broadcast_f32x4(_mm_load_ps((const float *)(table + 8)));
        return _mm512_castps_si512(_mm512_permutevar_ps(four, at));
    }
    case 3: {
        __m512i eight = _mm512_broadcast_i32x8(_mm256_load_si256((const __m256i *)table));
        return _mm512_permutexvar_epi32(at, eight);
    }
    default: return _mm512_permutexvar_epi32(at, _mm512_load_si512(table + 16));
    }
}

/* The decision of 16 keys at `level`, given those of the levels above: as bits 0 to level - 1 of `at`, and as masks of
 * levels 0, 5 and 6. */
INLINE __mmask16 ranks_step(__m512i keys, const int32_t *table, __m512i at, int level, int pairs, __mmask16 above0,
                            __mmask16 at5, __mmask16 at6) {
    if (level < 5) return _mm512_cmple_epi32_mask(ranks_shallow(table, at, level, above0), keys);
    __mmask16 none;
    const int32_t *own = table + 16 * (2 + (level > 5 ? 2 : 0) + (level > 6 ? 4 : 0));
    __m512i bounds = ranks_deep(own, at, pairs, at5, at6, &none);
    return _mm512_mask_cmple_epi32_mask((__mmask16)~none, bounds, keys);
}

/* Ranks of 64 keys by a search of `levels` levels. The first decision is a rank's highest bit, but the lowest of an
 * index, so that a level costs one addition and no test; the bits are reversed at the end. */
INLINE __m512i ranks_search(const __m512i *keys, const int32_t *table, int levels, int pairs) {
    __m512i at[4];
    __mmask16 above[8][4] = {{0}};
    RANKS_UNROLL for (int level = 0; level < levels; level++) {
        __m512i bit = ranks_opaque(_mm512_set1_epi32(1 << level));
        int own = level + 1 == levels ? pairs : level == 6 ? 2 : 1;
        RANKS_UNROLL for (int q = 0; q < 4; q++) {
            above[level][q] = ranks_step(keys[q], table, at[q], level, own, above[0][q], above[5][q], above[6][q]);
            at[q] = level ? _mm512_mask_add_epi32(at[q], above[level][q], at[q], bit)
                          : _mm512_maskz_mov_epi32(above[level][q], bit);
        }
    }
    __m512i bytes = _mm512_packus_epi16(_mm512_packus_epi32(at[0], at[1]), _mm512_packus_epi32(at[2], at[3]));
    /* Row r of this matrix of bits takes bit r to bit levels - 1 - r. */
    __m512i reversal = _mm512_set1_epi64((long long)(0x8040201008040201u << (8 * (8 - levels))));
    return _mm512_gf2p8affine_epi64_epi8(bytes, reversal, 0);
}

INLINE __m512i ranks_of_keys(const __m512i *keys, const int32_t *table, uint32_t kind) {
#define RANKS_KIND(levels, pairs) \
    if (kind == (levels << 4 | pairs)) return ranks_search(keys, table, levels, pairs);
    BOUNDS_EACH_KIND(RANKS_KIND)
    __builtin_unreachable();
}

/* 64 floats to raw keys; returns 255 in the bytes, in the order of ranks, of those that are missing. */
INLINE __m512i ranks_keys(const float *floats, __m512i *keys, ranks_rules_t rules) {
    __m512i missing[4];
    RANKS_UNROLL for (int q = 0; q < 4; q++) {
        __m512i bits = _mm512_load_si512(floats + 16 * q);
        __m512i sign = _mm512_srai_epi32(bits, 31);
        __mmask16 nan = _mm512_cmp_ps_mask(_mm512_castsi512_ps(bits), _mm512_castsi512_ps(bits), _CMP_UNORD_Q);
        keys[q] = _mm512_xor_si512(bits, _mm512_and_si512(sign, _mm512_set1_epi32(0x7fffffff)));
        if (rules.zero_is_missing || rules.tiny_is_zero) {
            __m512i size = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
            __mmask16 tiny = _mm512_cmple_epi32_mask(size, _mm512_set1_epi32(RANKS_TINY));
            if (rules.tiny_is_zero) keys[q] = _mm512_mask_mov_epi32(keys[q], tiny, _mm512_setzero_si512());
            if (rules.zero_is_missing) nan |= tiny;
        }
        missing[q] = _mm512_movm_epi32(nan);
    }
    return _mm512_packs_epi16(_mm512_packs_epi32(missing[0], missing[1]), _mm512_packs_epi32(missing[2], missing[3]));
}

/* Ranks of 64 rows, `stride` floats apart, into `columns` (64-byte aligned, as are the chunks' offsets). */
static __attribute__((noinline, unused)) void ranks_fill(const float *rows, size_t stride, const ranks_group_t *group,
                                                         uint32_t groups, const ranks_chunk_t *chunk,
                                                         const int32_t *tables, uint8_t *columns, ranks_rules_t rules) {
    float values[4 * RANKS_ROWS] __attribute__((aligned(64)));
    for (const ranks_group_t *end = group + groups; group < end; group++) {
        ranks_transpose(rows + group->first, stride, values);
        for (const ranks_chunk_t *last = chunk + group->chunks; chunk < last; chunk++) {
            __m512i keys[4], missing = ranks_keys(values + RANKS_ROWS * chunk->lane, keys, rules);
            __m512i ranks = ranks_of_keys(keys, tables + chunk->table, chunk->kind);
            __m512i left = _mm512_andnot_si512(missing, ranks), right = _mm512_or_si512(missing, ranks);
            _mm512_store_si512(columns + chunk->left, left);
            _mm512_store_si512(columns + chunk->right, right);
            if (!rules.inverted) continue;
            const __m512i ones = _mm512_set1_epi32(-1);
            _mm512_store_si512(columns + chunk->not_left, _mm512_xor_si512(left, ones));
            _mm512_store_si512(columns + chunk->not_right, _mm512_xor_si512(right, ones));
        }
    }
}

#endif
