/* Shape: all nodes of trees of up to 8 levels for 64 rows a register, batch, for AVX-512 with VBMI.
 *
 * Idea: a decision is `rank > position` on a byte (quantise.py), so one compare decides a node for 64 rows, and a tree
 * is evaluated bottom up without a branch: the leaf number of a node is that of its left child, or, under the mask of
 * the decision, that of its right child plus the leaves on the left. What costs are nodes, so a tree is not padded to
 * a perfect one: only its top levels are. Below them hang blocks of height up to 3, of which only 26 shapes exist.
 * Within SHAPE_GROUP trees blocks are sorted by shape, each shape is one straight loop that leaves its results in a
 * buffer in L1, and the tops blend the buffer. With SHAPE_BLOCK 0 there are no blocks and trees are perfect.
 *
 * A leaf's number is looked up in four tables, one for each byte of the values, by byte permutes; unpacks put the bytes
 * together. They also undo the order in which ranks.h leaves the rows.
 *
 * Cost model: per node and 64 rows a broadcast, a compare with memory and a masked add; per block a store and a load;
 * per tree 4 (64 leaves) to 20 (256) permutes and 8 unpacks. Ranks: see ranks.h. Memory: 6 to 8 bytes a node, 4 a leaf
 * of the padded tree. Rows are rounded up to 64.
 *
 * Limits: depth 8, single leaf values, sums of float32, numeric splits only.
 *
 * Exactness: decisions are exact for every float32. Sums take an output's trees in order, whatever the batch.
 */
#ifndef OUTRIDER_SHAPE_H
#define OUTRIDER_SHAPE_H

#include "common.h"
#include "finish_batch.h"
#include "ranks.h"
#include "shape_tables.h"


#define SHAPE_UNROLL _Pragma("clang loop unroll(full)")


/* Rows of a full block; a column's ranks and a slot of the buffer are this many bytes. */
#define SHAPE_ROWS (64 * SHAPE_REGISTERS)
#define SHAPE_SLOTS (1 << SHAPE_TOP_LEVELS) /* blocks below a top, which is perfect */
#define SHAPE_STRIDE (FEATURES < 4 ? 4 : FEATURES)
#define SHAPE_PLANE (SHAPE_DEPTH <= 6 ? 64 : 1 << SHAPE_DEPTH) /* leaves of a tree's tables */

typedef __m512i shape_bytes_t[SHAPE_REGISTERS];

/* ---- decisions ---- */

/* Which of 64 rows go right. */
INLINE __mmask64 shape_right(const uint8_t *columns, const uint32_t *position, const shape_column_t *column) {
    __m512i ranks = _mm512_load_si512(columns + *column);
    return _mm512_cmplt_epu8_mask(_mm512_set1_epi32((int)*position), ranks);
}

/* right + leaves where the mask is set, left elsewhere. */
INLINE __m512i shape_blend(__m512i left, __mmask64 goes_right, __m512i right, int leaves) {
    return _mm512_mask_add_epi8(left, goes_right, right, ranks_opaque(_mm512_set1_epi8((char)leaves)));
}

/* ---- blocks ---- */

#if SHAPE_BLOCK
/* A shape is a set of nodes: bit 0 the root, bits 1 and 2 its children, 3 to 6 theirs. Nodes are stored in preorder. */
#define SHAPE_HAS(shape, node) ((shape) >> (node) & 1)
#define SHAPE_UNDER(shape, node) \
    (SHAPE_HAS(shape, node) + SHAPE_HAS(shape, 2 * (node) + 1) + SHAPE_HAS(shape, 2 * (node) + 2))

/* The leaf numbers below a node of the third, second and first level of a block, whose own data are the first. */
INLINE __m512i shape_third(int shape, int node, const uint8_t *columns, const uint32_t *position,
                                 const shape_column_t *column) {
    if (!SHAPE_HAS(shape, node)) return _mm512_setzero_si512();
    return _mm512_maskz_set1_epi8(shape_right(columns, position, column), 1);
}

