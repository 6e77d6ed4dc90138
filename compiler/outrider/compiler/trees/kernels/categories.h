/* Categories of 64 rows -> columns of decisions: above 0 where a row goes right at a split. AVX-512 with VBMI and
 * BITALG.
 *
 * Idea: to a forest, categories that no split tells apart are one *class* (categories.py), so that a feature has few.
 * A row's class is looked up once. A split is the set of classes that go right, one bit each, in 1, 2 or 4 words. In a
 * word vpshufbitqmb looks up 64 rows at once. In more, a byte permute finds the byte that a class is in, and an and its
 * bit, for which each feature has two columns instead of one. The columns of decisions are such as ranks.h makes, so
 * that splits on categories and on numbers look the same to what comes after.
 *
 * Order of rows: that of ranks.h. Limits: 256 classes a feature, of which two are for unknown and missing categories.
 */
#ifndef OUTRIDER_CATEGORIES_H
#define OUTRIDER_CATEGORIES_H

#include "forest.h"
#include "gather.h"
#include "ranks.h"

/* Positions of 16 numbers: 0 unknown, 1 missing, c + 2 for category c, as `category` in keys.h. */
INLINE __m512i categories_positions(const float *floats, uint32_t positions) {
    __m512 x = _mm512_load_ps(floats);
    __m512 least = _mm512_set1_ps(NEGATIVE_FRACTION_IS_ZERO ? -1.0f : 0.0f);
    __mmask16 known = _mm512_cmp_ps_mask(x, least, NEGATIVE_FRACTION_IS_ZERO ? _CMP_GT_OQ : _CMP_GE_OQ) &
                      _mm512_cmp_ps_mask(x, _mm512_set1_ps((float)(positions - 2)), _CMP_LT_OQ);
    __m512i number = _mm512_cvttps_epi32(_mm512_maskz_mov_ps(known, x));
    if (EXACT_CATEGORIES) known &= _mm512_cmp_ps_mask(_mm512_cvtepi32_ps(number), x, _CMP_EQ_OQ);
    __m512i position = _mm512_maskz_add_epi32(known, number, _mm512_set1_epi32(2));
    return _mm512_mask_mov_epi32(position, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(1));
}

/* Classes of 64 rows of one feature. */
INLINE __m512i categories_classes(const float *floats, const categories_feature_t *feature, const uint8_t *classes) {
    const __mmask16 all = gather_mask();
    __m512i found[4];
    RANKS_UNROLL for (int q = 0; q < 4; q++) {
        __m512i at = categories_positions(floats + 16 * q, feature->positions);
        found[q] = _mm512_and_si512(GATHER_WORDS(all, at, classes + feature->classes, 1), _mm512_set1_epi32(255));
    }
    return _mm512_packus_epi16(_mm512_packus_epi32(found[0], found[1]), _mm512_packus_epi32(found[2], found[3]));
}

/* Columns of classes of 64 rows, `stride` floats apart. For sets of several words (`pages`) a feature has two: the byte
 * of a set that a class is in, and `next` bytes on, the bit. */
INLINE void categories_fill(const float *rows, size_t stride, const ranks_group_t *group, uint32_t groups,
                            const categories_feature_t *feature, const uint8_t *classes, uint8_t *columns, int pages,
                            size_t next) {
    float values[4 * RANKS_ROWS] __attribute__((aligned(64)));
    const __m512i bits = _mm512_set1_epi64((long long)0x8040201008040201u);
    for (const ranks_group_t *end = group + groups; group < end; group++) {
        ranks_transpose(rows + group->first, stride, values);
        for (const categories_feature_t *last = feature + group->chunks; feature < last; feature++) {
            __m512i own = categories_classes(values + RANKS_ROWS * feature->lane, feature, classes);
            __m512i place = _mm512_and_si512(_mm512_srli_epi16(own, 3), _mm512_set1_epi8(31));
            __m512i bit = _mm512_shuffle_epi8(bits, _mm512_and_si512(own, _mm512_set1_epi8(7)));
            _mm512_store_si512(columns + feature->column, pages == 1 ? own : place);
            if (pages > 1) _mm512_store_si512(columns + feature->column + next, bit);
        }
    }
}

/* The column of a split, of 64 rows by their classes. */
INLINE __m512i categories_column(const uint64_t *set, const uint8_t *classes, int pages, size_t next) {
    __m512i own = _mm512_load_si512(classes), bytes;
    if (pages == 1)
        return _mm512_movm_epi8(_mm512_bitshuffle_epi64_mask(_mm512_set1_epi64((long long)set[0]), own));
    if (pages == 2)
        bytes = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)set));
    else
        bytes = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)set));
    return _mm512_and_si512(_mm512_permutexvar_epi8(own, bytes), _mm512_load_si512(classes + next));
}

#endif
