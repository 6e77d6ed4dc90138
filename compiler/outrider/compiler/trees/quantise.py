"""Forest -> ranks: each numeric split becomes `rank > k` on a *virtual column* of one byte a row.

A virtual column belongs to a feature, to at most 255 of the feature's bounds (a chunk), and to the direction in which
missing values go. Its value is the number of the chunk's bounds that are not above the row's key, so that

    go right   iff   rank > position of the node's bound in its chunk

Missing is rank 0 in columns whose missing values go left, 255 in the others. 255 as a node's position is never passed.
A node whose children have changed sides reads an *inverted* column, of 255 - rank, at the position 254 - position.

Keys here are *raw*: `bits ^ (bits >> 31 & 0x7fffffff)`, in which -0 is -1, just below +0. A bound of 0 is therefore
turned into -1, and ranks need not look at signs of zero: raw keys against these bounds decide as `sort_key` does.

>>> raw_bounds(np.array([0, -1, 5], np.int32)).tolist()
[-1, -1, 5]
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.forest import NUMERIC, Forest, once_a_forest

Scalar = TypeVar("Scalar", bound=np.generic)

REGISTER = 16  # words
_PAIR = 2 * REGISTER
CHUNK = 255  # bounds a column can tell apart with one byte
NEVER = 255  # the position that no rank passes
NO_KEY = np.int32(2**31 - 1)  # above the key of every number

_KEY_OF_INF = 0x7F800000
_LOWEST, _HIGHEST = ~_KEY_OF_INF, _KEY_OF_INF + 1  # every number is at or above the first, none the second


@dataclass(frozen=True)
class Chunk:
    """Ascending raw bounds of a feature, int32 [1..255], and the columns of their ranks: -1 where no node needs it.

    `left` and `right` are by the direction of missing values; `inverted` the same for inverted columns.
    """

    feature: int
    bounds: NDArray[np.int32]
    left: int
    right: int
    inverted: tuple[int, int] = (-1, -1)

    @property
    def levels(self) -> int:
        """Comparisons that a binary search for the rank takes: 1 to 8."""
        return len(self.bounds).bit_length()


@dataclass(frozen=True)
class Quantised:
    """The chunks by ascending feature, and for each tree `column` int32 and `position` uint8 over its nodes.

    Both are 0 where a node is not numeric. Columns count from 0.
    """

    chunks: tuple[Chunk, ...]
    columns: int
    column: tuple[NDArray[np.int32], ...]
    position: tuple[NDArray[np.uint8], ...]


def raw_bounds(bounds: NDArray[np.int32]) -> NDArray[np.int32]:
    """Bounds for raw keys: -0 counts as 0, and bounds beyond all numbers are brought to the nearest that decides so."""
    raw = np.where(bounds == 0, np.int32(-1), bounds)
    return np.clip(raw, _LOWEST, _HIGHEST).astype(np.int32)


def quantise(forest: Forest, swapped: Sequence[Set[int]] = ()) -> Quantised:
    """Rank the numeric splits of a forest. `swapped`: by tree, the nodes whose children have changed sides."""
    numeric = [tree.kind == NUMERIC for tree in forest.trees]
    feature, bound, right = (
        np.concatenate([getattr(tree, name)[chosen] for tree, chosen in zip(forest.trees, numeric, strict=True)])
        for name in ("feature", "bound", "missing_right")
    )
    bound = raw_bounds(bound)
    inverted = _inverted(numeric, swapped)
    kind = 2 * inverted + right
    chunks: list[Chunk] = []
    column, position = np.zeros(len(feature), np.int32), np.zeros(len(feature), np.uint8)
    columns = 0
    for one in np.unique(feature).tolist():
        nodes = np.flatnonzero(feature == one)
        bounds, place = np.unique(bound[nodes], return_inverse=True)
        for first in range(0, len(bounds), CHUNK):
            inside = (place >= first) & (place < first + CHUNK)
            members = nodes[inside]
            position[members] = np.where(inverted[members], CHUNK - 1 - (place[inside] - first), place[inside] - first)
            own = [-1] * 4
            for each in range(4):
                users = members[kind[members] == each]
                if len(users):
                    own[each] = columns
                    column[users] = columns
                    columns += 1
            chunks.append(Chunk(one, bounds[first : first + CHUNK], own[0], own[1], (own[2], own[3])))
    return Quantised(tuple(chunks), columns, _spread(column, numeric), _spread(position, numeric))


ranks_of = once_a_forest(quantise)


def _inverted(numeric: list[NDArray[np.bool_]], swapped: Sequence[Set[int]]) -> NDArray[np.bool_]:
    """Which of the numeric splits of all trees are swapped."""
    if not swapped:
        return np.zeros(sum(int(mask.sum()) for mask in numeric), bool)
    parts = []
    for mask, nodes in zip(numeric, swapped, strict=True):
        part = np.zeros(len(mask), bool)
        part[list(nodes)] = True
        parts.append(part[mask])
    return np.concatenate(parts)


def search_tree(chunk: Chunk) -> NDArray[np.int32]:
    """The chunk's bounds as an implicit search tree, int32 [2^levels, at least 16]: a step is p = 2p + (key >= t[p]).

    It starts at p = 1; after `levels` steps, p - 2^levels is the rank.
    """
    levels = chunk.levels
    ascending = _ascending(chunk)
    tree = np.full(max(REGISTER, 1 << levels), NO_KEY)
    for level in range(levels):
        step = 1 << (levels - level)
        tree[1 << level : 2 << level] = ascending[step // 2 - 1 :: step]
    return tree


def _ascending(chunk: Chunk) -> NDArray[np.int32]:
    """2^levels bounds: the chunk's, then such as no number reaches."""
    ascending = np.full(1 << chunk.levels, NO_KEY)
    ascending[: len(chunk.bounds)] = chunk.bounds
    return ascending