INLINE __m512i shape_second(int shape, int node, const uint8_t *columns, const uint32_t *position,
                                  const shape_column_t *column) {
    if (!SHAPE_HAS(shape, node)) return _mm512_setzero_si512();
    int nodes = SHAPE_HAS(shape, 2 * node + 1);
    __m512i left = shape_third(shape, 2 * node + 1, columns, position + 1, column + 1);
    __m512i right = shape_third(shape, 2 * node + 2, columns, position + 1 + nodes, column + 1 + nodes);
    return shape_blend(left, shape_right(columns, position, column), right, nodes + 1);
}

INLINE __m512i shape_first(int shape, const uint8_t *columns, const uint32_t *position,
                                 const shape_column_t *column) {
    if (!SHAPE_HAS(shape, 0)) return _mm512_setzero_si512();
    int nodes = SHAPE_UNDER(shape, 1);
    __m512i left = shape_second(shape, 1, columns, position + 1, column + 1);
    __m512i right = shape_second(shape, 2, columns, position + 1 + nodes, column + 1 + nodes);
    return shape_blend(left, shape_right(columns, position, column), right, nodes + 1);
}

typedef struct {
    const uint32_t *position, *slot;
    const shape_column_t *column;
    const uint16_t *count;
} shape_cursor_t;

/* The next group's blocks of one shape. */
INLINE void shape_loop(int shape, shape_cursor_t *at, const uint8_t *columns, uint8_t *buffer, int registers) {
    int nodes = SHAPE_HAS(shape, 0) + SHAPE_UNDER(shape, 1) + SHAPE_UNDER(shape, 2);
    for (uint32_t left = *at->count++; left; left--) {
        SHAPE_UNROLL for (int i = 0; i < registers; i++)
            _mm512_store_si512(buffer + *at->slot + 64 * i,
                               shape_first(shape, columns + 64 * i, at->position, at->column));
        at->slot++;
        at->position += nodes;
        at->column += nodes;
    }
}
#endif

/* ---- tops ---- */

/* A tree's perfect top, nodes numbered as in a heap, and the results of the blocks below it. */
typedef struct {
    const uint32_t *position;
    const shape_column_t *column;
    const uint8_t *columns, *buffer;
} shape_tree_t;

INLINE void shape_top0(const shape_tree_t *tree, int node, __m512i *leaf, int registers) {
    SHAPE_UNROLL for (int i = 0; i < registers; i++) {
#if SHAPE_BLOCK
        leaf[i] = _mm512_load_si512(tree->buffer + (size_t)(node - (SHAPE_SLOTS - 1)) * SHAPE_ROWS + 64 * i);
#else
        leaf[i] = _mm512_setzero_si512();
#endif
    }
}

/* The leaf numbers below a node that has `height` levels of the top below it, itself included. */
#define SHAPE_DEFINE_TOP(height, below)                                                                           \
    INLINE void shape_top##height(const shape_tree_t *tree, int node, __m512i *leaf, int registers) {       \
        shape_bytes_t right;                                                                                      \
        shape_top##below(tree, 2 * node + 1, leaf, registers);                                                    \
        shape_top##below(tree, 2 * node + 2, right, registers);                                                   \
        SHAPE_UNROLL for (int i = 0; i < registers; i++)                                                          \
            leaf[i] = shape_blend(                                                                                \
                leaf[i], shape_right(tree->columns + 64 * i, tree->position + node, tree->column + node), right[i], \
                1 << (SHAPE_BLOCK + below));                                                                      \
    }
SHAPE_DEFINE_TOP(1, 0)
SHAPE_DEFINE_TOP(2, 1)
SHAPE_DEFINE_TOP(3, 2)
SHAPE_DEFINE_TOP(4, 3)
SHAPE_DEFINE_TOP(5, 4)
SHAPE_DEFINE_TOP(6, 5)
SHAPE_DEFINE_TOP(7, 6)
SHAPE_DEFINE_TOP(8, 7)
#define SHAPE_JOIN_(a, b) a##b
#define SHAPE_JOIN(a, b) SHAPE_JOIN_(a, b)
#define SHAPE_TOP SHAPE_JOIN(shape_top, SHAPE_TOP_LEVELS) /* a number, not an expression: it is pasted */

