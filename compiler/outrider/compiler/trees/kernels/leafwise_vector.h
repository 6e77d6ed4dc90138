/* Leafwise for any vectors of bytes: all nodes of trees of any shape, with splits on numbers and categories, 16 or 32
 * rows a register. Written once for SSE, AVX2, NEON, RVV and WebAssembly; what they differ in is in vector.h.
 *
 * Idea: that of leafwise.h, whose columns and clusters these are. What differs: there are no mask registers, so a
 * decision is a mask of bytes. Leaves are numbered from left to right, so a node over two of them is a number plus a
 * mask, and a selection is max(left, right & mask) where that is cheaper than a blend. A split on categories looks up
 * the byte of its set that a row's class is in, and tests the class's bit. Values are integers, looked up one by one;
 * those of four trees are added to a row's sum at once.
 *
 * Cost model, in instructions a register: 2 a node over two leaves, 3 a node above (2 where blends are cheap), and for
 * all registers together 2 a node and 8 a cluster; 5 a split on categories that no other tree has; 1.3 loads a row and
 * tree. AVX2 on Zen 4 executes 4 of them in a cycle. Ranks: see vector_ranks.h. Memory: 6 to 8 bytes a node, 2 to 4 an
 * exit, 16 or 32 a set of classes, 4 or 8 a leaf.
 *
 * Limits: single leaf values, 256 outputs, 256 classes of categories a feature and ids up to 65533. Trees of more than
 * 256 leaves are in parts (parts.py), whose paths have up to 128 nodes. A block of VECTOR_ROWS rows is evaluated in
 * one, two or four registers, the last of them in as many as it needs.
 *
 * Exactness: decisions are exact for every float32. Sums are of integers (fixed.py), hence the same for every batch and
 * on every instruction set, and those of leafwise.h.
 */
#ifndef OUTRIDER_LEAFWISE_VECTOR_H
#define OUTRIDER_LEAFWISE_VECTOR_H

#include "finish_batch.h"
#include "fixed.h"
#include "keys.h"
#include "vector.h"
#include "vector_ranks.h"

/* A column and a slot are this many bytes. */
#define VECTOR_ROWS (VECTOR_BYTES * VECTOR_REGISTERS)

/* ---- categories ---- */

#if VECTOR_CATEGORY_GROUP_COUNT
/* Where a row's class is in a set: two columns, of its byte's place and of its bit. */
static __attribute__((noinline)) void vector_categories(const float *rows, uint32_t count, uint8_t *data) {
    const ranks_group_t *group = VECTOR_CATEGORY_GROUPS, *end = group + VECTOR_CATEGORY_GROUP_COUNT;
    const categories_feature_t *feature = VECTOR_CATEGORY_FEATURES;
    for (; group < end; group++)
        for (const categories_feature_t *last = feature + group->chunks; feature < last; feature++) {
            uint8_t *place = data + feature->column, *bit = place + VECTOR_ROWS;
            for (uint32_t row = 0; row < count; row++) {
                uint32_t bits;
                __builtin_memcpy(&bits, rows + (size_t)row * FEATURES + group->first + feature->lane, 4);
                uint32_t position = (uint32_t)category(bits);
                uint32_t one = VECTOR_CLASSES[feature->classes + (position < feature->positions ? position : 0)];
                place[row] = (uint8_t)(one >> 3);
                bit[row] = (uint8_t)(1u << (one & 7));
            }
        }
}
#endif

/* Columns of splits on categories, in the form of ranks: above 0 where a row goes right. */
INLINE void vector_sets(const uint8_t *set, const vector_at_t *classes, uint32_t count, const uint8_t *data,
                        uint8_t *out, int registers) {
    for (; count; count--, set += VECTOR_SET_BYTES, classes++, out += VECTOR_ROWS)
        VECTOR_UNROLL for (int i = 0; i < registers; i++) {
            const uint8_t *column = data + *classes + VECTOR_BYTES * i;
            vector_t place = vector_index(vector_load(column)), found = vector_look_up(set, place);
            if (VECTOR_SET_BYTES > 16) found |= vector_look_up(set + 16, vector_index(vector_load(column) - 16));
            vector_store(out + VECTOR_BYTES * i, (found & vector_load(column + VECTOR_ROWS)) ^ 0x80);
        }
}

/* ---- clusters ---- */

typedef struct {
    const uint32_t *position, *first;
    const vector_at_t *column, *exit, *root;
    const uint16_t *count;
    const uint8_t *set;
    const vector_at_t *classes;
} vector_cursor_t;

/* A shape is an expression, given in VECTOR_EACH_LOW or _HIGH with its number of nodes, for the leaf numbers of a
 * register's rows. In it nodes count in preorder, and leaves from the cluster's first. PAIR is a node over two leaves,
 * EXIT(e) what exit e leads to. */
