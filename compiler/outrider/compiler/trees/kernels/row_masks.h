/* Row-masks: single rows through trees of any shape, all decisions of a tree at once, for AVX-512 with VBMI.
 *
 * Idea: to decide 64 nodes takes two loads, a permute and a compare (single.h), less than two steps of a walk. So all
 * nodes of a tree are decided first; then a step of the walk looks the decision of its node up and loads the number of
 * the next: no gather, no float, and tables of some 300 bytes a tree. Decisions are bits of a mask for small trees, of
 * up to 64 splits, and bytes for large ones. Eight trees of like depth walk interleaved. A leaf's number leads back to
 * itself, so that walks that have arrived stay.
 *
 * Splits on categories come after those on numbers. Their decisions are made for all trees at once: to a forest a
 * feature has up to 256 classes of categories (categories.py), and each class has a line of bits, one a split. The
 * lines of the row's classes, or-ed together, are the decisions.
 *
 * Cost model, in cycles: 2 a mask of 64 nodes, 2 a feature with categories and 512 splits on them, 1.5 a level, 2 a
 * leaf; 4 a chunk (single.h). Memory: 6 to 8 bytes a node, and for splits on categories a bit a class, of all
 * features'.
 *
 * Limits: 256 columns, single leaf values, 16 MiB of lines of categories, of 256 classes a feature and ids up to 65533.
 * Trees of more than 128 leaves are in parts (parts.py), whose paths have up to 64 nodes.
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

/* ---- decisions on categories ---- */

#if ROW_MASKS_CATEGORY_FEATURES
/* One bit a split on categories: does the row go right. Each class of each feature has a line of bits for the splits of
 * all trees, in which other features' splits are 0. */
INLINE void row_masks_categories(const uint32_t *row, uint8_t *bits) {
    const uint8_t *line[ROW_MASKS_CATEGORY_FEATURES];
    for (int i = 0; i < ROW_MASKS_CATEGORY_FEATURES; i++) {
        const row_masks_category_t *feature = &ROW_MASKS_CATEGORIES[i];
        uint32_t position = (uint32_t)category(row[feature->feature]);
        uint32_t one = ROW_MASKS_CLASSES[feature->classes + (position < feature->positions ? position : 0)];
        line[i] = ROW_MASKS_LINES + (size_t)ROW_MASKS_LINE_BYTES * (feature->first_line + one);
    }
    for (size_t at = 0; at < ROW_MASKS_LINE_BYTES; at += 64) {
        __m512i right = _mm512_load_si512(line[0] + at);
        for (int i = 1; i < ROW_MASKS_CATEGORY_FEATURES; i++)
            right = _mm512_or_si512(right, _mm512_load_si512(line[i] + at));
        _mm512_store_si512(bits + at, right);
    }
}
#endif

/* ---- trees ---- */

/* Trees of one kind, whose tables have the same sizes. `numeric`: masks of splits on numbers, `words`: all masks;
 * `leaves`: of a tree. `levels`: of each group of ROW_MASKS_TOGETHER trees. */
typedef struct {
    const uint8_t *columns, *positions, *children;
    const int32_t *values;
    const uint16_t *levels;
    const row_masks_tree_t *trees;
    uint32_t groups;
    int numeric, words, leaves;
} row_masks_trees_t;

typedef uint64_t row_masks_word_t __attribute__((aligned(1), may_alias));

INLINE void row_masks_store(uint64_t mask, uint8_t *bytes) {
    _mm512_storeu_si512(bytes, _mm512_maskz_set1_epi8(_cvtu64_mask64(mask), 1));
}

/* The decisions of splits on numbers and, behind them, on categories, of which `bits` has those of all trees: as a mask
 * for a small tree, as bytes for a large one. What is behind them belongs to no node. */
INLINE void row_masks_decide(single_ranks_t ranks, const row_masks_trees_t *kind, uint32_t tree, const uint8_t *bits,
                             void *out) {
    const uint8_t *columns = kind->columns + (size_t)64 * (size_t)kind->numeric * tree;
    const uint8_t *positions = kind->positions + (size_t)64 * (size_t)kind->numeric * tree;
    const row_masks_word_t *own = (const row_masks_word_t *)(bits + kind->trees[tree].bits);
    if (kind->words == 1) {
        uint64_t mask = single_mask(ranks, columns, positions);
        if (ROW_MASKS_CATEGORY_FEATURES) mask |= *own << kind->trees[tree].shift;
        *(uint64_t *)out = mask;
        return;
    }
    uint8_t *bytes = out;
    ROW_MASKS_UNROLL for (int word = 0; word < kind->numeric; word++, bytes += 64)
        row_masks_store(single_mask(ranks, columns + 64 * word, positions + 64 * word), bytes);
    bytes = (uint8_t *)out + kind->trees[tree].shift;
    ROW_MASKS_UNROLL for (int word = kind->numeric; word < kind->words; word++, bytes += 64)
        row_masks_store(*own++, bytes);
}