/* ---- leaves ---- */

/* One byte of the values of 64 leaves. */
INLINE __m512i shape_plane(const uint8_t *plane, __m512i leaf) {
    __m512i low = _mm512_load_si512(plane);
    if (SHAPE_DEPTH <= 6) return _mm512_permutexvar_epi8(leaf, low);
    low = _mm512_permutex2var_epi8(low, leaf, _mm512_load_si512(plane + 64));
    if (SHAPE_DEPTH == 7) return low;
    __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(plane + 128 % SHAPE_PLANE), leaf,
                                            _mm512_load_si512(plane + 192 % SHAPE_PLANE));
    return _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(leaf), high);
}

INLINE __m512 shape_add(__m512 sum, __m512i values) { return _mm512_add_ps(sum, _mm512_castsi512_ps(values)); }

/* Add the values of 64 leaves to the sums of their rows. */
INLINE void shape_add_leaves(const uint8_t *planes, __m512i leaf, __m512 *sums) {
    __m512i byte0 = shape_plane(planes, leaf), byte1 = shape_plane(planes + SHAPE_PLANE, leaf);
    __m512i byte2 = shape_plane(planes + 2 * SHAPE_PLANE, leaf), byte3 = shape_plane(planes + 3 * SHAPE_PLANE, leaf);
    __m512i even_low = _mm512_unpacklo_epi8(byte0, byte1), even_high = _mm512_unpacklo_epi8(byte2, byte3);
    __m512i odd_low = _mm512_unpackhi_epi8(byte0, byte1), odd_high = _mm512_unpackhi_epi8(byte2, byte3);
    sums[0] = shape_add(sums[0], _mm512_unpacklo_epi16(even_low, even_high));
    sums[1] = shape_add(sums[1], _mm512_unpackhi_epi16(even_low, even_high));
    sums[2] = shape_add(sums[2], _mm512_unpacklo_epi16(odd_low, odd_high));
    sums[3] = shape_add(sums[3], _mm512_unpackhi_epi16(odd_low, odd_high));
}

/* ---- blocks of rows ---- */

INLINE void shape_load(const float *sums, __m512 *sum, int registers) {
    SHAPE_UNROLL for (int i = 0; i < 4 * registers; i++) sum[i] = _mm512_load_ps(sums + 16 * i);
}

INLINE void shape_store(float *sums, const __m512 *sum, int registers) {
    SHAPE_UNROLL for (int i = 0; i < 4 * registers; i++) _mm512_store_ps(sums + 16 * i, sum[i]);
}

/* All trees for `registers` times 64 rows. `sums` is [outputs][SHAPE_ROWS]; trees are in the order of their
 * outputs, so the sums of one stay in registers. */
INLINE void shape_trees(const uint8_t *columns, uint8_t *buffer, float *sums, int registers) {
    shape_tree_t tree = {SHAPE_TOP_POSITION, SHAPE_TOP_COLUMN, columns, buffer};
    const uint8_t *planes = SHAPE_LEAVES;
#if SHAPE_BLOCK
    shape_cursor_t at = {SHAPE_BLOCK_POSITION, SHAPE_BLOCK_SLOT, SHAPE_BLOCK_COLUMN, SHAPE_BLOCK_COUNT};
#endif
    __m512 sum[4 * SHAPE_REGISTERS];
    uint32_t output = SHAPE_TREE_OUTPUT(0);
    shape_load(sums + (size_t)output * SHAPE_ROWS, sum, registers);
    for (uint32_t first = 0; first < TREES; first += SHAPE_GROUP) {
#if SHAPE_BLOCK
#define SHAPE_ONE(shape) shape_loop(shape, &at, columns, buffer, registers);
        SHAPE_EACH(SHAPE_ONE)
#endif
        uint32_t end = first + SHAPE_GROUP < TREES ? first + SHAPE_GROUP : TREES;
        tree.buffer = buffer;
        for (uint32_t number = first; number < end; number++) {
            shape_bytes_t leaf;
            SHAPE_TOP(&tree, 0, leaf, registers);
            if (SHAPE_TREE_OUTPUT(number) != output) {
                shape_store(sums + (size_t)output * SHAPE_ROWS, sum, registers);
                output = SHAPE_TREE_OUTPUT(number);
                shape_load(sums + (size_t)output * SHAPE_ROWS, sum, registers);
            }
            SHAPE_UNROLL for (int i = 0; i < registers; i++) shape_add_leaves(planes, leaf[i], sum + 4 * i);
            tree.position += SHAPE_SLOTS - 1;
            tree.column += SHAPE_SLOTS - 1;
            tree.buffer += SHAPE_SLOTS * SHAPE_ROWS;
            planes += 4 * SHAPE_PLANE;
        }
    }
    shape_store(sums + (size_t)output * SHAPE_ROWS, sum, registers);
}

