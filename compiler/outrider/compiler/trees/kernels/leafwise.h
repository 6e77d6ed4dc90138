/* Leafwise: all nodes of trees of any shape, with splits on numbers and categories, 64 rows a register, for AVX-512.
 *
 * Idea: a decision is `rank > position` on a byte (quantise.py), also for categories, whose decisions are made into
 * columns first (categories.h), so one compare decides a node for 64 rows. Of trees that grew leaf by leaf no two are
 * alike, but cut into *clusters* of up to seven nodes (clusters.py) they consist of a few shapes. Within LEAFWISE_GROUP
 * trees clusters are sorted by rank, so that each comes after those below it, then by shape; each shape is one straight
 * loop without a branch. What goes from cluster to cluster are leaf numbers, in slots that stay in L1:
 *
 * - lowest clusters are whole subtrees, whose leaves have numbers in a row: a right child's number is its left
 *   sibling's plus the leaves there;
 * - others load a number for each exit, another cluster's slot or a leaf's constant, and select.
 *
 * The root's number finds a tree's value by byte permutes (planes.h).
 *
 * Cost model, in cycles a register on Zen 4: 1.4 a node of the lowest clusters, 2.4 of others, 2.3 a split on
 * categories that no other tree has, 3 a cluster, 14 a tree. Ranks: see ranks.h. Memory: 6 to 8 bytes a node, 2 to 4 an
 * exit, 8 a set of 64 classes, 4 or 7 a leaf.
 *
 * Limits: single leaf values, 256 outputs, 256 classes of categories a feature and ids up to 65533. Trees of more than
 * 256 leaves are in parts (parts.py), whose paths have up to 128 nodes. Rows are rounded up to 64.
 *
 * Exactness: decisions are exact for every float32. Sums are of integers (fixed.py), hence the same for every batch.
 */
#ifndef OUTRIDER_LEAFWISE_H
#define OUTRIDER_LEAFWISE_H

#include "bounds.h"
#include "categories.h"
#include "common.h"
#include "leafwise_tables.h"
#include "planes.h"
#include "ranks.h"

#define LEAFWISE_UNROLL _Pragma("clang loop unroll(full)")

/* A column and a slot are this many bytes. */
#define LEAFWISE_ROWS (64 * LEAFWISE_REGISTERS)
#define LEAFWISE_STRIDE (FEATURES < 4 ? 4 : FEATURES)

/* ---- decisions ---- */

/* Which of 64 rows go right. `data` are columns, constants and slots; `column` is an offset in them. */
INLINE __mmask64 leafwise_right(const uint8_t *data, const uint32_t *position, const leafwise_at_t *column) {
    return _mm512_cmplt_epu8_mask(_mm512_set1_epi32((int)*position), _mm512_load_si512(data + *column));
}

/* ---- a group of trees ---- */

typedef struct {
    const uint32_t *position, *first;
    const leafwise_at_t *column, *exit, *root;
    const uint16_t *count;
    const uint64_t *set;
    const leafwise_at_t *classes;
    const uint8_t *table;
} leafwise_cursor_t;

/* The columns of splits on categories. */
INLINE void leafwise_sets(const uint64_t *set, const leafwise_at_t *classes, uint32_t count, const uint8_t *data,
                          uint8_t *out, int registers) {
    for (; count; count--, set += LEAFWISE_PAGES, classes++, out += LEAFWISE_ROWS)
        LEAFWISE_UNROLL for (int i = 0; i < registers; i++)
            _mm512_store_si512(out + 64 * i,
                               categories_column(set, data + *classes + 64 * i, LEAFWISE_PAGES, LEAFWISE_ROWS));
}

/* A shape is an expression, given in LEAFWISE_EACH_LOW or _HIGH with its number of nodes, for the leaf numbers of 64
 * rows. In it nodes count in preorder, and leaves from the cluster's first, to which all numbers of a lowest cluster
 * start out equal. PAIR is a node over two leaves, EXIT(e) what exit e leads to. */
#define LEAFWISE_GOES_RIGHT(node) leafwise_right(rows, at->position + (node), at->column + (node))
#define LEAFWISE_LEAF(leaf) first
#define LEAFWISE_PAIR(node, leaf) LEAFWISE_COUNT(first, node, first, 1)
#define LEAFWISE_COUNT(left, node, right, leaves) \
    _mm512_mask_add_epi8(left, LEAFWISE_GOES_RIGHT(node), right, ranks_opaque(_mm512_set1_epi8(leaves)))
