/* Floats of rows to ranks of virtual columns, a byte a row (quantise.py), in vectors of VECTOR_BYTES rows.
 *
 * Idea: keys are taken apart into their four bytes, which transposes of 16 x 16 bytes bring in, four features at once.
 * A key is searched for in a chunk's search tree, p = 2 p + (key < bound[p]), whose bounds are in bytes as well, so
 * that look-ups in tables of 16 bytes find those of all rows. Each of the four bytes has one table for the first four
 * levels together, then 1, 2, 4 and 8. Where the machine has no such look-ups (VECTOR_LOOKS_UP 0), rows are searched
 * for one by one, eight side by side.
 *
 * Cost model: per chunk and vector 25 instructions a level for the first five, then 40, 70 and 120, and 60 around
 * them. Levels wait for each other, so two vectors are searched for together.
 *
 * Rows keep their order; ranks are stored xor 0x80, for signed comparisons. Exactness: keys are integers, hence
 * decisions are exact for every float32, whatever the rounding and flushing modes of the caller.
 */
#ifndef OUTRIDER_VECTOR_RANKS_H
#define OUTRIDER_VECTOR_RANKS_H

#include "keys.h"
#include "vector.h"

#define VECTOR_TOGETHER 2 /* vectors; a block has two or four */

/* Ranks to the columns of a chunk. `missing` is 255 for rows without a value. */
INLINE void vector_store_ranks(vector_t ranks, vector_t missing, const ranks_chunk_t *chunk, uint8_t *columns) {
    vector_t left = (ranks & ~missing) ^ 0x80, right = (ranks | missing) ^ 0x80;
    vector_store(columns + chunk->left, left);
    vector_store(columns + chunk->right, right);
    vector_store(columns + chunk->not_left, ~left);
    vector_store(columns + chunk->not_right, ~right);
}

#if VECTOR_LOOKS_UP

/* Numbers by their bytes, the lowest first. All but the highest are xor 0x80, so that signed comparisons of bytes give
 * the order of int32. */
typedef struct { vector_t byte[4]; } vector_numbers_t;

INLINE vector_t vector_numbers_above(const vector_numbers_t *a, const vector_numbers_t *b) {
    vector_t above[4], equal[4];
    VECTOR_UNROLL for (int i = 0; i < 4; i++) {
        above[i] = vector_opaque(vector_above(a->byte[i], b->byte[i]));
        equal[i] = vector_opaque(vector_equal(a->byte[i], b->byte[i]));
    }
    return above[3] | (equal[3] & above[2]) | (equal[3] & equal[2] & (above[1] | (equal[1] & above[0])));
}

/* The bytes of four features, [4 * feature + byte][row]. In longer vectors each 16 rows keep to their own 16 bytes. */
INLINE void vector_transpose(const float *const *row, uint32_t feature, uint8_t *out) {
    vector_t a[16], b[16];
    VECTOR_UNROLL for (int i = 0; i < 16; i++) {
        a[i] = vector_of(0);
        VECTOR_UNROLL for (int half = 0; half < VECTOR_BYTES; half += 16)
            __builtin_memcpy((uint8_t *)&a[i] + half, row[i + half] + feature, FEATURES < 4 ? 4 * FEATURES : 16);
    }
    VECTOR_UNROLL for (int stage = 0; stage < 4; stage++) {
        VECTOR_UNROLL for (int i = 0; i < 8; i++) {
            b[2 * i] = vector_zip_low(a[i], a[i + 8]);
            b[2 * i + 1] = vector_zip_high(a[i], a[i + 8]);
        }
        VECTOR_UNROLL for (int i = 0; i < 16; i++) a[i] = b[i];
    }
    VECTOR_UNROLL for (int i = 0; i < 16; i++) vector_store(out + VECTOR_BYTES * i, a[i]);
}

