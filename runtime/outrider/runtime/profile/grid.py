"""The grid of one feature: up to 255 float32 edges that cut the line into at most 256 levels.

Level i holds the values x with edges[i-1] < x <= edges[i]. The edges are chosen so that one search classifies
everything: the first level is "below the training range", the last edge is +inf, so that the level under it is
"above the range", and NaN sorts behind +inf into a level of its own.

A feature with few distinct values (codes, hours, flags) gets two edges a value, one just below it and one on it;
what falls between two known values then has a level of its own too, and is a value never seen in training.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

LEVELS = 256
EDGES = LEVELS - 1
BINS = 16
SCORE_BINS = 32
MAX_DISCRETE = (EDGES - 1) // 2

# The smallest normal float32. Some devices (NEON on ARMv7) treat anything smaller as zero, so no edge lies there.
_TINY = np.float32(np.finfo(np.float32).tiny)
_INF = np.float32(np.inf)


def below(value: np.float32) -> np.float32:
    """The float32 just below `value`, stepping over the subnormal numbers."""
    if value == 0:
        return np.float32(-_TINY)
    if value == _TINY:
        return np.float32(0)
    with np.errstate(over="ignore"):  # below the lowest float32 is -inf, which is meant
        return np.float32(np.nextafter(value, -_INF))


def learn_edges(column: NDArray[np.float32]) -> tuple[NDArray[np.float32], bool]:
    """Edges [3..255], strictly ascending, the last one +inf; and whether the feature is discrete.

    Learned from the finite values of a training column [n]. A column without any is taken as the constant 0.
    """
    values = column[np.isfinite(column)]
    values = np.sort(np.where(np.abs(values) < _TINY, np.float32(0), values))
    if values.size == 0:
        values = np.zeros(1, np.float32)
    distinct = np.unique(values)
    if distinct.size <= MAX_DISCRETE:
        lower = np.array([below(value) for value in distinct], np.float32)
        inner = np.concatenate([lower, distinct])
    else:
        inner_count = EDGES - 3
        if distinct.size - 1 > inner_count:
            ranks = np.arange(1, inner_count + 1) * values.size // (inner_count + 1)
            cuts = values[np.maximum(ranks - 1, 0)]
        else:
            cuts = distinct[:-1]
        inner = np.concatenate([[below(distinct[0])], cuts, distinct[-1:]]).astype(np.float32)
    edges: NDArray[np.float32] = np.append(np.unique(inner), _INF).astype(np.float32)
    return edges, distinct.size <= MAX_DISCRETE


def count_upto(columns: NDArray[np.float32], edges: NDArray[np.float32], upto: NDArray[np.int64]) -> None:
    """Add to `upto` [f, 256] how many values of contiguous columns [f, n] are at or under each edge, and n at last.

    `edges` [f, 255] is padded with +inf. Sorting a column and looking up its edges is three times faster than
    looking up each value; `columns` is sorted in place.
    """
    columns.sort(axis=1)
    for column, cuts, into in zip(columns, edges, upto[:, :EDGES], strict=True):
        np.add(into, column.searchsorted(cuts, side="right"), out=into)
    upto[:, EDGES] += columns.shape[1]


def levels_of(upto: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts a level [f, 256] from counts up to each edge; NaN is level 255."""
    return np.diff(upto, axis=1, prepend=0)


def score_bin(score: float) -> int:
    """The bin 0..31 of a score over the unit interval. Scores outside it go to the end bins, NaN to bin 0."""
    if math.isnan(score):
        return 0
    return int(min(max(score, 0.0), 1.0 - 1.0 / (2 * SCORE_BINS)) * SCORE_BINS)


def score_bins(scores: NDArray[np.floating]) -> NDArray[np.intp]:
    """`score_bin` of each element [n]."""
    clipped = np.clip(np.nan_to_num(scores, nan=0.0), 0.0, 1.0 - 1.0 / (2 * SCORE_BINS))
    bins: NDArray[np.intp] = (clipped * SCORE_BINS).astype(np.intp)
    return bins
