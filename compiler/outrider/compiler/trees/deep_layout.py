"""Forest -> DeepTables: ranks of 16 bits, nodes of 4 bytes in lines of a cache, for the kernels of deep forests.

A node decides by `rank > k` on a virtual column, as in quantise.py, but with up to 65535 bounds a column. Its word is

    rank bits | delta bits | column bits      k, or a leaf's row of values; pairs to the children's; column

so that `(rank << 32 - rank_bits) > word` decides, whatever the low bits hold: a rank equal to `k` gives at most the
word, a higher one more. Siblings are a pair, the left one at an even place, so a step is

    at = (at & ~1) + 2 * delta + goes_right

A leaf has delta 0, and a column of its own that keeps a walk where it has arrived: one that is always 0 for left
children, one that is always the highest rank for right ones. Where the three fields do not fit in 32 bits, a node is
*wide*: 8 bytes, `k` and column of 16 bits each, then 2 * delta.

Nodes lie in *clusters* of three levels, the up to 14 nodes below one node, which never straddle a cache line of 16
nodes: a walk touches a line each three levels. Clusters are in breadth-first order, small ones in the gaps of large
ones, which keeps deltas small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.forest import LEAF, NUMERIC, Forest, Tree, once_a_forest
from outrider.compiler.trees.quantise import raw_bounds
from outrider.runtime.errors import BadModelError

LANES = 16  # trees in a register, and nodes in a line
MAX_COLUMNS = 8191  # beyond it a block of rows' ranks leaves the caches
_LEVELS = 3  # of a cluster
_LEAF_COLUMNS = 2
_MAX_NODES = 1 << 27
_WIDE_BITS = 16
_COLUMN_BITS = {1: 5, 2: 6, 4: 7}  # by the number of registers, of 32 ranks each, that hold a row


@dataclass(frozen=True)
class Search:
    """Ascending raw bounds of a feature, int32 [n], and the columns of their ranks: -1 where no node needs it."""

    feature: int
    bounds: NDArray[np.int32]
    left: int
    right: int


@dataclass(frozen=True)
class Format:
    """How a node is coded. `registers`: how many hold a row's ranks (1, 2, 4), 0 where they are read from memory."""

    registers: int
    wide: bool
    rank_bits: int
    column_bits: int


@dataclass(frozen=True)
class DeepTables:
    """What the kernels read.

    `nodes` uint32 [N], [N, 2] where wide. `roots` uint32 [groups * 16]: trees by output, then by depth, so that lanes
    arrive together; spare lanes have a leaf of value 0. `order` int64 [trees]: the tree in each lane. `columns` leaves
    out the two of leaves, which come after them. `values` float64 [rows, width] holds the distinct rows of leaf
    values, `zero` the row of zeros, which is that of the leaf `nowhere` as well. Where `leaf_rows` is None, a leaf's
    word has its row of `values`; else `leaf_rows` uint32 [N] has it.
    """

    forest: Forest
    format: Format
    searches: tuple[Search, ...]
    columns: int
    nodes: NDArray[np.uint32]
    roots: NDArray[np.uint32]
    order: NDArray[np.int64]
    values: NDArray[np.float64]
    zero: int
    leaf_rows: NDArray[np.uint32] | None
    float_leaves: bool

    @property
    def nowhere(self) -> int:
        """A node behind all trees: a leaf of value 0."""
        return len(self.nodes) - LANES

    @property
    def groups(self) -> int:
        """Registers of trees."""
        return len(self.roots) // LANES


def refuses(forest: Forest) -> str | None:
    """Why there is no such layout for the forest, in words."""
    if forest.category_splits.any():
        return "it has splits by category"
    if len({tree.output is None for tree in forest.trees}) > 1:
        return "it mixes leaf vectors with single leaf values"
    if forest.nodes > _MAX_NODES:
        return f"it has more than {_MAX_NODES} nodes"
    columns = _splits(forest).columns(_WIDE_BITS)
    return f"it has {columns} virtual columns, of {MAX_COLUMNS} at most" if columns > MAX_COLUMNS else None


