/* K2: a portable forest walk over data tables, for any forest and any CPU.
 *
 * Idea: a tree walk is a chain of dependent loads, so one walk alone waits most of the time. LANES walks run
 * interleaved: LANES rows through one tree, or, for rows left over and for single rows, one row through LANES trees.
 * Rows are first turned into integer virtual columns (layout.py), in which missing values, signs of zero and
 * categories are settled, so that a step is: load node, load column, compare, add. A leaf tests the sentinel column,
 * which never goes right, and names itself as its child: lanes that are done simply stay. Every EXIT_EVERY levels the
 * walk stops if no lane moved. Rows go in blocks of BLOCK, trees outside of them, so that a tree's nodes are read once
 * a block.
 *
 * Cost model: rows * trees * depth steps of about 5 instructions; about depth * (load latency) / LANES a tree and row
 * while the nodes stay in cache. Columns cost about 4 instructions each a row. Memory: 8 bytes a node (12 if WIDE).
 *
 * Limits: up to 2^31 nodes in all. Without WIDE, 65536 nodes a tree and 65536 virtual columns.
 *
 * Exactness: decisions are those of the source for every float32. Sums take the trees in order, whatever the batch,
 * and integers decide, so results are the same for every batch size and on every target.
 */
#include "forest.h"
#include "math.h"
#include "native_abi.h"

#define INLINE static inline __attribute__((always_inline, unused))
#define SENTINEL INT32_MIN
#define ROUND_UP(size) (((size_t)(size) + 63) & ~(size_t)63)
#define EXIT_EVERY 4

/* ---- virtual columns ---- */

INLINE int is_nan(uint32_t bits) { return (bits & 0x7fffffffu) > 0x7f800000u; }

/* |x| <= 1e-35, as LightGBM compares it: the last float32 that is not above it has these bits. */
INLINE int is_tiny(uint32_t bits) { return (bits & 0x7fffffffu) <= 0x0554ad2eu; }

/* The order of floats as int32; -0 is +0. */
INLINE int32_t sort_key(uint32_t bits) {
    if (TINY_IS_ZERO && is_tiny(bits)) bits = 0;
    if (bits == 0x80000000u) bits = 0;
    return (int32_t)bits < 0 ? (int32_t)(bits ^ 0x7fffffffu) : (int32_t)bits;
}

INLINE int is_missing(uint32_t bits) { return is_nan(bits) || (ZERO_IS_MISSING && is_tiny(bits)); }

#if CATEGORY_COLUMNS
/* Position in a category set: 0 unknown, 1 missing, c + 2. */
INLINE int32_t category(uint32_t bits) {
    if (is_nan(bits)) return 1;
    union { uint32_t bits; float value; } word = {bits};
    if (NEGATIVE_FRACTION_IS_ZERO ? word.value <= -1.0f : word.value < 0.0f) return 0;
    if (word.value >= 16777216.0f) return 0;
    int32_t number = (int32_t)word.value;
    if (EXACT_CATEGORIES && (float)number != word.value) return 0;
    return number + 2;
}
#endif

static void fill_columns(const uint32_t *row, int32_t *columns) {
    const uint32_t *feature = COLUMN_FEATURE;
    *columns++ = SENTINEL;
    for (uint32_t i = 0; i < LEFT_COLUMNS; i++) {
        uint32_t bits = row[*feature++];
        *columns++ = is_missing(bits) ? INT32_MIN : sort_key(bits);
    }
    for (uint32_t i = 0; i < RIGHT_COLUMNS; i++) {
        uint32_t bits = row[*feature++];
        *columns++ = is_missing(bits) ? INT32_MAX : sort_key(bits);
    }
#if CATEGORY_COLUMNS
    for (uint32_t i = 0; i < CATEGORY_COLUMNS; i++) *columns++ = category(row[*feature++]);
#endif
}

/* ---- the walk ---- */

typedef struct { int32_t bound; uint32_t column, child; } node_t;