/* Floats, given by their bytes, to raw keys (quantise.py); returns 255 for those that are missing. */
INLINE vector_t vector_keys(const uint8_t *bytes, vector_numbers_t *keys) {
    const vector_t zero = vector_of(0);
    vector_t bits[4];
    VECTOR_UNROLL for (int i = 0; i < 4; i++) bits[i] = vector_load(bytes + VECTOR_BYTES * i);
    vector_t infinite = vector_equal(bits[3] & 0x7f, vector_of(0x7f)) & vector_above(zero, bits[2]);
    vector_t missing = infinite & ~vector_equal((bits[2] & 0x7f) | bits[1] | bits[0], zero);
    if (ZERO_IS_MISSING || TINY_IS_ZERO) {
        /* The size is not above 0x0554ad2e, see keys.h. */
        const vector_numbers_t last = {{vector_of(0xae), vector_of(0x2d), vector_of(0xd4), vector_of(5)}};
        vector_numbers_t size = {{bits[0] ^ 0x80, bits[1] ^ 0x80, bits[2] ^ 0x80, bits[3] & 0x7f}};
        vector_t above = vector_numbers_above(&size, &last);
        if (ZERO_IS_MISSING) missing |= ~above;
        if (TINY_IS_ZERO) VECTOR_UNROLL for (int i = 0; i < 4; i++) bits[i] &= above;
    }
    vector_t negative = vector_above(zero, bits[3]);
    VECTOR_UNROLL for (int i = 0; i < 3; i++) keys->byte[i] = bits[i] ^ negative ^ 0x80;
    keys->byte[3] = bits[3] ^ (negative & 0x7f);
    return missing;
}

/* From the places of keys at one level of a tree to those at the next. The level's bounds are in `pages` pages of 16,
 * from `first` on. */
INLINE void vector_step(const vector_numbers_t *keys, const uint8_t *tree, int first, int pages, vector_t *at,
                        int count) {
    VECTOR_UNROLL for (int one = 0; one < count; one++) {
        vector_numbers_t bounds = {{vector_of(0), vector_of(0), vector_of(0), vector_of(0)}};
        VECTOR_UNROLL for (int page = first; page < first + pages; page++) {
            vector_t index = at[one] - (uint8_t)(16 * page);
            if (pages > 1) index = vector_index(index);
            VECTOR_UNROLL for (int i = 0; i < 4; i++)
                bounds.byte[i] |= vector_look_up(tree + 64 * page + 16 * i, index);
        }
        at[one] = at[one] + at[one] - vector_numbers_above(&bounds, keys + one);
    }
}

/* Ranks of keys by a search tree of so many levels. */
INLINE void vector_search(const vector_numbers_t *keys, const uint8_t *tree, uint32_t levels, vector_t *ranks,
                          int count) {
    vector_t at[VECTOR_TOGETHER];
    VECTOR_UNROLL for (int one = 0; one < count; one++) at[one] = vector_of(1);
    for (uint32_t level = 0; level < levels && level < 4; level++) vector_step(keys, tree, 0, 1, at, count);
    if (levels > 4) vector_step(keys, tree, 1, 1, at, count);
    if (levels > 5) vector_step(keys, tree, 2, 2, at, count);
    if (levels > 6) vector_step(keys, tree, 4, 4, at, count);
    if (levels > 7) vector_step(keys, tree, 8, 8, at, count);
    /* The tree is mirrored: the last place is the one after all bounds. */
    VECTOR_UNROLL for (int one = 0; one < count; one++) ranks[one] = (uint8_t)((2u << levels) - 1) - at[one];
}

