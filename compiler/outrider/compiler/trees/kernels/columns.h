/* The records by which columns of bytes are filled from rows of floats (ranks.py, leafwise_tables.py). */
#ifndef OUTRIDER_COLUMNS_H
#define OUTRIDER_COLUMNS_H

#include <stdint.h>

/* Bounds of one feature, from `table` on. `lane`: the feature's place in its group of four. `kind`: the levels of their
 * search; for ranks.h 16 times as many, plus the pairs of registers of the last one. `left`, `right`: where the ranks
 * go, as byte offsets, with missing values as 0 and as 255; `not_left`, `not_right`: where their complements go. A
 * column that no node reads may share a dummy. */
typedef struct { uint32_t table, left, right, not_left, not_right; uint16_t lane, kind; } ranks_chunk_t;

/* Four neighbouring features, from `first`, and how many chunks they have. */
typedef struct { uint32_t first, chunks; } ranks_group_t;

/* A feature with categories: `lane` in its group of four, the class of each position (keys.h) from `classes` on, of
 * which there are `positions`, and where the column of classes goes. */
typedef struct { uint32_t classes, positions, column; uint16_t lane; } categories_feature_t;

#endif
