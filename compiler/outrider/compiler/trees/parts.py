"""Large trees -> several small ones whose values add up to theirs, for kernels that take trees of few leaves.

A subtree is taken out and a leaf of value 0 put in its place; it becomes a tree of its own below a copy of the path to
it, whose other exits are leaves of value 0. Whatever a row decides, all parts but one give 0. Kernels that add integers
(fixed.py) lose nothing by it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.forest import LEAF, Forest, Tree


def in_parts(forest: Forest, leaves: int) -> Forest:
    """The forest with every tree of more than so many leaves in parts of no more.

    The order of trees is kept, and parts stand in place of their tree. Raises ValueError where a path alone has as many
    exits, which `can_part` tells.
    """
    if int(forest.splits.max()) < leaves:
        return forest
    trees = [part for tree in forest.trees for part in parts_of(tree, leaves)]
    return replace(forest, trees=tuple(trees))


def can_part(forest: Forest, leaves: int) -> bool:
    """Whether trees can be cut so: paths must leave room for half of a part at least."""
    large = forest.splits >= leaves
    return bool((forest.depths[large] <= leaves // 2).all())


def parts_of(tree: Tree, leaves: int) -> list[Tree]:
    """The parts of one tree, none with more leaves."""
    parts: list[Tree] = []
    while True:
        count = _leaf_counts(tree)
        if count[0] <= leaves:
            return [*parts, tree]
        path = [0]
        while count[path[-1]] + len(path) - 1 > leaves:
            node = path[-1]
            if tree.kind[node] == LEAF:
                raise ValueError(f"a path of {len(path)} nodes has more exits than a part of {leaves} leaves")
            path.append(int(max(tree.left[node], tree.right[node], key=lambda child: count[child])))
        parts.append(_below(tree, path))
        tree = _cut(tree, np.array(path[-1:]))


def _leaf_counts(tree: Tree) -> NDArray[np.int64]:
    """How many leaves are below each node, itself included."""
    count: NDArray[np.int64] = (tree.kind == LEAF).astype(np.int64)
    levels = [np.zeros(1, np.int64)]
    while len(levels[-1]):
        inner = levels[-1][tree.kind[levels[-1]] != LEAF]
        levels.append(np.concatenate([tree.left[inner], tree.right[inner]]).astype(np.int64))
    for level in reversed(levels):
        inner = level[tree.kind[level] != LEAF]
        count[inner] = count[tree.left[inner]] + count[tree.right[inner]]
    return count


def _below(tree: Tree, path: list[int]) -> Tree:
    """The subtree at the end of a path, below that path."""
    nodes = np.array(path[:-1])
    exits = np.where(tree.left[nodes] == path[1:], tree.right[nodes], tree.left[nodes])
    return _cut(tree, exits)


def _cut(tree: Tree, nodes: NDArray[np.integer]) -> Tree:
    """The tree with leaves of value 0 in place of these nodes."""
    kind, payload = tree.kind.copy(), tree.payload.copy()
    kind[nodes], payload[nodes] = LEAF, len(tree.values)
    order = [np.zeros(1, np.int64)]
    while len(order[-1]):
        inner = order[-1][kind[order[-1]] != LEAF]
        order.append(np.stack([tree.left[inner], tree.right[inner]], axis=1).ravel().astype(np.int64))
    kept = np.concatenate(order)
    place = np.zeros(tree.nodes, np.int32)
    place[kept] = np.arange(len(kept))
    return replace(
        tree,
        kind=kind[kept],
        feature=tree.feature[kept],
        bound=tree.bound[kept],
        missing_right=tree.missing_right[kept],
        left=place[tree.left[kept]],
        right=place[tree.right[kept]],
        payload=payload[kept],
        values=np.concatenate([tree.values, np.zeros((1, tree.values.shape[1]))]),
        threshold=tree.threshold[kept],
    )