#if WIDE
INLINE node_t load_node(uint32_t index) {
    const uint32_t *words = NODES + (size_t)index * 3;
    return (node_t){(int32_t)words[0], words[1], words[2]};
}
#else
INLINE node_t load_node(uint32_t index) {
    uint64_t word = NODES[index];
    return (node_t){(int32_t)word, (uint32_t)(word >> 32) & 0xffff, (uint32_t)(word >> 48)};
}
#endif

INLINE uint32_t goes_right(node_t node, int32_t value) {
#if CATEGORY_COLUMNS
    if (node.column > LEFT_COLUMNS + RIGHT_COLUMNS) {
        const uint32_t *set = CATEGORY_SETS + (uint32_t)node.bound;
        uint32_t bit = (uint32_t)value < set[0] ? (uint32_t)value : 0;
        return set[1 + (bit >> 5)] >> (bit & 31) & 1;
    }
#endif
    return value >= node.bound;
}

/* Walk LANES trees, or one tree LANES times, to their leaves; `leaf` gets the row of VALUES of each. */
INLINE void walk(const uint32_t *root, const int32_t *const *columns, uint32_t depth, uint32_t *leaf) {
    uint32_t at[LANES];
    for (int lane = 0; lane < LANES; lane++) at[lane] = 0;
    for (uint32_t level = 0; level < depth;) {
        uint32_t stop = depth - level < EXIT_EVERY ? depth : level + EXIT_EVERY, moved = 0;
        for (; level < stop; level++) {
            moved = 0;
#pragma clang loop unroll(full)
            for (int lane = 0; lane < LANES; lane++) {
                node_t node = load_node(root[lane] + at[lane]);
                uint32_t next = node.child + goes_right(node, columns[lane][node.column]);
                moved |= next ^ at[lane];
                at[lane] = next;
            }
        }
        if (!moved) break;
    }
    for (int lane = 0; lane < LANES; lane++) leaf[lane] = (uint32_t)load_node(root[lane] + at[lane]).bound;
}

INLINE void add_leaf(uint32_t tree, uint32_t leaf, sum_t *sums) {
    (void)tree;
#if WIDTH == 1
    sums[TREE_OUTPUT(tree)] += VALUES[leaf];
#else
    for (uint32_t i = 0; i < WIDTH; i++) sums[i] += VALUES[(size_t)leaf * WIDTH + i];
#endif
}

/* LANES rows through every tree; a tree's nodes serve all rows of a block, hence the loop over rows inside. */
static void walk_rows(const int32_t *columns, uint32_t groups, sum_t *sums) {
    for (uint32_t tree = 0; tree < TREES; tree++) {
        for (uint32_t group = 0; group < groups; group++) {
            uint32_t root[LANES], leaf[LANES];
            const int32_t *lanes[LANES];
            for (uint32_t lane = 0; lane < LANES; lane++) {
                root[lane] = ROOT[tree];
                lanes[lane] = columns + (size_t)(group * LANES + lane) * COLUMNS;
            }
            walk(root, lanes, DEPTH[tree], leaf);
            for (uint32_t lane = 0; lane < LANES; lane++)
                add_leaf(tree, leaf[lane], sums + (size_t)(group * LANES + lane) * OUTPUTS);
        }
    }
}

/* One row through LANES trees at a time; the lanes of the last group that have no tree repeat its last one. */
static void walk_trees(const int32_t *columns, sum_t *sums) {
    for (uint32_t first = 0; first < TREES; first += LANES) {
        uint32_t root[LANES], leaf[LANES], depth = 0;
        const int32_t *lanes[LANES];
        for (uint32_t lane = 0; lane < LANES; lane++) {
            uint32_t tree = first + lane < TREES ? first + lane : TREES - 1;
            root[lane] = ROOT[tree];
            lanes[lane] = columns;
            if (DEPTH[tree] > depth) depth = DEPTH[tree];
        }
        walk(root, lanes, depth, leaf);
        for (uint32_t lane = 0; lane < LANES && first + lane < TREES; lane++) add_leaf(first + lane, leaf[lane], sums);
    }
}