/* Where a step of a walk leads: from a node to a node or leaf, from a leaf to itself, whatever is found as its
 * decision. */
INLINE uint32_t row_masks_next(const void *decisions, uint32_t at, const uint8_t *children, int words) {
    uint64_t right = words > 1 ? ((const uint8_t *)decisions)[at] : *(const uint64_t *)decisions >> (at & 63) & 1;
    return children[2 * at + (uint32_t)right];
}

typedef struct { int64_t first[OUTPUTS], second[OUTPUTS]; } row_masks_sums_t;

/* From the roots to the leaves of a group of trees, whose values are added. */
INLINE void row_masks_walk(const row_masks_trees_t *kind, uint32_t group, const uint8_t *decisions,
                           row_masks_sums_t *sums) {
    const int words = kind->words, leaves = kind->leaves, bytes = words == 1 ? 8 : 64 * words;
    const int stride = (4 * leaves - 2 + 63) / 64 * 64; /* of children: two for each split and leaf */
    const uint8_t *children = kind->children + (size_t)group * ROW_MASKS_TOGETHER * (size_t)stride;
    const int32_t *values = kind->values + (size_t)group * ROW_MASKS_TOGETHER * (size_t)(leaves * ROW_MASKS_LEAF_WORDS);
    const row_masks_tree_t *tree = kind->trees + group * ROW_MASKS_TOGETHER;
    uint32_t at[ROW_MASKS_TOGETHER];
    ROW_MASKS_UNROLL for (int i = 0; i < ROW_MASKS_TOGETHER; i++) at[i] = tree[i].root;
    for (uint32_t level = kind->levels[group]; level; level--)
        ROW_MASKS_UNROLL for (int i = 0; i < ROW_MASKS_TOGETHER; i++)
            at[i] = row_masks_next(decisions + bytes * i, at[i], children + stride * i, words);
    ROW_MASKS_UNROLL for (int i = 0; i < ROW_MASKS_TOGETHER; i++) {
        const int32_t *value = values + leaves * ROW_MASKS_LEAF_WORDS * i + (at[i] - tree[i].leaf);
        uint32_t output = OUTPUTS == 1 ? 0 : tree[i].output;
        sums->first[output] += value[0];
        if (FIXED_WIDE) sums->second[output] += value[leaves];
    }
}

/* All trees of a kind. Some groups are decided before they are walked: walks that wait for masks would keep others from
 * starting. */
INLINE void row_masks_trees(single_ranks_t ranks, const row_masks_trees_t *kind, const uint8_t *bits,
                            uint8_t *decisions, row_masks_sums_t *sums) {
    const int bytes = kind->words == 1 ? 8 : 64 * kind->words;
    for (uint32_t first = 0; first < kind->groups; first += ROW_MASKS_AHEAD) {
        uint32_t end = kind->groups - first < ROW_MASKS_AHEAD ? kind->groups : first + ROW_MASKS_AHEAD;
        uint8_t *out = decisions;
        for (uint32_t tree = first * ROW_MASKS_TOGETHER; tree < end * ROW_MASKS_TOGETHER; tree++, out += bytes)
            row_masks_decide(ranks, kind, tree, bits, out);
        for (uint32_t group = first; group < end; group++)
            row_masks_walk(kind, group, decisions + (size_t)(group - first) * ROW_MASKS_TOGETHER * (size_t)bytes, sums);
    }
}

#define ROW_MASKS_ALL(kind)                                                                                            \
    const row_masks_trees_t kind = {kind##_COLUMNS, kind##_POSITIONS, kind##_CHILDREN, kind##_VALUES,                  \
                                    kind##_LEVEL_COUNTS, kind##_TREES, kind##_GROUPS, kind##_NUMERIC,                  \
                                    kind##_WORDS, kind##_LEAVES};                                                      \
    row_masks_trees(ranks, &kind, bits, decisions, &sums);

/* ---- the kernel ---- */

static size_t row_masks_workspace(int64_t batch) {
    (void)batch;
    return ROUND_UP(SINGLE_BYTES) + ROUND_UP(ROW_MASKS_LINE_BYTES + 32) + ROW_MASKS_DECISION_BYTES;
}

static void row_masks_run(const float *rows, float *results, int64_t batch, void *workspace) {
    uint8_t *scratch = workspace, *bits = scratch + ROUND_UP(SINGLE_BYTES);
    uint8_t *decisions = bits + ROUND_UP(ROW_MASKS_LINE_BYTES + 32);
    for (size_t i = 0; i < ROW_MASKS_DECISION_BYTES; i++) decisions[i] = 0; /* bytes that leaves read are 0 or 1 */
    for (int64_t done = 0; done < batch; done++) {
        const uint32_t *row = (const uint32_t *)rows + (size_t)done * FEATURES;
        row_masks_sums_t sums = {{0}, {0}};
        single_fill(row, scratch);
        single_ranks_t ranks = single_load(scratch);
#if ROW_MASKS_CATEGORY_FEATURES
        row_masks_categories(row, bits);
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