#define VECTOR_GOES_LEFT(node) \
    vector_above(vector_splat(at->position[node]), vector_load(rows + at->column[node]))
#define VECTOR_LEAF(leaf) vector_of(leaf)
#define VECTOR_PAIR(node, leaf) (vector_of((leaf) + 1) + VECTOR_GOES_LEFT(node))
#define VECTOR_COUNT(left, node, right, leaves) vector_choose(left, VECTOR_GOES_LEFT(node), right)
#define VECTOR_EXIT(number) vector_load(rows + at->exit[number])
#define VECTOR_SELECT(left, node, right) vector_choose(left, VECTOR_GOES_LEFT(node), right)

/* The group's next clusters of one rank and shape, into the next slots; `first` is added to their numbers. No slot is
 * written before the last register is done: it might be a position, as far as the compiler knows, which would then be
 * loaded again for each register. */
#define VECTOR_LOOP(nodes, numbers, number_of_first)                               \
    for (uint32_t left = *at->count++; left; left--, slot += VECTOR_ROWS) {        \
        vector_t number[VECTOR_REGISTERS], first = number_of_first;                \
        VECTOR_UNROLL for (int i = 0; i < registers; i++) {                        \
            const uint8_t *rows = data + VECTOR_BYTES * i;                         \
            number[i] = numbers;                                                   \
        }                                                                          \
        VECTOR_UNROLL for (int i = 0; i < registers; i++)                          \
            vector_store(slot + VECTOR_BYTES * i, number[i] + first);              \
        at->position += nodes;                                                     \
        at->column += nodes;

#define VECTOR_LOW(nodes, numbers)                                                 \
    VECTOR_LOOP(nodes, numbers, vector_splat(*at->first))                          \
        at->first++;                                                               \
    }

#define VECTOR_HIGH(nodes, numbers)                                                \
    VECTOR_LOOP(nodes, numbers, vector_of(0))                                      \
        at->exit += nodes + 1;                                                     \
    }

/* All clusters of a group, so that the slots of the roots hold the leaf numbers. */
INLINE void vector_clusters(vector_cursor_t *at, uint8_t *data, int registers) {
    uint8_t *slot = data + VECTOR_SLOTS;
    VECTOR_EACH_LOW(VECTOR_LOW)
    for (uint32_t ranks = *at->count++; ranks; ranks--) {
        VECTOR_EACH_HIGH(VECTOR_HIGH)
    }
}

/* ---- values ---- */

#if FIXED_WIDE
typedef int64_t vector_sum_t; /* both words in one, which holds every sum */
#else
typedef int32_t vector_sum_t;
#endif

#define VECTOR_AT_ONCE 4 /* trees whose values are added at once */

/* Add the values of `trees` trees to `rows` sums. `root`: their slots. `values`: where theirs are in VECTOR_VALUES. */
INLINE void vector_add(const uint8_t *data, const vector_at_t *root, const uint32_t *values, vector_sum_t *sums,
                       int rows, int trees) {
    const uint8_t *leaf[VECTOR_AT_ONCE];
    const vector_sum_t *value[VECTOR_AT_ONCE];
    VECTOR_UNROLL for (int i = 0; i < trees; i++) {
        leaf[i] = data + root[i];
        value[i] = VECTOR_VALUES + values[i];
    }
    _Pragma("clang loop vectorize(disable) unroll_count(2)") for (int row = 0; row < rows; row++) {
        vector_sum_t sum = sums[row];
        VECTOR_UNROLL for (int i = 0; i < trees; i++) sum += value[i][leaf[i][row]];
        sums[row] = sum;
    }
}

/* Functions of their own, so that their pointers stay in registers. */
static __attribute__((noinline)) void vector_add_tree(const uint8_t *data, const vector_at_t *root,
                                                      const uint32_t *values, vector_sum_t *sums, int rows) {
    vector_add(data, root, values, sums, rows, 1);
}

static __attribute__((noinline)) void vector_add_trees(const uint8_t *data, const vector_at_t *root,
                                                       const uint32_t *values, vector_sum_t *sums, int rows) {
    vector_add(data, root, values, sums, rows, VECTOR_AT_ONCE);
}

/* Add the values of the trees from `first` to `end` to the sums of their outputs. */
INLINE void vector_add_group(const uint8_t *data, const vector_at_t *root, uint32_t first, uint32_t end,
                             vector_sum_t *sums, int rows) {
    for (uint32_t tree = first, step; tree < end; tree += step, root += step) {
        uint32_t output = VECTOR_TREE_OUTPUT(tree), last = tree + VECTOR_AT_ONCE - 1;
        vector_sum_t *own = sums + (size_t)output * VECTOR_ROWS;
        step = last < end && VECTOR_TREE_OUTPUT(last) == output ? VECTOR_AT_ONCE : 1;
        (step > 1 ? vector_add_trees : vector_add_tree)(data, root, VECTOR_OFFSETS + tree, own, rows);
    }
}