#define LEAFWISE_EXIT(number) _mm512_load_si512(rows + at->exit[number])
#define LEAFWISE_SELECT(left, node, right) _mm512_mask_mov_epi8(left, LEAFWISE_GOES_RIGHT(node), right)

/* The group's next clusters of one rank and shape, into the next slots. */
#define LEAFWISE_LOOP(nodes, numbers)                                               \
    for (uint32_t left = *at->count++; left; left--, slot += LEAFWISE_ROWS) {       \
        __m512i first = _mm512_set1_epi32((int)*at->first);                         \
        LEAFWISE_UNROLL for (int i = 0; i < registers; i++) {                       \
            const uint8_t *rows = data + 64 * i;                                    \
            _mm512_store_si512(slot + 64 * i, numbers);                             \
        }                                                                           \
        (void)first;                                                                \
        at->position += nodes;                                                      \
        at->column += nodes;

#define LEAFWISE_LOW(nodes, numbers)   \
    LEAFWISE_LOOP(nodes, numbers)      \
        at->first++;                   \
    }

#define LEAFWISE_HIGH(nodes, numbers)  \
    LEAFWISE_LOOP(nodes, numbers)      \
        at->exit += nodes + 1;         \
    }

/* All clusters of a group, so that the slots of the roots hold the leaf numbers. */
INLINE void leafwise_clusters(leafwise_cursor_t *at, uint8_t *data, int registers) {
    uint8_t *slot = data + LEAFWISE_SLOTS;
    LEAFWISE_EACH_LOW(LEAFWISE_LOW)
    for (uint32_t ranks = *at->count++; ranks; ranks--) {
        LEAFWISE_EACH_HIGH(LEAFWISE_HIGH)
    }
}

/* ---- all trees ---- */

/* For `registers` times 64 rows. Trees are in the order of their outputs, so the sums of one stay in registers. */
INLINE void leafwise_trees(uint8_t *data, int32_t *sums, int registers) {
    leafwise_cursor_t at = {LEAFWISE_POSITION, LEAFWISE_FIRSTS, LEAFWISE_COLUMN,      LEAFWISE_EXITS, LEAFWISE_ROOT,
                            LEAFWISE_COUNTS,   LEAFWISE_SET,   LEAFWISE_SET_CLASSES, LEAFWISE_LEAVES};
    planes_sums_t sum[LEAFWISE_REGISTERS];
    const size_t words = (size_t)FIXED_WORDS * LEAFWISE_ROWS;
    uint32_t output = LEAFWISE_TREE_OUTPUT(0), since = 0;
    LEAFWISE_UNROLL for (int i = 0; i < registers; i++)
        planes_load(sums + output * words + 64 * i, LEAFWISE_ROWS, &sum[i]);
    for (uint32_t first = 0; first < LEAFWISE_TREES; first += LEAFWISE_GROUP) {
        uint32_t own = *at.count++;
        leafwise_sets(at.set, at.classes, own, data, data + LEAFWISE_OWN_SETS, registers);
        at.set += (size_t)own * LEAFWISE_PAGES;
        at.classes += own;
        leafwise_clusters(&at, data, registers);
        uint32_t end = first + LEAFWISE_GROUP < LEAFWISE_TREES ? first + LEAFWISE_GROUP : LEAFWISE_TREES;
        for (uint32_t number = first; number < end; number++, at.root++, at.table += PLANES * LEAFWISE_PLANE) {
            if (LEAFWISE_TREE_OUTPUT(number) != output || (FIXED_WIDE && ++since == FIXED_CARRY_EVERY)) {
                LEAFWISE_UNROLL for (int i = 0; i < registers; i++) {
                    planes_carry(&sum[i]);
                    planes_store(sums + output * words + 64 * i, LEAFWISE_ROWS, &sum[i]);
                    planes_load(sums + LEAFWISE_TREE_OUTPUT(number) * words + 64 * i, LEAFWISE_ROWS, &sum[i]);
                }
                output = LEAFWISE_TREE_OUTPUT(number);
                since = 0;
            }
            LEAFWISE_UNROLL for (int i = 0; i < registers; i++)
                planes_add(at.table, _mm512_load_si512(data + *at.root + 64 * i), &sum[i], LEAFWISE_PLANE);
        }
    }
    LEAFWISE_UNROLL for (int i = 0; i < registers; i++)
        planes_store(sums + output * words + 64 * i, LEAFWISE_ROWS, &sum[i]);
}