/* The columns of a group's chunks for `count` vectors of rows. */
INLINE void vector_group(const float *const *row, const ranks_group_t *group, const ranks_chunk_t *chunk,
                         uint8_t *columns, int count) {
    uint8_t bytes[VECTOR_TOGETHER][16 * VECTOR_BYTES] __attribute__((aligned(VECTOR_BYTES)));
    VECTOR_UNROLL for (int one = 0; one < count; one++)
        vector_transpose(row + VECTOR_BYTES * one, group->first, bytes[one]);
    for (const ranks_chunk_t *last = chunk + group->chunks; chunk < last; chunk++) {
        vector_numbers_t keys[VECTOR_TOGETHER];
        vector_t missing[VECTOR_TOGETHER], ranks[VECTOR_TOGETHER];
        VECTOR_UNROLL for (int one = 0; one < count; one++)
            missing[one] = vector_keys(bytes[one] + 4 * VECTOR_BYTES * chunk->lane, keys + one);
        vector_search(keys, (const uint8_t *)(VECTOR_RANK_TABLES + chunk->table), chunk->kind, ranks, count);
        VECTOR_UNROLL for (int one = 0; one < count; one++)
            vector_store_ranks(ranks[one], missing[one], chunk, columns + VECTOR_BYTES * one);
    }
}

#else

#define VECTOR_SIDE_BY_SIDE 8 /* rows */

/* As above. The tree is in words, and its steps are p = 2 p + (key >= bound[p]). */
INLINE void vector_group(const float *const *row, const ranks_group_t *group, const ranks_chunk_t *chunk,
                         uint8_t *columns, int count) {
    for (const ranks_chunk_t *last = chunk + group->chunks; chunk < last; chunk++)
        for (int one = 0; one < count; one++) {
            const int32_t *tree = VECTOR_RANK_TABLES + chunk->table;
            uint8_t ranks[VECTOR_BYTES], missing[VECTOR_BYTES];
            for (int first = 0; first < VECTOR_BYTES; first += VECTOR_SIDE_BY_SIDE) {
                int32_t key[VECTOR_SIDE_BY_SIDE];
                uint32_t at[VECTOR_SIDE_BY_SIDE];
                VECTOR_UNROLL for (int i = 0; i < VECTOR_SIDE_BY_SIDE; i++) {
                    uint32_t bits;
                    __builtin_memcpy(&bits, row[VECTOR_BYTES * one + first + i] + group->first + chunk->lane, 4);
                    missing[first + i] = is_missing(bits) ? 255 : 0;
                    key[i] = sort_key(bits);
                    at[i] = 1;
                }
                for (uint32_t level = 0; level < chunk->kind; level++)
                    VECTOR_UNROLL for (int i = 0; i < VECTOR_SIDE_BY_SIDE; i++)
                        at[i] = 2 * at[i] + (key[i] >= tree[at[i]]);
                VECTOR_UNROLL for (int i = 0; i < VECTOR_SIDE_BY_SIDE; i++)
                    ranks[first + i] = (uint8_t)(at[i] - (1u << chunk->kind));
            }
            vector_t both[2];
            __builtin_memcpy(&both[0], ranks, VECTOR_BYTES);
            __builtin_memcpy(&both[1], missing, VECTOR_BYTES);
            vector_store_ranks(both[0], both[1], chunk, columns + VECTOR_BYTES * one);
        }
}

#endif

INLINE void vector_fill_vectors(const float *rows, uint32_t count, uint8_t *columns, int vectors) {
    const float *row[VECTOR_TOGETHER * VECTOR_BYTES];
    for (uint32_t i = 0; i < (uint32_t)(vectors * VECTOR_BYTES); i++)
        row[i] = rows + (size_t)(i < count ? i : count - 1) * FEATURES;
    const ranks_chunk_t *chunk = VECTOR_RANK_CHUNKS;
    for (uint32_t i = 0; i < VECTOR_RANK_GROUP_COUNT; chunk += VECTOR_RANK_GROUPS[i++].chunks)
        vector_group(row, VECTOR_RANK_GROUPS + i, chunk, columns, vectors);
}

/* Ranks of `count` rows, at most VECTOR_TOGETHER vectors; the last row fills up a vector. */
static __attribute__((noinline)) void vector_fill(const float *rows, uint32_t count, uint8_t *columns) {
    if (count > VECTOR_BYTES)
        vector_fill_vectors(rows, count, columns, VECTOR_TOGETHER);
    else
        vector_fill_vectors(rows, count, columns, 1);
}

#endif