static __attribute__((noinline)) void shape_trees_64(const uint8_t *columns, uint8_t *buffer, float *sums) {
    shape_trees(columns, buffer, sums, 1);
}

#if SHAPE_REGISTERS > 1
static __attribute__((noinline)) void shape_trees_full(const uint8_t *columns, uint8_t *buffer, float *sums) {
    shape_trees(columns, buffer, sums, SHAPE_REGISTERS);
}
#endif

typedef struct {
    uint8_t *columns, *buffer;
    float *sums, *copy;
    size_t bytes;
} shape_workspace_t;

INLINE shape_workspace_t shape_divide(void *workspace) {
    uint8_t *columns = workspace;
    uint8_t *buffer = columns + (size_t)(SHAPE_COLUMNS + 1) * SHAPE_ROWS; /* the last column is for ranks unread */
    float *sums = (float *)(buffer + (SHAPE_BLOCK ? (size_t)SHAPE_GROUP * SHAPE_SLOTS * SHAPE_ROWS : 0));
    float *copy = sums + (size_t)OUTPUTS * SHAPE_ROWS;
    size_t bytes = (size_t)((uint8_t *)(copy + (size_t)64 * SHAPE_STRIDE) - columns);
    return (shape_workspace_t){columns, buffer, sums, copy, bytes};
}

/* Ranks of up to 64 rows. Fewer than 64, or rows too short for ranks.h, are copied first. */
INLINE void shape_rank(const float *rows, uint32_t count, float *copy, uint8_t *columns) {
    if (count < 64 || FEATURES < 4) {
        for (uint32_t row = 0; row < count; row++)
            for (uint32_t i = 0; i < FEATURES; i++)
                copy[(size_t)row * SHAPE_STRIDE + i] = rows[(size_t)row * FEATURES + i];
        rows = copy;
    }
    ranks_fill(rows, SHAPE_STRIDE, SHAPE_RANK_GROUPS, SHAPE_RANK_GROUP_COUNT, SHAPE_RANK_CHUNKS, SHAPE_RANK_TABLES,
               columns, (ranks_rules_t){ZERO_IS_MISSING, TINY_IS_ZERO, 0});
}

static size_t shape_workspace(int64_t batch) {
    (void)batch;
    return shape_divide((void *)0).bytes;
}

static void shape_run(const float *rows, float *results, int64_t batch, void *workspace) {
    shape_workspace_t at = shape_divide(workspace);
    for (int64_t done = 0; done < batch; done += SHAPE_ROWS) {
        uint32_t count = batch - done < SHAPE_ROWS ? (uint32_t)(batch - done) : SHAPE_ROWS;
        for (uint32_t first = 0; first < count; first += 64)
            shape_rank(rows + (size_t)(done + first) * FEATURES, count - first < 64 ? count - first : 64, at.copy,
                       at.columns + first);
        for (uint32_t i = 0; i < OUTPUTS; i++)
            for (uint32_t row = 0; row < SHAPE_ROWS; row++) at.sums[(size_t)i * SHAPE_ROWS + row] = START[i];
#if SHAPE_REGISTERS > 1
        if (count > 64)
            shape_trees_full(at.columns, at.buffer, at.sums);
        else
#endif
            shape_trees_64(at.columns, at.buffer, at.sums);
        finish_rows(at.sums, SHAPE_ROWS, results + (size_t)done * COLUMNS_OUT, count);
    }
}

#endif