def columns_of(forest: Forest) -> int:
    """Virtual columns of ranks of 16 bits, with the two of leaves."""
    return _splits(forest).columns(_WIDE_BITS) + _LEAF_COLUMNS


def lay_out_deep(forest: Forest) -> DeepTables:
    """Lay out a forest that `refuses` has nothing against. Raises BadModelError for a tree that is none."""
    places = [_Place(tree) for tree in forest.trees]
    order = _walk_order(forest, places)
    splits, leaves = _splits(forest), _Leaves(forest)
    chosen = _choose_format(splits, max(place.reach for place in places))
    inline = len(leaves.values) < 1 << chosen.rank_bits  # the highest field is not below the highest rank
    searches, column, position = splits.ranked(chosen.rank_bits)
    columns = splits.columns(chosen.rank_bits)
    start = np.concatenate([[0], np.cumsum([places[i].size for i in order])])
    nodes = np.zeros((int(start[-1]) + LANES, 2), np.uint64)  # rank field and column, delta
    leaf_rows = np.full(len(nodes), leaves.zero, np.uint32)
    nodes[:, 0] = _word(np.array([leaves.zero if inline else 0]), np.array([columns]), chosen)
    for begin, i in zip(start, order, strict=False):
        tree, at = forest.trees[i], begin + places[i].position
        leaf = tree.kind == LEAF
        row = leaves.row_of(i)
        field = np.where(leaf, row if inline else 0, splits.spread(position, i))
        nodes[at, 0] = _word(field, np.where(leaf, columns + (at & 1), splits.spread(column, i)), chosen)
        nodes[at, 1] = places[i].delta
        leaf_rows[at] = row
    spare = -len(order) % LANES
    return DeepTables(
        forest=forest,
        format=chosen,
        searches=searches,
        columns=columns,
        nodes=_pack(nodes, chosen),
        roots=np.concatenate([start[:-1], np.full(spare, start[-1])]).astype(np.uint32),
        order=order,
        values=leaves.values,
        zero=leaves.zero,
        leaf_rows=None if inline else leaf_rows,
        float_leaves=leaves.single,
    )


def _word(field: NDArray[np.int64], column: NDArray[np.int64], chosen: Format) -> NDArray[np.uint64]:
    return (field.astype(np.uint64) << np.uint64(32 - chosen.rank_bits)) | column.astype(np.uint64)


def _pack(nodes: NDArray[np.uint64], chosen: Format) -> NDArray[np.uint32]:
    if chosen.wide:
        return (nodes * np.array([1, 2], np.uint64)).astype(np.uint32)
    return (nodes[:, 0] | nodes[:, 1] << np.uint64(chosen.column_bits)).astype(np.uint32)


def _choose_format(splits: _Splits, reach: int) -> Format:
    """The cheapest format that holds the ranks, columns and deltas: one gather a level where possible, else two."""
    for wide, registers in [*((False, n) for n in _COLUMN_BITS), *((True, n) for n in _COLUMN_BITS)]:
        for rank_bits in (_WIDE_BITS,) if wide else range(16, 7, -1):
            column_bits = _WIDE_BITS if wide else _COLUMN_BITS[registers]
            narrow_enough = wide or reach < 1 << (32 - rank_bits - column_bits)
            if narrow_enough and splits.columns(rank_bits) + _LEAF_COLUMNS <= 32 * registers:
                return Format(registers, wide, rank_bits, column_bits)
    for rank_bits in range(16, 7, -1):
        columns = splits.columns(rank_bits)
        column_bits = (columns + _LEAF_COLUMNS - 1).bit_length()
        if columns <= MAX_COLUMNS and reach < 1 << max(32 - rank_bits - column_bits, 0):
            return Format(0, False, rank_bits, column_bits)
    return Format(0, True, _WIDE_BITS, _WIDE_BITS)


def _walk_order(forest: Forest, places: list[_Place]) -> NDArray[np.int64]:
    output = np.array([tree.output or 0 for tree in forest.trees])
    return np.lexsort([np.array([place.depth for place in places]), output]).astype(np.int64)


