"""Forest -> Tables: virtual columns, sibling-adjacent nodes and deduplicated category sets, ready to be emitted.

A *virtual column* is one int32 a row, computed once, on which nodes decide without looking at missing values:

    column 0           the sentinel, the smallest int32: leaves test it, stay, and so loop on themselves
    numeric, NaN left  sort_key(x); missing is the smallest int32
    numeric, NaN right sort_key(x); missing is the largest int32
    category           0 unknown, 1 missing, c + 2 for the category c: a position in a node's set of right-goers

A node is `bound`, `column`, `child`: right is `child + 1`. The order is breadth first, so that siblings are
neighbours and the first levels share cache lines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.forest import CATEGORY, LEAF, CategorySplit, Forest, Tree
from outrider.runtime.errors import BadModelError, UnsupportedError

UNKNOWN, MISSING, FIRST = 0, 1, 2  # positions in a category set
_NARROW = 1 << 16
_MAX_SET = 1 << 22  # categories a feature may have: beyond it a bit a category wastes memory


@dataclass(frozen=True)
class Tables:
    """What a kernel reads. Sizes: N nodes, T trees, C columns without the sentinel, L leaf rows of `width` values.

    `column_feature` uint32 [C]: first `left_columns` columns whose NaN goes left, then `right_columns`, then
    `category_columns`. `bound` int32, `column` and `child` uint32 [N]; a leaf's `bound` is its row of `values`.
    `child` counts from the tree's root. `root`, `depth`, `output` uint32 [T]. `category_sets` uint32: each set is
    its number of bits, then the bits; a category node's `bound` is the set's offset.
    """

    forest: Forest
    column_feature: NDArray[np.uint32]
    left_columns: int
    right_columns: int
    category_columns: int
    bound: NDArray[np.int32]
    column: NDArray[np.uint32]
    child: NDArray[np.uint32]
    root: NDArray[np.uint32]
    depth: NDArray[np.uint32]
    output: NDArray[np.uint32]
    values: NDArray[np.float64]
    width: int
    category_sets: NDArray[np.uint32]

    @property
    def columns(self) -> int:
        """Virtual columns, with the sentinel."""
        return len(self.column_feature) + 1

    @property
    def wide(self) -> bool:
        """Whether a node needs more than 16 bits for its column or child."""
        return self.columns > _NARROW or int(self.child.max()) >= _NARROW


def lay_out(forest: Forest) -> Tables:
    """Lay out a forest. Raises BadModelError for a tree that is none, UnsupportedError beyond the format's sizes."""
    columns = _Columns(forest)
    sets = _CategorySets()
    width = 1 if forest.trees[0].output is not None else forest.outputs
    if any((tree.output is None) != (forest.trees[0].output is None) for tree in forest.trees):
        raise UnsupportedError("models that mix leaf vectors with single leaf values are not supported")
    parts, depth, root, leaf_rows = [], [], [], 0
    nodes = 0
    for tree in forest.trees:
        part, levels = _lay_out_tree(tree, columns, sets, leaf_rows)
        parts.append(part)
        depth.append(levels)
        root.append(nodes)
        nodes += tree.nodes
        leaf_rows += len(tree.values)
    if max(nodes, leaf_rows * width) >= 1 << 31:
        raise UnsupportedError(f"forests of {nodes} nodes are not supported", hint="up to 2,147,483,647 are")
    bound, column, child = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Tables(
        forest=forest,
        column_feature=columns.features,
        left_columns=columns.left,
        right_columns=columns.right,
        category_columns=columns.categories,
        bound=bound.astype(np.int32),
        column=column.astype(np.uint32),
        child=child.astype(np.uint32),
        root=np.array(root, np.uint32),
        depth=np.array(depth, np.uint32),
        output=np.array([tree.output or 0 for tree in forest.trees], np.uint32),
        values=np.concatenate([tree.values for tree in forest.trees]).ravel(),
        width=width,
        category_sets=sets.table(),
    )


