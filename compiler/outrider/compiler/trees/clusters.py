"""Trees cut into clusters: connected nodes, up to seven in up to five levels, which are evaluated by one loop a shape.

A *shape* is what is left of a cluster when its tests are forgotten: bit `i` stands for node `i` of a heap, 0 the root,
`2 i + 1` and `2 i + 2` the children of `i`. Children may change sides where the test is inverted, so the larger half is
always on the left, and there are 40 shapes in all.

A cluster has one exit more than nodes. *Lowest* clusters are whole subtrees: their exits are leaves. The exits of the
others lead to leaves and to other clusters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

from outrider.compiler.trees.forest import LEAF, Tree

MAX_NODES, MAX_LEVELS = 7, 5

Cost = Callable[[int], float]


@dataclass(frozen=True)
class Cluster:
    """`nodes` in preorder and `exits` from left to right, numbers of the tree's, with children as the shape has them.

    `swapped` are those of the nodes whose children change sides. `rank`: 0 for the lowest, else one more than the
    highest rank of the clusters that exits lead to.
    """

    shape: int
    nodes: tuple[int, ...]
    exits: tuple[int, ...]
    swapped: frozenset[int]
    rank: int

    @property
    def root(self) -> int:
        """The topmost node."""
        return self.nodes[0]


# ---- shapes ----


def nodes_of(shape: int) -> int:
    """How many nodes a shape has."""
    return bin(shape).count("1")


def levels_of(shape: int) -> int:
    """How many levels a shape has."""
    return shape.bit_length().bit_length()


@functools.cache
def halves(shape: int) -> tuple[int, int]:
    """The shapes of a shape's left and right half, as shapes themselves.

    >>> halves(0b1111111)
    (7, 7)
    """
    left = right = 0
    for level in range(MAX_LEVELS - 1):
        width = 1 << level
        below = shape >> (2 * width - 1)
        left |= (below & (1 << width) - 1) << (width - 1)
        right |= (below >> width & (1 << width) - 1) << (width - 1)
    return left, right


@functools.cache
def join(one: int, other: int) -> int:
    """The shape of a node over two shapes, the larger one on the left.

    >>> join(*halves(0b1011)) == 0b1011
    True
    """
    left, right = (other, one) if goes_left(other, one) else (one, other)
    shape = 1
    for level in range(MAX_LEVELS - 1):
        width = 1 << level
        mask = (1 << width) - 1
        shape |= (left >> (width - 1) & mask) << (2 * width - 1)
        shape |= (right >> (width - 1) & mask) << (3 * width - 1)
    return shape


def goes_left(shape: int, other: int) -> bool:
    """Whether a shape is the larger of two, which has to be on the left."""
    return (nodes_of(shape), shape) > (nodes_of(other), other)


def choose_shapes(histogram: Mapping[int, int], cost_of: Cost, cost_of_loop: float) -> dict[int, int]:
    """The shape that clusters of each shape are evaluated as: that itself, or a larger one that saves a loop.

    `histogram`: clusters of each shape. `cost_of`: of one cluster evaluated as a shape. Greedy: shapes are given up one
    by one as long as that saves more than it costs.
    """

    def cost(plan: Mapping[int, int]) -> float:
        work = sum(histogram[shape] * cost_of(one) for shape, one in plan.items())
        return work + len(set(plan.values())) * cost_of_loop

    def without(plan: Mapping[int, int], dropped: int) -> dict[int, int] | None:
        left = set(plan.values()) - {dropped}
        found = {}
        for shape, one in plan.items():
            larger = [one] if one != dropped else [other for other in left if shape & other == shape]
            if not larger:
                return None
            found[shape] = min(larger, key=cost_of)
        return found

    best = {shape: shape for shape in histogram}
    while True:
        tried = (without(best, shape) for shape in sorted(set(best.values())))
        cheaper = min((plan for plan in tried if plan is not None), key=cost, default=best)
        if cost(cheaper) >= cost(best):
            return best
        best = cheaper


# ---- trees ----


class Cutter:
    """Cuts one tree: `small` tells what could be lowest clusters, `cut` takes those that are wanted."""

    def __init__(self, tree: Tree) -> None:
        self._leaf = (tree.kind == LEAF).tolist()
        self._left, self._right = tree.left.tolist(), tree.right.tolist()
        self._order = [0]
        for node in self._order:
            if not self._leaf[node]:
                self._order += [self._left[node], self._right[node]]
        self._shapes = [0] * tree.nodes  # of whole subtrees; -1 for those that are too large
        for node in reversed(self._order):
            if not self._leaf[node]:
                self._shapes[node] = self._shape_above(self._shapes[self._left[node]], self._shapes[self._right[node]])

    def small(self) -> list[int]:
        """Shapes of the largest subtrees that could be lowest clusters."""
        return [self._shapes[node] for node in self._lowest(None)]

    def cut(self, wanted: Set[int]) -> list[Cluster]:
        """The clusters, each after those that its exits lead to. The lowest are of `wanted` shapes.

        Above them a cluster grows upwards until it is full; then its larger part is closed.
        """
        ranks = dict.fromkeys(self._lowest(wanted), 0)
        clusters = [self._describe(node, ranks) for node in ranks]
        grown: dict[int, tuple[int, int]] = {}  # root of an open cluster: its nodes and levels
        for node in self._above(ranks):
            parts = [child for child in (self._left[node], self._right[node]) if child in grown]
            while True:
                nodes = 1 + sum(grown[part][0] for part in parts)
                levels = 1 + max((grown[part][1] for part in parts), default=0)
                if nodes <= MAX_NODES and levels <= MAX_LEVELS:
                    break
                full = max(parts, key=grown.__getitem__)
                parts.remove(full)
                clusters.append(self._close(full, ranks))
            grown[node] = nodes, levels
        if 0 in grown:
            clusters.append(self._close(0, ranks))
        return clusters

    def _shape_above(self, left: int, right: int) -> int:
        small = left >= 0 and right >= 0 and nodes_of(left) + nodes_of(right) < MAX_NODES
        return join(left, right) if small and max(levels_of(left), levels_of(right)) < MAX_LEVELS else -1

    def _lowest(self, wanted: Set[int] | None) -> list[int]:
        """The topmost nodes of subtrees of the wanted shapes, or of any."""
        found, stack = [], [0]
        while stack:
            node = stack.pop()
            if self._shapes[node] > 0 and (wanted is None or self._shapes[node] in wanted):
                found.append(node)
            elif not self._leaf[node]:
                stack += [self._right[node], self._left[node]]
        return found

    def _above(self, ranks: Mapping[int, int]) -> list[int]:
        """The splits that are in no lowest cluster, children first."""
        order = [0] if 0 not in ranks and not self._leaf[0] else []
        for node in order:
            children = self._left[node], self._right[node]
            order += [child for child in children if child not in ranks and not self._leaf[child]]
        return order[::-1]

    def _close(self, root: int, ranks: dict[int, int]) -> Cluster:
        cluster = self._describe(root, ranks)
        ranks[root] = cluster.rank
        return cluster

    def _describe(self, root: int, ranks: Mapping[int, int]) -> Cluster:
        """The cluster at `root`, down to leaves and the roots of other clusters, all of which have a rank."""
        lowest = root in ranks

        def walk(node: int) -> tuple[int, list[int], list[int], list[int]]:
            if self._leaf[node] or (node in ranks and node != root):
                return 0, [], [node], []
            one, other = walk(self._left[node]), walk(self._right[node])
            swap = goes_left(other[0], one[0])
            if swap:
                one, other = other, one
            return (
                join(one[0], other[0]),
                [node, *one[1], *other[1]],
                one[2] + other[2],
                [*([node] if swap else []), *one[3], *other[3]],
            )

        shape, nodes, exits, swapped = walk(root)
        rank = 0 if lowest else 1 + max(ranks.get(node, 0) for node in exits)
        return Cluster(shape, tuple(nodes), tuple(exits), frozenset(swapped), rank)
