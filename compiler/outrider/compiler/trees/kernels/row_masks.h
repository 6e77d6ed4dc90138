/* Row-masks: single rows through trees of up to 256 nodes, all decisions of a tree as a mask, for AVX-512 with VBMI, BITALG.
 *
 * Idea: to decide 64 nodes takes two loads, a permute and a compare (single.h), less than two steps of a walk. So all
 * nodes of a tree are decided first, into a mask of 64 bits, or up to four of them; then a step of the walk is a shift
 * by the node's number and a load of the next one: no gather, no float, and tables of some 300 bytes a tree. Eight trees
 * of like depth walk interleaved. A leaf's number leads back to itself, so that walks that have arrived stay.
 *
 * Splits on categories come after those on numbers. Their decisions are made for all trees at once, eight in a step: to
 * a forest a feature has up to 64 classes of categories (categories.py), a split is the set of classes that go right,
 * as a word, and vpshufbitqmb looks up the row's class in eight words.
 *
 * Cost model, in cycles: 2 a mask of 64 nodes, 1 a split on categories, 1 a level, 2 a leaf; 10 a chunk (single.h).
 *
 * Limits: 256 columns, 256 nodes a tree, single leaf values, 64 features with categories of 64 classes each.
 *
 * Exactness: decisions are exact for every float32. Sums are of integers (fixed.py), hence in any order the same.
 */
#ifndef OUTRIDER_ROW_MASKS_H
#define OUTRIDER_ROW_MASKS_H

#include "common.h"
#include "finish.h"
#include "fixed.h"
#include "row_masks_tables.h"
#include "single.h"

#define ROW_MASKS_UNROLL _Pragma("clang loop unroll(full)")
#define ROW_MASKS_TOGETHER 8 /* trees that walk interleaved */

/* ---- decisions on categories ---- */

#if ROW_MASKS_CATEGORY_FEATURES
/* The class of each feature with categories, a byte each. */
INLINE __m512i row_masks_classes(const uint32_t *row) {
    uint8_t classes[64] __attribute__((aligned(64))) = {0};
    for (int i = 0; i < ROW_MASKS_CATEGORY_FEATURES; i++) {
        const row_masks_category_t *feature = &ROW_MASKS_CATEGORIES[i];
        uint32_t position = (uint32_t)category(row[feature->feature]);
        classes[i] = ROW_MASKS_CLASSES[feature->classes + (position < feature->positions ? position : 0)];
    }
    return _mm512_load_si512(classes);
}

/* One bit a set: is the row's class in it. The class goes to the lowest byte of the set's word; the others are not
 * looked at. */
INLINE void row_masks_sets(const uint32_t *row, uint8_t *bits) {
    const __m512i classes = row_masks_classes(row);
    for (uint32_t i = 0; i < ROW_MASKS_SET_BLOCKS; i++) {
        __m512i feature = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i *)(ROW_MASKS_SET_FEATURES + 8 * i)));
        __m512i own = _mm512_permutexvar_epi8(feature, classes);
        __mmask64 inside = _mm512_bitshuffle_epi64_mask(_mm512_load_si512(ROW_MASKS_SETS + 8 * i), own);
        bits[i] = (uint8_t)_pext_u64(_cvtmask64_u64(inside), 0x0101010101010101u);
    }
}
#endif

/* ---- trees ---- */

/* Trees of one kind, whose tables have the same sizes. `bits`, `shift`: where the decisions on categories are, and go;
 * `root`: where walks start. */
typedef struct {
    const uint8_t *columns, *positions;
    const void *children;
    const int32_t *values;
    const uint16_t *levels;
    const row_masks_tree_t *trees;
} row_masks_trees_t;

typedef uint64_t row_masks_word_t __attribute__((aligned(1), may_alias));

/* The decisions of all trees of a kind, `words` masks each, `numeric` of which are of splits on numbers: those on
 * categories follow, or begin with the next word where there are several. Bits beyond belong to no node. */
INLINE void row_masks_decide(single_ranks_t ranks, row_masks_trees_t kind, uint32_t count, const uint8_t *bits, int numeric,
                       int words, uint64_t *masks) {
    for (uint32_t i = 0; i < count; i++) {
        ROW_MASKS_UNROLL for (int word = 0; word < numeric; word++)
            masks[word] = single_mask(ranks, kind.columns + 64 * word, kind.positions + 64 * word);
        (void)bits;
#if ROW_MASKS_CATEGORY_FEATURES
        const row_masks_word_t *own = (const row_masks_word_t *)(bits + kind.trees[i].bits);
        ROW_MASKS_UNROLL for (int word = numeric; word < words; word++) masks[word] = own[word - numeric];
        if (words == 1) masks[0] |= *own << kind.trees[i].shift;
#endif
        kind.columns += 64 * numeric;
        kind.positions += 64 * numeric;
        masks += words;
    }
}