static __attribute__((noinline)) void leafwise_trees_64(uint8_t *data, int32_t *sums) { leafwise_trees(data, sums, 1); }

#if LEAFWISE_REGISTERS > 1
static __attribute__((noinline)) void leafwise_trees_full(uint8_t *data, int32_t *sums) {
    leafwise_trees(data, sums, LEAFWISE_REGISTERS);
}
#endif

/* ---- blocks of rows ---- */

typedef struct {
    uint8_t *data;
    int32_t *sums;
    float *copy;
} leafwise_workspace_t;

#define LEAFWISE_SUM_BYTES (sizeof(int32_t) * OUTPUTS * FIXED_WORDS * LEAFWISE_ROWS)
#define LEAFWISE_COPY_BYTES (sizeof(float) * 64 * LEAFWISE_STRIDE)

INLINE leafwise_workspace_t leafwise_divide(void *workspace) {
    uint8_t *data = workspace;
    void *sums = data + LEAFWISE_DATA, *copy = data + LEAFWISE_DATA + LEAFWISE_SUM_BYTES;
    return (leafwise_workspace_t){data, sums, copy};
}

/* Columns of up to 64 rows. Fewer than 64, or rows too short for ranks.h, are copied first. */
INLINE void leafwise_columns(const float *rows, uint32_t count, float *copy, uint8_t *data) {
    if (count < 64 || FEATURES < 4) {
        for (uint32_t row = 0; row < count; row++)
            for (uint32_t i = 0; i < FEATURES; i++)
                copy[(size_t)row * LEAFWISE_STRIDE + i] = rows[(size_t)row * FEATURES + i];
        rows = copy;
    }
    ranks_fill(rows, LEAFWISE_STRIDE, LEAFWISE_RANK_GROUPS, LEAFWISE_RANK_GROUP_COUNT, LEAFWISE_RANK_CHUNKS,
               BOUNDS, data, (ranks_rules_t){ZERO_IS_MISSING, TINY_IS_ZERO, 1});
#if LEAFWISE_CATEGORY_GROUP_COUNT
    categories_fill(rows, LEAFWISE_STRIDE, LEAFWISE_CATEGORY_GROUPS, LEAFWISE_CATEGORY_GROUP_COUNT,
                    LEAFWISE_CATEGORY_FEATURES, LEAFWISE_CLASSES, data, LEAFWISE_PAGES, LEAFWISE_ROWS);
    leafwise_sets(LEAFWISE_SHARED_SET, LEAFWISE_SHARED_SET_CLASSES, LEAFWISE_SHARED_COUNT, data,
                  data + LEAFWISE_SHARED_SETS, 1);
#endif
}

static size_t leafwise_workspace(int64_t batch) {
    (void)batch;
    return LEAFWISE_DATA + LEAFWISE_SUM_BYTES + LEAFWISE_COPY_BYTES;
}

static void leafwise_run(const float *rows, float *results, int64_t batch, void *workspace) {
    leafwise_workspace_t at = leafwise_divide(workspace);
    for (uint32_t number = 0; number < LEAFWISE_CONSTANT_COUNT; number++)
        LEAFWISE_UNROLL for (int i = 0; i < LEAFWISE_REGISTERS; i++)
            _mm512_store_si512(at.data + LEAFWISE_CONSTANTS + number * LEAFWISE_ROWS + 64 * i,
                               _mm512_set1_epi8((char)number));
    for (int64_t done = 0; done < batch; done += LEAFWISE_ROWS) {
        uint32_t count = batch - done < LEAFWISE_ROWS ? (uint32_t)(batch - done) : LEAFWISE_ROWS;
        for (uint32_t first = 0; first < count; first += 64)
            leafwise_columns(rows + (size_t)(done + first) * FEATURES, count - first < 64 ? count - first : 64, at.copy,
                             at.data + first);
        for (size_t i = 0; i < (size_t)OUTPUTS * FIXED_WORDS * LEAFWISE_ROWS; i++) at.sums[i] = 0;
#if LEAFWISE_REGISTERS > 1
        if (count > 64)
            leafwise_trees_full(at.data, at.sums);
        else
#endif
            leafwise_trees_64(at.data, at.sums);
        fixed_finish(at.sums, LEAFWISE_ROWS, results + (size_t)done * COLUMNS_OUT, count);
    }
}

#endif
