/* K2: a portable forest walk over data tables, for any forest and any CPU.
 *
 * Idea: a tree walk is a chain of dependent loads, so one walk alone waits most of the time. K2_LANES walks run
 * interleaved: as many rows through one tree, or, for rows left over and for single rows, one row through as many
 * trees. Rows are first turned into integer virtual columns (layout.py), in which missing values, signs of zero and
 * categories are settled, so that a step is: load node, load column, compare, add. A leaf tests the sentinel column,
 * which never goes right, and names itself as its child: lanes that are done simply stay. Every few levels the walk
 * stops if no lane moved. Rows go in blocks, trees outside of them, so that a tree's nodes are read once a block.
 *
 * Cost model: rows * trees * depth steps of about 5 instructions; about depth * (load latency) / K2_LANES a tree and
 * row while the nodes stay in cache. Columns cost about 4 instructions each a row. Memory: 8 bytes a node (12 if
 * K2_WIDE).
 *
 * Limits: up to 2^31 nodes in all. Without K2_WIDE, 65536 nodes a tree and 65536 virtual columns.
 *
 * Exactness: decisions are those of the source for every float32. Sums take the trees in order, whatever the batch,
 * and integers decide, so results are the same for every batch size and on every target.
 */
#ifndef OUTRIDER_K2_H
#define OUTRIDER_K2_H

#include "common.h"
#include "finish.h"
#include "forest.h"
#include "k2_tables.h"
#include "keys.h"

#define K2_SENTINEL INT32_MIN
#define K2_EXIT_EVERY 4

/* ---- virtual columns ---- */

static void k2_fill_columns(const uint32_t *row, int32_t *columns) {
    const uint32_t *feature = K2_COLUMN_FEATURE;
    *columns++ = K2_SENTINEL;
    for (uint32_t i = 0; i < K2_LEFT_COLUMNS; i++) {
        uint32_t bits = row[*feature++];
        *columns++ = is_missing(bits) ? INT32_MIN : sort_key(bits);
    }
    for (uint32_t i = 0; i < K2_RIGHT_COLUMNS; i++) {
        uint32_t bits = row[*feature++];
        *columns++ = is_missing(bits) ? INT32_MAX : sort_key(bits);
    }
#if K2_CATEGORY_COLUMNS
    for (uint32_t i = 0; i < K2_CATEGORY_COLUMNS; i++) *columns++ = category(row[*feature++]);
#endif
}

/* ---- the walk ---- */

typedef struct { int32_t bound; uint32_t column, child; } k2_node_t;

#if K2_WIDE
INLINE k2_node_t k2_load_node(uint32_t index) {
    const uint32_t *words = K2_NODES + (size_t)index * 3;
    return (k2_node_t){(int32_t)words[0], words[1], words[2]};
}
#else
INLINE k2_node_t k2_load_node(uint32_t index) {
    uint64_t word = K2_NODES[index];
    return (k2_node_t){(int32_t)word, (uint32_t)(word >> 32) & 0xffff, (uint32_t)(word >> 48)};
}
#endif

/* Without a branch, which would be mispredicted at every other split: a split on a number looks at the first set, and
 * what it finds there is masked out. */
INLINE uint32_t k2_goes_right(k2_node_t node, int32_t value) {
    uint32_t above = value >= node.bound;
#if K2_CATEGORY_COLUMNS
    uint32_t on_set = -(uint32_t)(node.column > K2_LEFT_COLUMNS + K2_RIGHT_COLUMNS);
    const uint32_t *set = K2_CATEGORY_SETS + ((uint32_t)node.bound & on_set);
    uint32_t bit = (uint32_t)value & -(uint32_t)((uint32_t)value < set[0]);
    uint32_t inside = set[1 + (bit >> 5)] >> (bit & 31) & 1;
    return above ^ ((above ^ inside) & on_set);
#else
    return above;
#endif
}

/* Walk K2_LANES trees, or one tree K2_LANES times, to their leaves; `leaf` gets the row of K2_VALUES of each. */
INLINE void k2_walk(const uint32_t *root, const int32_t *const *columns, uint32_t depth, uint32_t *leaf) {
    uint32_t at[K2_LANES];
    for (int lane = 0; lane < K2_LANES; lane++) at[lane] = 0;
    for (uint32_t level = 0; level < depth;) {
        uint32_t stop = depth - level < K2_EXIT_EVERY ? depth : level + K2_EXIT_EVERY, moved = 0;
        for (; level < stop; level++) {
            moved = 0;
#pragma clang loop unroll(full)
            for (int lane = 0; lane < K2_LANES; lane++) {
                k2_node_t node = k2_load_node(root[lane] + at[lane]);
                uint32_t next = node.child + k2_goes_right(node, columns[lane][node.column]);
                moved |= next ^ at[lane];
                at[lane] = next;
            }
        }
        if (!moved) break;
    }
    for (int lane = 0; lane < K2_LANES; lane++) leaf[lane] = (uint32_t)k2_load_node(root[lane] + at[lane]).bound;
}