/* Where a step of a walk leads: from a node to a node or leaf, from a leaf to itself. */
INLINE uint32_t row_masks_next(const uint64_t *mask, uint32_t at, const void *children, int words) {
    uint64_t word = words == 1 ? mask[0] : mask[at >> 6 & (uint32_t)(words - 1)];
    uint32_t place = 2 * at + (uint32_t)(word >> (at & 63) & 1);
    return words == 1 ? ((const uint8_t *)children)[place] : ((const uint16_t *)children)[place];
}

typedef struct { int64_t first[OUTPUTS], second[OUTPUTS]; } row_masks_sums_t;

/* From the roots to the leaves of `groups` times ROW_MASKS_TOGETHER trees, whose values are added. `leaves`: of a tree. */
INLINE void row_masks_walk(row_masks_trees_t kind, uint32_t groups, const uint64_t *masks, int words, int leaves,
                     row_masks_sums_t *sums) {
    const int entries = (2 * (64 * words + leaves) + 63) / 64 * 64, bytes = words == 1 ? entries : 2 * entries;
    for (; groups; groups--) {
        uint32_t at[ROW_MASKS_TOGETHER];
        ROW_MASKS_UNROLL for (int i = 0; i < ROW_MASKS_TOGETHER; i++) at[i] = kind.trees[i].root;
        for (uint32_t level = *kind.levels++; level; level--)
            ROW_MASKS_UNROLL for (int i = 0; i < ROW_MASKS_TOGETHER; i++)
                at[i] = row_masks_next(masks + words * i, at[i], (const uint8_t *)kind.children + bytes * i, words);
        ROW_MASKS_UNROLL for (int i = 0; i < ROW_MASKS_TOGETHER; i++) {
            const int32_t *value = kind.values + leaves * ROW_MASKS_LEAF_WORDS * i + (at[i] - 64 * (uint32_t)words);
            uint32_t output = OUTPUTS == 1 ? 0 : kind.trees[i].output;
            sums->first[output] += value[0];
            if (FIXED_WIDE) sums->second[output] += value[leaves];
        }
        kind.children = (const uint8_t *)kind.children + ROW_MASKS_TOGETHER * bytes;
        kind.values += ROW_MASKS_TOGETHER * leaves * ROW_MASKS_LEAF_WORDS;
        kind.trees += ROW_MASKS_TOGETHER;
        masks += ROW_MASKS_TOGETHER * words;
    }
}

#define ROW_MASKS_TREES(kind)                                                                                         \
    ((row_masks_trees_t){kind##_COLUMNS, kind##_POSITIONS, kind##_CHILDREN, kind##_VALUES, kind##_LEVEL_COUNTS,       \
                   kind##_TREES})
#define ROW_MASKS_ALL(kind)                                                                                           \
    row_masks_decide(ranks, ROW_MASKS_TREES(kind), kind##_GROUPS * ROW_MASKS_TOGETHER, bits, kind##_NUMERIC, kind##_WORDS, masks); \
    row_masks_walk(ROW_MASKS_TREES(kind), kind##_GROUPS, masks, kind##_WORDS, kind##_LEAVES, &sums);

/* ---- the kernel ---- */

static size_t row_masks_workspace(int64_t batch) {
    (void)batch;
    return ROUND_UP(SINGLE_BYTES) + ROUND_UP(ROW_MASKS_SET_BLOCKS + 32) + ROUND_UP(ROW_MASKS_ALL_WORDS * sizeof(uint64_t));
}

static void row_masks_run(const float *rows, float *results, int64_t batch, void *workspace) {
    uint8_t *scratch = workspace, *bits = scratch + ROUND_UP(SINGLE_BYTES);
    uint64_t *masks = (uint64_t *)(bits + ROUND_UP(ROW_MASKS_SET_BLOCKS + 32));
    for (int64_t done = 0; done < batch; done++) {
        const uint32_t *row = (const uint32_t *)rows + (size_t)done * FEATURES;
        row_masks_sums_t sums = {{0}, {0}};
        single_fill(row, scratch);
        single_ranks_t ranks = single_load(scratch);
#if ROW_MASKS_CATEGORY_FEATURES
        row_masks_sets(row, bits);
#endif
#if ROW_MASKS_SMALL_GROUPS
        ROW_MASKS_ALL(ROW_MASKS_SMALL)
#endif
#if ROW_MASKS_LARGE_GROUPS
        ROW_MASKS_ALL(ROW_MASKS_LARGE)
#endif
        sum_t whole[OUTPUTS];
        for (int i = 0; i < OUTPUTS; i++) whole[i] = fixed_sum(sums.first[i], sums.second[i], i);
        finish(whole, results + (size_t)done * COLUMNS_OUT);
    }
}

#endif