class _Columns:
    """The virtual columns that a forest's nodes need, numbered from 1."""

    def __init__(self, forest: Forest) -> None:
        keys = [np.unique(self._keys(tree)[tree.kind != LEAF]) for tree in forest.trees]
        used = np.unique(np.concatenate(keys)) if keys else np.zeros(0, np.int64)
        self._used = used
        self.features = (used & 0xFFFFFFFF).astype(np.uint32)
        self.left, self.right, self.categories = (int(np.sum((used >> 32) == group)) for group in range(3))
        if len(used) and int(self.features.max()) >= forest.features:
            raise BadModelError(f"the model splits on feature {self.features.max()}, and has {forest.features}")

    @staticmethod
    def _keys(tree: Tree) -> NDArray[np.int64]:
        group = np.where(tree.kind == CATEGORY, 2, tree.missing_right.astype(np.int64))
        return (group << 32) | tree.feature.astype(np.int64)

    def of(self, tree: Tree) -> NDArray[np.int64]:
        """The column of each node; 0, the sentinel, for leaves."""
        return np.where(tree.kind == LEAF, 0, np.searchsorted(self._used, self._keys(tree)) + 1)


class _CategorySets:
    """Bit sets of the categories that go right, each stored once."""

    def __init__(self) -> None:
        self._offsets: dict[tuple[int, ...], int] = {}
        self._words = 0

    def offset(self, split: CategorySplit) -> int:
        """Where the split's set is in the table."""
        words = tuple(_words(split))
        if words not in self._offsets:
            self._offsets[words] = self._words
            self._words += len(words)
        return self._offsets[words]

    def table(self) -> NDArray[np.uint32]:
        return np.array([word for words in self._offsets for word in words], np.uint32)


def _words(split: CategorySplit) -> list[int]:
    known = split.right | split.left
    size = FIRST + max(known, default=-1) + 1
    if size > _MAX_SET:
        raise UnsupportedError(
            f"category ids up to {size - FIRST - 1} are not supported",
            hint=f"up to {_MAX_SET - FIRST - 1} are; renumber",
        )
    bits = np.full(size, split.other_right)
    bits[MISSING] = split.missing_right
    bits[[FIRST + category for category in split.right]] = True
    bits[[FIRST + category for category in split.left]] = False
    padded = np.zeros(-(-size // 32) * 32, np.uint8)
    padded[:size] = bits
    return [size, *np.packbits(padded, bitorder="little").view("<u4").tolist()]


def _lay_out_tree(
    tree: Tree, columns: _Columns, sets: _CategorySets, first_row: int
) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], int]:
    """(bound, column, child) of the nodes in breadth-first order, and the tree's depth."""
    order, child, levels = _breadth_first(tree)
    bound = tree.bound.astype(np.int64)
    leaves, splits = tree.kind == LEAF, np.flatnonzero(tree.kind == CATEGORY)
    bound[leaves] = first_row + tree.payload[leaves]
    for node in splits:
        bound[node] = sets.offset(tree.categories[tree.payload[node]])
    return (bound[order], columns.of(tree)[order], child), levels


def _breadth_first(tree: Tree) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """The nodes in breadth-first order, each one's first child (itself for a leaf) in that order, and the depth."""
    level = np.zeros(1, np.int64)
    order, child = [level], []
    placed, levels = 1, 0
    while True:
        inner = tree.kind[level] != LEAF
        first = np.arange(placed - len(level), placed)
        first[inner] = placed + 2 * np.arange(int(inner.sum()))
        child.append(first)
        parents = level[inner]
        if len(parents) == 0:
            break
        level = np.stack([tree.left[parents], tree.right[parents]], axis=1).ravel().astype(np.int64)
        placed += len(level)
        levels += 1
        if placed > tree.nodes or level.min() < 0 or level.max() >= tree.nodes:
            raise BadModelError("a tree of the model is not a tree: its nodes point in a circle or outside")
        order.append(level)
    nodes = np.concatenate(order)
    if len(np.unique(nodes)) != tree.nodes:
        raise BadModelError("a tree of the model is not a tree: a node has two parents, or none")
    return nodes, np.concatenate(child), levels
