"""Forest -> clusters with numbered leaves: what every form of the kernel leafwise is laid out from.

Leaves are numbered from left to right, so that a lowest cluster's are in a row, and so that every number below the
right child of a node exceeds all below its left one: a selection between the two may be `max(left, right & mask)`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from outrider.compiler.trees.categories import CategoryBits, category_bits
from outrider.compiler.trees.clusters import Cluster, Cutter, choose_shapes, nodes_of
from outrider.compiler.trees.fixed import FixedPoint, fixed_point
from outrider.compiler.trees.forest import Forest, once_a_forest
from outrider.compiler.trees.parts import in_parts
from outrider.compiler.trees.quantise import Quantised, quantise

MAX_LEAVES = 256  # of a tree, or of a part of one: leaf numbers are bytes
USUAL_GROUP = 8  # trees whose clusters are sorted together
# For the choice of shapes, in cycles a register: a node of a lowest cluster, of others, a cluster, a shape's loop.
_LOW_COST, _HIGH_COST, _CLUSTER_COST, _LOOP_COST = 1.4, 2.4, 2.5, 3.0
_SHARED_COLUMNS, _SHARED_USES = 64, 4  # sets that are made into columns once for all trees: how many, from what use

Set = tuple[int, int]  # place of the feature, bits


@dataclass(frozen=True)
class Layout:
    """A forest cut up, large trees into parts first, which `forest` has in their place. `order`: its trees, by output.

    `low` are the shapes of lowest clusters; `high`: what the shapes of others are evaluated as. `clusters` and
    `numbers` (of leaves, by node) are by tree. `shared`: the sets of categories that many splits have in common, by
    their place.
    """

    forest: Forest
    order: tuple[int, ...]
    low: tuple[int, ...]
    high: dict[int, int]
    clusters: tuple[tuple[Cluster, ...], ...]
    numbers: tuple[dict[int, int], ...]
    quantised: Quantised
    categories: CategoryBits
    shared: dict[Set, int]
    fixed: FixedPoint


@once_a_forest
def lay_out_leafwise(whole: Forest) -> Layout:
    """Cut a forest of single leaf values whose categories fit into bytes."""
    forest = in_parts(whole, MAX_LEAVES)
    cutters = [Cutter(tree) for tree in forest.trees]
    loop = _LOOP_COST * len(forest.trees) / USUAL_GROUP
    small = Counter(shape for cutter in cutters for shape in cutter.small())
    low = {shape for shape, count in small.items() if count * nodes_of(shape) * (_HIGH_COST - _LOW_COST) > loop}
    clusters = tuple(tuple(cutter.cut(low)) for cutter in cutters)
    others = Counter(one.shape for each in clusters for one in each if one.rank)
    swapped = [frozenset().union(*(one.swapped for one in each)) for each in clusters]
    categories = category_bits(forest, swapped)
    return Layout(
        forest=forest,
        order=tuple(sorted(range(len(forest.trees)), key=lambda number: forest.trees[number].output or 0)),
        low=tuple(sorted(low)),
        high=choose_shapes(others, lambda shape: nodes_of(shape) * _HIGH_COST + _CLUSTER_COST, 2 * loop),
        clusters=clusters,
        numbers=tuple(map(number_leaves, clusters)),
        quantised=quantise(forest, swapped),
        categories=categories,
        shared=_shared_sets(categories),
        fixed=fixed_point(whole),
    )


def number_leaves(clusters: Sequence[Cluster]) -> dict[int, int]:
    """The numbers of a tree's leaves, by node: from left to right."""
    exits = {cluster.root: cluster.exits for cluster in clusters}
    numbers: dict[int, int] = {}
    stack = [0]
    while stack:
        node = stack.pop()
        if node in exits:
            stack += reversed(exits[node])
        else:
            numbers[node] = len(numbers)
    return numbers


def _shared_sets(categories: CategoryBits) -> dict[Set, int]:
    uses = Counter(one for sets in categories.sets for one in sets.values())
    common = [(count, one) for one, count in uses.items() if count >= _SHARED_USES]
    chosen = sorted(one for _, one in sorted(common, reverse=True)[:_SHARED_COLUMNS])
    return {one: place for place, one in enumerate(chosen)}
