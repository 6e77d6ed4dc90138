/* Categories of 64 rows -> columns of decisions: which rows go right at a split, 255 or 0 a row. AVX-512 with BITALG.
 *
 * Idea: to a forest, categories that no split tells apart are one *class* (categories.py), so that a feature has few.
 * A row's class is looked up once. A split is the set of classes that go right, one bit each, and vpshufbitqmb looks
 * up 64 rows in one instruction. More than 64 classes are several pages: the set has a word for each, and a row counts
 * in the page that its class is in. The columns are such as ranks.h makes, so that splits on categories and on numbers
 * look the same to what comes after.
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

/* Columns of classes of 64 rows, `stride` floats apart. */
static __attribute__((noinline, unused)) void categories_fill(const float *rows, size_t stride,
                                                              const ranks_group_t *group, uint32_t groups,
                                                              const categories_feature_t *feature,
                                                              const uint8_t *classes, uint8_t *columns) {
    float values[4 * RANKS_ROWS] __attribute__((aligned(64)));
    for (const ranks_group_t *end = group + groups; group < end; group++) {
        ranks_transpose(rows + group->first, stride, values);
        for (const categories_feature_t *last = feature + group->chunks; feature < last; feature++)
            _mm512_store_si512(columns + feature->column,
                               categories_classes(values + RANKS_ROWS * feature->lane, feature, classes));
    }
}

/* Which of 64 rows, given by their classes, are in a set of `pages` words. */
INLINE __mmask64 categories_in(const uint64_t *set, __m512i classes, int pages) {
    __mmask64 in = _mm512_bitshuffle_epi64_mask(_mm512_set1_epi64((long long)set[0]), classes);
    if (pages == 1) return in;
    const __m512i page_bits = _mm512_set1_epi8((char)0xc0);
    __m512i own = _mm512_and_si512(classes, page_bits);
    in = _mm512_testn_epi8_mask(own, own) & in;
    for (int page = 1; page < pages; page++) {
        __mmask64 here = _mm512_cmpeq_epi8_mask(own, _mm512_set1_epi8((char)(page << 6)));
        in |= here & _mm512_bitshuffle_epi64_mask(_mm512_set1_epi64((long long)set[page]), classes);
    }
    return in;
}

#endif