@dataclass(frozen=True)
class SearchTable:
    """A chunk's bounds as ranks.h searches them for many rows at once, by permutes.

    `words` int32: a register has levels 3, 2, 1 and 0, in this order, the next level 4; two have level 5, four level 6,
    eight level 7, but the last level has only `pairs` pairs of registers, so that few bounds beyond a power of two take
    few words. An entry's place in its level has the decision of level i as bit i; the search ends in a rank that has it
    as bit `levels - 1 - i`.
    `slots` uint8 [bounds]: what stands for a bound's position in its chunk, so that `rank > slot` as before.
    """

    levels: int
    pairs: int
    words: NDArray[np.int32]
    slots: NDArray[np.uint8]


def search_table(chunk: Chunk) -> SearchTable:
    """The table of a chunk: the last level's bounds go where the later ones of the decisions above are 0."""
    levels, bounds = chunk.levels, len(chunk.bounds)
    above, last = (1 << levels - 1) - 1, 1 << levels - 1  # how many slots the levels above have, and the last one
    pairs = -(-(bounds - above) // _PAIR) if last > _PAIR else 1
    place = _reversed_bits(levels - 1)
    lowest = 2 * np.flatnonzero(place < _PAIR * pairs)[: bounds - above]  # slots of the last level are the even ones
    slots = np.sort(np.concatenate([2 * np.arange(above) + 1, lowest]))
    filled = np.full(2 * last, NO_KEY)
    filled[slots] = chunk.bounds
    entries = []
    for level in range(levels):
        step = 1 << (levels - level)
        entries.append(filled[step // 2 - 1 :: step][_reversed_bits(level)])
    entries[-1] = entries[-1][: _PAIR * pairs]
    first = np.full(REGISTER, NO_KEY)
    for level, begin in enumerate((14, 12, 8, 0)[:levels]):
        first[begin : begin + (1 << level)] = entries[level]
    return SearchTable(levels, pairs, np.concatenate([first, *entries[4:]]), slots.astype(np.uint8))


def on_slots(quantised: Quantised) -> Quantised:
    """The same with slots for positions, for kernels that rank by `search_table`."""
    slots = np.full((max(quantised.columns, 1), CHUNK + 1), NEVER, np.uint8)
    for chunk in quantised.chunks:
        own = search_table(chunk).slots
        for column in {chunk.left, chunk.right} - {-1}:
            slots[column, : len(own)] = own
        for column in set(chunk.inverted) - {-1}:
            slots[column, CHUNK - 1 - np.arange(len(own))] = CHUNK - 1 - own
    pairs = zip(quantised.column, quantised.position, strict=True)
    return replace(quantised, position=tuple(slots[column, position] for column, position in pairs))


def _reversed_bits(bits: int) -> NDArray[np.int64]:
    """The numbers below 2^bits, each with its bits in reverse."""
    numbers = np.zeros(1, np.int64)
    for _ in range(bits):
        numbers = np.concatenate([2 * numbers, 2 * numbers + 1])
    return numbers


def _spread(values: NDArray[Scalar], chosen: list[NDArray[np.bool_]]) -> tuple[NDArray[Scalar], ...]:
    """Per-tree arrays with `values` at the chosen nodes, 0 elsewhere."""
    parts, start = [], 0
    for mask in chosen:
        part = np.zeros(len(mask), values.dtype)
        count = int(mask.sum())
        part[mask] = values[start : start + count]
        parts.append(part)
        start += count
    return tuple(parts)