class _Splits:
    """The numeric splits of all trees, and their columns and positions for a number of bits a rank."""

    def __init__(self, forest: Forest) -> None:
        self._numeric = [tree.kind == NUMERIC for tree in forest.trees]
        self._ends = np.cumsum([mask.sum() for mask in self._numeric])
        pairs = list(zip(forest.trees, self._numeric, strict=True))
        feature = np.concatenate([tree.feature[mask] for tree, mask in pairs]).astype(np.int64)
        bound = raw_bounds(np.concatenate([tree.bound[mask] for tree, mask in pairs])).astype(np.int64)
        self._right = np.concatenate([tree.missing_right[mask] for tree, mask in pairs])
        if len(feature) and (feature.min() < 0 or feature.max() >= forest.features):
            raise BadModelError(f"the model splits on feature {feature.max()}, and has {forest.features}")
        keys, index = np.unique((feature << 32) + bound + (1 << 31), return_inverse=True)
        self._bounds = ((keys & 0xFFFFFFFF) - (1 << 31)).astype(np.int32)
        self._bound_feature = keys >> 32
        self._first = np.searchsorted(self._bound_feature, feature)  # a feature's first bound, for each split
        self._place = index - self._first  # a split's bound among its feature's
        self._feature = feature
        self._columns: dict[int, int] = {}  # by rank bits

    def _keys(self, rank_bits: int) -> NDArray[np.int64]:
        """Feature, chunk and direction of each split as one number."""
        chunk = self._place // ((1 << rank_bits) - 1)
        keys: NDArray[np.int64] = (self._feature << 32) | (chunk << 1) | self._right
        return keys

    def columns(self, rank_bits: int) -> int:
        """How many columns there are."""
        if rank_bits not in self._columns:
            self._columns[rank_bits] = len(np.unique(self._keys(rank_bits)))
        return self._columns[rank_bits]

    def ranked(self, rank_bits: int) -> tuple[tuple[Search, ...], NDArray[np.int64], NDArray[np.int64]]:
        """The searches, and each split's column and position in it."""
        capacity = (1 << rank_bits) - 1
        keys, column = np.unique(self._keys(rank_bits), return_inverse=True)
        found = {int(key): number for number, key in enumerate(keys)}
        searches = []
        for key in np.unique(keys & ~1).tolist():
            feature, chunk = key >> 32, (key & 0xFFFFFFFF) >> 1
            begin, end = np.searchsorted(self._bound_feature, [feature, feature + 1])
            begin += chunk * capacity
            bounds = self._bounds[begin : min(end, begin + capacity)]
            searches.append(Search(feature, bounds, found.get(key, -1), found.get(key | 1, -1)))
        return tuple(searches), column, self._place % capacity

    def spread(self, values: NDArray[np.int64], tree: int) -> NDArray[np.int64]:
        """Values of the splits of one tree over its nodes; 0 at leaves."""
        mask, end = self._numeric[tree], int(self._ends[tree])
        spread = np.zeros(len(mask), np.int64)
        spread[mask] = values[end - int(mask.sum()) : end]
        return spread


_splits = once_a_forest(_Splits)


class _Leaves:
    """The distinct rows of leaf values, with a row of zeros, and each leaf's row."""

    def __init__(self, forest: Forest) -> None:
        self.single = fit_float(forest)
        rows = np.concatenate([tree.values for tree in forest.trees])
        rows = np.concatenate([rows, np.zeros((1, rows.shape[1]))]) + 0.0  # -0 as 0
        if self.single:
            rows = rows.astype(np.float32).astype(np.float64)
        self.values, index = np.unique(rows, axis=0, return_inverse=True)
        self._row = index.ravel()
        self.zero = int(self._row[-1])
        self._ends = np.cumsum([len(tree.values) for tree in forest.trees])
        self._trees = forest.trees

    def row_of(self, tree: int) -> NDArray[np.int64]:
        """The row of each node's values; 0 at splits."""
        one = self._trees[tree]
        rows = self._row[int(self._ends[tree]) - len(one.values) : int(self._ends[tree])]
        return np.where(one.kind == LEAF, rows[np.where(one.kind == LEAF, one.payload, 0)], 0)