/* Results of `count` rows. */
INLINE void vector_finish(const vector_sum_t *sums, float *results, uint32_t count) {
    for (uint32_t row = 0; row < count; row += FINISH_LANES) {
        sum_t own[OUTPUTS * FINISH_LANES];
        for (uint32_t i = 0; i < OUTPUTS; i++)
            FINISH_EACH(lane) {
                vector_sum_t sum = sums[(size_t)i * VECTOR_ROWS + row + lane];
#if FIXED_WIDE
                own[i * FINISH_LANES + lane] = fixed_sum(0, sum, i);
#else
                own[i * FINISH_LANES + lane] = fixed_first(sum, i);
#endif
            }
        finish_lanes(own, FINISH_LANES, results + (size_t)row * COLUMNS_OUT,
                     count - row < FINISH_LANES ? count - row : FINISH_LANES);
    }
}

/* ---- all trees ---- */

INLINE void vector_trees(uint8_t *data, vector_sum_t *sums, int registers) {
    vector_cursor_t at = {VECTOR_POSITION, VECTOR_FIRSTS, VECTOR_COLUMN, VECTOR_EXITS,
                          VECTOR_ROOT,     VECTOR_COUNTS, VECTOR_SET,    VECTOR_SET_CLASSES};
    for (uint32_t first = 0; first < VECTOR_TREES; first += VECTOR_GROUP) {
        uint32_t own = *at.count++, end = first + VECTOR_GROUP < VECTOR_TREES ? first + VECTOR_GROUP : VECTOR_TREES;
        vector_sets(at.set, at.classes, own, data, data + VECTOR_OWN_SETS, registers);
        at.set += (size_t)own * VECTOR_SET_BYTES;
        at.classes += own;
        vector_clusters(&at, data, registers);
        vector_add_group(data, at.root, first, end, sums, VECTOR_BYTES * registers);
        at.root += end - first;
    }
}

static __attribute__((noinline)) void vector_trees_1(uint8_t *data, vector_sum_t *sums) { vector_trees(data, sums, 1); }
static __attribute__((noinline)) void vector_trees_2(uint8_t *data, vector_sum_t *sums) { vector_trees(data, sums, 2); }
#if VECTOR_REGISTERS == 4
static __attribute__((noinline)) void vector_trees_4(uint8_t *data, vector_sum_t *sums) { vector_trees(data, sums, 4); }
#endif

/* In the least number of registers that holds `count` rows. */
INLINE void vector_evaluate(uint8_t *data, vector_sum_t *sums, uint32_t count) {
    if (count <= VECTOR_BYTES)
        vector_trees_1(data, sums);
#if VECTOR_REGISTERS == 4
    else if (count > 2 * VECTOR_BYTES)
        vector_trees_4(data, sums);
#endif
    else
        vector_trees_2(data, sums);
}

/* ---- blocks of rows ---- */

static size_t vector_workspace(int64_t batch) {
    (void)batch;
    return VECTOR_DATA + (size_t)OUTPUTS * VECTOR_ROWS * sizeof(vector_sum_t);
}

static void vector_run(const float *rows, float *results, int64_t batch, void *workspace) {
    const uint32_t step = VECTOR_TOGETHER * VECTOR_BYTES;
    uint8_t *data = workspace;
    vector_sum_t *sums = (vector_sum_t *)(void *)(data + VECTOR_DATA);
    for (uint32_t number = 0; number < VECTOR_CONSTANT_COUNT; number++)
        __builtin_memset(data + VECTOR_CONSTANTS + number * VECTOR_ROWS, (int)number, VECTOR_ROWS);
    for (int64_t done = 0; done < batch; done += VECTOR_ROWS) {
        uint32_t count = batch - done < VECTOR_ROWS ? (uint32_t)(batch - done) : VECTOR_ROWS;
        const float *from = rows + (size_t)done * FEATURES;
        for (uint32_t first = 0; first < count; first += step)
            vector_fill(from + (size_t)first * FEATURES, count - first < step ? count - first : step, data + first);
#if VECTOR_CATEGORY_GROUP_COUNT
        vector_categories(from, count, data);
        vector_sets(VECTOR_SHARED_SET, VECTOR_SHARED_SET_CLASSES, VECTOR_SHARED_COUNT, data, data + VECTOR_SHARED_SETS,
                    VECTOR_REGISTERS);
#endif
        __builtin_memset(sums, 0, (size_t)OUTPUTS * VECTOR_ROWS * sizeof *sums);
        vector_evaluate(data, sums, count);
        vector_finish(sums, results + (size_t)done * COLUMNS_OUT, count);
    }
}

#endif