/* ---- sums to results ---- */

INLINE double transform(double x) {
#if TRANSFORM == SIGMOID
    return 1.0 / (1.0 + exponential(-SCALE * x));
#elif TRANSFORM == EXPONENTIAL
    return exponential(x);
#elif TRANSFORM == EXPONENTIAL_RATIO
    return exponential(-0.6931471805599453 * x / SCALE);
#elif TRANSFORM == ISOLATION
    return -exponential(-0.6931471805599453 * x / SCALE);
#elif TRANSFORM == HINGE
    return x > 0.0 ? 1.0 : 0.0;
#elif TRANSFORM == SIGNED_SQUARE
    return x < 0.0 ? -(x * x) : x * x;
#elif TRANSFORM == LOG_ONE_PLUS_EXP
    return log_one_plus_exp(x);
#else
    return x;
#endif
}

static void finish(const sum_t *sums, float *result) {
    double value[OUTPUTS];
    for (uint32_t i = 0; i < OUTPUTS; i++) value[i] = (double)AVERAGED(sums[i], i);
#if TRANSFORM == SOFTMAX || TRANSFORM == ARGMAX
    uint32_t best = 0;
    for (uint32_t i = 1; i < OUTPUTS; i++)
        if (value[i] > value[best]) best = i;
#if TRANSFORM == ARGMAX
    result[0] = (float)best;
#else
    double most = value[best], total = 0.0;
    for (uint32_t i = 0; i < OUTPUTS; i++) total += value[i] = exponential(value[i] - most);
    for (uint32_t i = 0; i < OUTPUTS; i++) result[i] = (float)(value[i] / total);
#endif
#elif COMPLEMENT
    double p = transform(value[0]);
    result[0] = (float)(1.0 - p);
    result[1] = (float)p;
#else
    for (uint32_t i = 0; i < OUTPUTS; i++) result[i] = (float)transform(value[i]);
#endif
}

/* ---- the ABI ---- */

/* Rows that a block of this batch holds. */
INLINE size_t block_rows(int64_t batch) { return batch < BLOCK ? (size_t)batch : BLOCK; }

OUTRIDER_API uint32_t outrider_abi(void) { return OUTRIDER_ABI; }

OUTRIDER_API size_t outrider_workspace(int64_t batch) {
    size_t rows = block_rows(batch);
    return ROUND_UP(rows * COLUMNS * sizeof(int32_t)) + ROUND_UP(rows * OUTPUTS * sizeof(sum_t));
}

OUTRIDER_API int32_t outrider_run(const void *const *inputs, void *const *outputs, int64_t batch, void *workspace) {
    const uint32_t *input = inputs[0];
    float *output = outputs[0];
    int32_t *columns = workspace;
    sum_t *sums = (sum_t *)((char *)workspace + ROUND_UP(block_rows(batch) * COLUMNS * sizeof(int32_t)));
    for (int64_t done = 0; done < batch; done += BLOCK) {
        uint32_t rows = batch - done < BLOCK ? (uint32_t)(batch - done) : BLOCK, groups = rows / LANES;
        for (uint32_t row = 0; row < rows; row++) {
            fill_columns(input + (size_t)(done + row) * FEATURES, columns + (size_t)row * COLUMNS);
            for (uint32_t i = 0; i < OUTPUTS; i++) sums[(size_t)row * OUTPUTS + i] = START[i];
        }
        if (groups) walk_rows(columns, groups, sums);
        for (uint32_t row = groups * LANES; row < rows; row++)
            walk_trees(columns + (size_t)row * COLUMNS, sums + (size_t)row * OUTPUTS);
        for (uint32_t row = 0; row < rows; row++)
            finish(sums + (size_t)row * OUTPUTS, output + (size_t)(done + row) * COLUMNS_OUT);
    }
    return 0;
}