def fit_float(forest: Forest) -> bool:
    """Whether leaf values may be held as float32: they are float32, or the rounding is too small to matter.

    A value v is off by at most 2^-24 |v|, so a sum by at most 2^-24 times the sum over trees of their largest |v|. An
    average of which that is below 5e-7 stays within the tolerance of results, which is 1e-6 at least; for probabilities
    it is 6e-8. Values far from 0 as float32 has subnormals (below 1e-38) round to within 1e-45, which is nothing.
    """
    values = [tree.values for tree in forest.trees]
    if all(bool((part == part.astype(np.float32)).all()) for part in values):
        return True
    if forest.transform != "identity" or forest.divisor is None:
        return False
    most = sum(float(np.abs(part).max()) for part in values)
    return most * 2.0**-24 / float(forest.divisor.min()) < 5e-7


class _Place:
    """Where the nodes of one tree lie: `position` and `delta` int64 [nodes], `size` (of whole lines), `depth`.

    `reach` is the largest delta.
    """

    def __init__(self, tree: Tree) -> None:
        self.position = np.zeros(tree.nodes, np.int64)
        self.delta = np.zeros(tree.nodes, np.int64)
        self._rooms: dict[int, list[int]] = {}
        self.size = LANES
        self.depth = 0
        levels = _levels(tree)
        next(levels)
        self._fill(tree, np.zeros(1, np.int64), [level for _, level in zip(range(_LEVELS - 1), levels, strict=False)])
        while below := [level for _, level in zip(range(_LEVELS), levels, strict=False)]:
            self._fill(tree, self._heads(tree), below)
        inner = tree.kind != LEAF
        self.delta[inner] = self.position[tree.left[inner]] // 2 - self.position[inner] // 2
        self.reach = int(self.delta.max())
        if len(np.unique(self.position)) != tree.nodes:
            raise BadModelError("a tree of the model is not a tree: a node has two parents, or none")

    def _heads(self, tree: Tree) -> NDArray[np.int64]:
        heads: NDArray[np.int64] = self._last[tree.kind[self._last] != LEAF]
        return heads

    def _fill(self, tree: Tree, heads: NDArray[np.int64], levels: list[NDArray[np.int64]]) -> None:
        """Place the nodes of `levels`, the levels just below `heads`: a cluster for each head."""
        cluster, size = np.arange(len(heads)), np.zeros(len(heads), np.int64)
        parents, parts = heads, []
        for level in levels:
            cluster = np.repeat(cluster[tree.kind[parents] != LEAF], 2)
            count = np.bincount(cluster, minlength=len(heads))
            first = np.cumsum(count) - count
            parts.append((level, cluster, size[cluster] + np.arange(len(level)) - first[cluster]))
            size = size + count
            parents = level
        self.depth += len(levels)
        self._last = parents
        begin = self._starts(self.position[heads], size)
        for level, cluster, offset in parts:
            self.position[level] = begin[cluster] + offset

    def _starts(self, heads: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """A place for each cluster, behind its head: the tightest gap of a line, or a new line."""
        if self.depth < _LEVELS:
            self._leave(2, LANES - 2, int(sizes[0]))
            return np.array([2])
        return np.array([self._start(head, size) for head, size in zip(heads.tolist(), sizes.tolist(), strict=True)])

    def _start(self, head: int, size: int) -> int:
        for room in range(size, LANES, 2):
            gaps = self._rooms.get(room)
            if gaps and gaps[-1] > head:
                return self._leave(gaps.pop(), room, size)
        self.size += LANES
        return self._leave(self.size - LANES, LANES, size)

    def _leave(self, start: int, room: int, size: int) -> int:
        if room > size:
            self._rooms.setdefault(room - size, []).append(start + size)
        return start


def _levels(tree: Tree) -> Iterator[NDArray[np.int64]]:
    """The nodes of each level, siblings side by side."""
    level, placed = np.zeros(1, np.int64), 1
    while len(level):
        yield level
        parents = level[tree.kind[level] != LEAF]
        level = np.stack([tree.left[parents], tree.right[parents]], axis=1).ravel().astype(np.int64)
        placed += len(level)
        if placed > tree.nodes or (len(level) and (level.min() < 0 or level.max() >= tree.nodes)):
            raise BadModelError("a tree of the model is not a tree: its nodes point in a circle or outside")