INLINE void k2_add_leaf(uint32_t tree, uint32_t leaf, sum_t *sums) {
    (void)tree;
#if K2_WIDTH == 1
    sums[K2_TREE_OUTPUT(tree)] += K2_VALUES[leaf];
#else
    for (uint32_t i = 0; i < K2_WIDTH; i++) sums[i] += K2_VALUES[(size_t)leaf * K2_WIDTH + i];
#endif
}

/* K2_LANES rows through every tree; a tree's nodes serve all rows of a block, hence the loop over rows inside. */
static void k2_walk_rows(const int32_t *columns, uint32_t groups, sum_t *sums) {
    for (uint32_t tree = 0; tree < TREES; tree++) {
        for (uint32_t group = 0; group < groups; group++) {
            uint32_t root[K2_LANES], leaf[K2_LANES];
            const int32_t *lanes[K2_LANES];
            for (uint32_t lane = 0; lane < K2_LANES; lane++) {
                root[lane] = K2_ROOT[tree];
                lanes[lane] = columns + (size_t)(group * K2_LANES + lane) * K2_COLUMNS;
            }
            k2_walk(root, lanes, K2_DEPTH[tree], leaf);
            for (uint32_t lane = 0; lane < K2_LANES; lane++)
                k2_add_leaf(tree, leaf[lane], sums + (size_t)(group * K2_LANES + lane) * OUTPUTS);
        }
    }
}

/* One row through K2_LANES trees at a time; the lanes of the last group that have no tree repeat its last one. */
static void k2_walk_trees(const int32_t *columns, sum_t *sums) {
    for (uint32_t first = 0; first < TREES; first += K2_LANES) {
        uint32_t root[K2_LANES], leaf[K2_LANES], depth = 0;
        const int32_t *lanes[K2_LANES];
        for (uint32_t lane = 0; lane < K2_LANES; lane++) {
            uint32_t tree = first + lane < TREES ? first + lane : TREES - 1;
            root[lane] = K2_ROOT[tree];
            lanes[lane] = columns;
            if (K2_DEPTH[tree] > depth) depth = K2_DEPTH[tree];
        }
        k2_walk(root, lanes, depth, leaf);
        for (uint32_t lane = 0; lane < K2_LANES && first + lane < TREES; lane++)
            k2_add_leaf(first + lane, leaf[lane], sums);
    }
}

/* ---- the kernel's interface ---- */

/* Rows that a block of this batch holds. */
INLINE size_t k2_block_rows(int64_t batch) { return batch < K2_BLOCK ? (size_t)batch : K2_BLOCK; }

static size_t k2_workspace(int64_t batch) {
    size_t rows = k2_block_rows(batch);
    return ROUND_UP(rows * K2_COLUMNS * sizeof(int32_t)) + ROUND_UP(rows * OUTPUTS * sizeof(sum_t));
}

static void k2_run(const float *rows, float *results, int64_t batch, void *workspace) {
    const uint32_t *input = (const uint32_t *)rows;
    int32_t *columns = workspace;
    sum_t *sums = (sum_t *)((char *)workspace + ROUND_UP(k2_block_rows(batch) * K2_COLUMNS * sizeof(int32_t)));
    for (int64_t done = 0; done < batch; done += K2_BLOCK) {
        uint32_t count = batch - done < K2_BLOCK ? (uint32_t)(batch - done) : K2_BLOCK, groups = count / K2_LANES;
        for (uint32_t row = 0; row < count; row++) {
            k2_fill_columns(input + (size_t)(done + row) * FEATURES, columns + (size_t)row * K2_COLUMNS);
            for (uint32_t i = 0; i < OUTPUTS; i++) sums[(size_t)row * OUTPUTS + i] = START[i];
        }
        if (groups) k2_walk_rows(columns, groups, sums);
        for (uint32_t row = groups * K2_LANES; row < count; row++)
            k2_walk_trees(columns + (size_t)row * K2_COLUMNS, sums + (size_t)row * OUTPUTS);
        for (uint32_t row = 0; row < count; row++)
            finish(sums + (size_t)row * OUTPUTS, results + (size_t)(done + row) * COLUMNS_OUT);
    }
}

#endif
