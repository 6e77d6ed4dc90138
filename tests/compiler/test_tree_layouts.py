"""The layouts of trees that need no compiler: ranks and their slots, clusters, classes of categories, fixed point."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.compiler.trees.categories import MAX_CLASSES, PAGE, category_bits, why_not
from outrider.compiler.trees.clusters import (
    MAX_LEVELS,
    MAX_NODES,
    Cutter,
    choose_shapes,
    goes_left,
    halves,
    join,
    levels_of,
    nodes_of,
)
from outrider.compiler.trees.fixed import LOW_BITS, fixed_point
from outrider.compiler.trees.fixed import why_not as why_not_fixed
from outrider.compiler.trees.forest import CATEGORY, LEAF, NUMERIC, sort_key
from outrider.compiler.trees.kernels import kernel
from outrider.compiler.trees.kernels.leafwise_vector import search_planes
from outrider.compiler.trees.leafwise_layout import number_leaves
from outrider.compiler.trees.quantise import CHUNK, NO_KEY, Chunk, on_slots, quantise, search_table
from outrider.compiler.trees.rows import rows_from_thresholds

EXAMPLES = settings(max_examples=30, deadline=None, derandomize=True)


def search(chunk: Chunk, keys: np.ndarray) -> np.ndarray:
    """The search of ranks.h, step by step: where a level's entries begin, and the decisions as an index and a rank."""
    table = search_table(chunk)
    begins = [14, 12, 8, 0, 16, 32, 64, 128]
    at, rank = np.zeros(len(keys), np.int64), np.zeros(len(keys), np.int64)
    for level in range(table.levels):
        size = 32 * table.pairs if level + 1 == table.levels and level >= 5 else 1 << level
        there = at < size
        words = np.where(there, table.words[begins[level] + np.where(there, at, 0)], NO_KEY)
        above = there & (keys >= words)
        at, rank = at | (above << level), 2 * rank + above
    return rank


@EXAMPLES
@given(st.integers(1, 255), st.integers(0, 2**32 - 1))
def test_slots_decide_as_bounds_do(count, seed):
    rng = np.random.default_rng(seed)
    bounds = np.sort(rng.choice(np.arange(-2000, 2000), count, replace=False)).astype(np.int32)
    chunk = Chunk(0, bounds, 0, 1)
    table = search_table(chunk)
    assert table.levels == count.bit_length()
    assert len(table.words) % 16 == 0
    assert (np.diff(table.slots.astype(int)) > 0).all()
    keys = np.concatenate([bounds - 1, bounds, bounds + 1, [-(2**31), 2**31 - 2]]).astype(np.int32)
    assert np.array_equal(search(chunk, keys)[:, None] > table.slots, keys[:, None] >= bounds)


@EXAMPLES
@given(st.integers(1, 255), st.integers(0, 2**32 - 1))
def test_bytes_of_bounds_rank_as_bounds_do(count, seed):
    """The search of vector_ranks.h, step by step on numbers that are put together from their bytes again."""
    rng = np.random.default_rng(seed)
    bounds = np.unique(rng.integers(-(2**31) + 1, 2**31 - 1, count)).astype(np.int32)
    chunk = Chunk(0, bounds, 0, 1)
    pages = search_planes(chunk).view(np.uint8).reshape(-1, 4, 16) ^ np.array([[0x80], [0x80], [0x80], [0]], np.uint8)
    tree = np.ascontiguousarray(pages.transpose(0, 2, 1)).view(np.int32).ravel()
    keys = np.concatenate([bounds - 1, bounds, bounds[bounds < 2**31 - 2] + 1])
    at = np.ones(len(keys), np.int64)
    for level in range(chunk.levels):
        assert ((at >= 1 << level) & (at < 2 << level)).all()
        at = 2 * at + (keys < tree[at])
    ranks = (2 << chunk.levels) - 1 - at
    assert np.array_equal(ranks, np.searchsorted(bounds, keys, side="right"))


@pytest.mark.parametrize("swap", [False, True])
def test_columns_decide_as_trees_do(forests: Any, swap: bool):
    source = forests.random_forest(3, trees=40, leaves=60, features=3, bounds=700)
    swapped = [set(np.flatnonzero(np.arange(tree.nodes) % 3 == 0).tolist()) if swap else set() for tree in source.trees]
    ranked = quantise(source, swapped)
    slots = on_slots(ranked)
    rows = rows_from_thresholds(source, seed=1, nan=False, inf=True)
    dense, sparse = (np.zeros((ranked.columns, len(rows)), np.int64) for _ in range(2))
    for chunk in ranked.chunks:
        assert len(chunk.bounds) <= CHUNK
        bits = rows[:, chunk.feature].view(np.int32)
        keys = bits ^ (bits >> 31 & 0x7FFFFFFF)
        for columns, rank in (
            (dense, np.searchsorted(chunk.bounds, keys, side="right")),
            (sparse, search(chunk, keys)),
        ):
            for column in {chunk.left, chunk.right} - {-1}:
                columns[column] = rank
            for column in set(chunk.inverted) - {-1}:
                columns[column] = CHUNK - rank
    for number, tree in enumerate(source.trees):
        for node in np.flatnonzero(tree.kind == NUMERIC):
            right = sort_key(rows[:, tree.feature[node]]) >= tree.bound[node]
            wanted = ~right if node in swapped[number] else right
            column = ranked.column[number][node]
            assert np.array_equal(dense[column] > ranked.position[number][node], wanted)
            assert np.array_equal(sparse[column] > slots.position[number][node], wanted)


# ---- clusters ----


def every_shape() -> set[int]:
    found = {0}
    while True:
        small = [shape for shape in found if levels_of(shape) < MAX_LEVELS]
        more = {join(a, b) for a in small for b in small if nodes_of(a) + nodes_of(b) < MAX_NODES} - found
        if not more:
            return found - {0}
        found |= more


def test_shapes():
    shapes = every_shape()
    assert len(shapes) == 40
    for shape in shapes:
        left, right = halves(shape)
        assert not goes_left(right, left)
        assert join(left, right) == join(right, left) == shape
        assert nodes_of(left) + nodes_of(right) + 1 == nodes_of(shape) <= MAX_NODES
        assert max(levels_of(left), levels_of(right)) + 1 == levels_of(shape) <= MAX_LEVELS


def test_loops_are_given_up_where_they_are_dear():
    histogram = dict.fromkeys(every_shape(), 100)
    cheap = choose_shapes(histogram, nodes_of, 1.0)
    assert cheap == {shape: shape for shape in histogram}
    dear = choose_shapes(histogram, nodes_of, 1e9)
    assert len(set(dear.values())) < 20
    assert all(shape & larger == shape for shape, larger in dear.items())
    assert choose_shapes({}, nodes_of, 1.0) == {}


@EXAMPLES
@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.floats(0, 1), st.booleans())
def test_clusters_are_the_tree(forests, seed, leaves, lean, few):
    tree = forests.random_forest(seed, trees=1, leaves=leaves, lean=lean).trees[0]
    cutter = Cutter(tree)
    wanted = set(cutter.small()[::2]) if few else every_shape()
    clusters = cutter.cut(wanted)
    nodes = [node for cluster in clusters for node in cluster.nodes]
    assert sorted(nodes) == np.flatnonzero(tree.kind != LEAF).tolist()
    numbers = number_leaves(clusters)
    assert sorted(numbers) == np.flatnonzero(tree.kind == LEAF).tolist()
    spans = {leaf: (number, number) for leaf, number in numbers.items()}
    seen: dict[int, int] = {}
    for cluster in clusters:
        assert cluster.shape in every_shape()
        assert len(cluster.exits) == len(cluster.nodes) + 1 == nodes_of(cluster.shape) + 1
        inner = [node for node in cluster.exits if tree.kind[node] != LEAF]
        assert all(seen[node] < cluster.rank for node in inner)
        assert (cluster.rank == 0) == (cluster.shape in wanted and not inner and cluster.rank == 0)
        assert walk(tree, cluster, cluster.shape, iter(cluster.nodes), iter(cluster.exits)) == cluster.root
        seen[cluster.root] = cluster.rank
        below = [spans[node] for node in cluster.exits]
        assert all(one[1] + 1 == next_[0] for one, next_ in pairwise(below)), "leaves are numbered from left to right"
        spans[cluster.root] = below[0][0], below[-1][1]
    if clusters:
        assert clusters[-1].root == 0 or 0 in seen


def walk(tree: Any, cluster: Any, shape: int, nodes: Any, exits: Any) -> int:
    """Follow a shape in preorder: children, swapped where the cluster says so, are the next nodes or exits."""
    if not shape:
        return int(next(exits))
    node = next(nodes)
    children = [walk(tree, cluster, half, nodes, exits) for half in halves(shape)]
    if node in cluster.swapped:
        children.reverse()
    assert children == [tree.left[node], tree.right[node]]
    return int(node)


# ---- categories ----


def test_classes_tell_categories_apart_as_splits_do(forests: Any):
    source = forests.random_forest(5, trees=9, leaves=30, features=3, categories=(5, 200))
    found = category_bits(source, [set() for _ in source.trees])
    inverse = category_bits(source, [set(np.flatnonzero(tree.kind == CATEGORY).tolist()) for tree in source.trees])
    assert [one.feature for one in found.features] == [1, 2]
    assert [one.pages for one in found.features] == [1, -(-(int(found.features[1].classes.max()) + 1) // PAGE)]
    for tree, sets, others in zip(source.trees, found.sets, inverse.sets, strict=True):
        for node, (place, bits) in sets.items():
            split = tree.categories[tree.payload[node]]
            classes = found.features[place].classes
            goes = [
                split.other_right,
                split.missing_right,
                *((c in split.right) or (split.other_right and c not in split.left) for c in range(len(classes) - 2)),
            ]
            assert [bool(bits >> int(one) & 1) for one in classes] == goes
            assert others[node] == (place, bits ^ ((1 << int(classes.max()) + 1) - 1))


def test_too_many_classes_are_told(forests: Any):
    assert why_not(forests.random_forest(1, trees=3, leaves=20, features=2, categories=(30,))) is None
    many = forests.random_forest(1, trees=30, leaves=40, features=2, categories=(2000,))
    assert f"of {MAX_CLASSES} at most" in str(why_not(many))
    far = forests.random_forest(1, trees=1, leaves=4, features=1, categories=(70_000,))
    assert "beyond" in str(why_not(far))


# ---- fixed point ----


@EXAMPLES
@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.floats(-30, 30), st.sampled_from(["float32", "float64"]))
def test_fixed_point_keeps_what_sums_need(forests, seed, trees, size, precision):
    rng = np.random.default_rng(seed)
    source = forests.random_forest(0, trees=trees, depth=1, precision=precision)
    values = rng.normal(size=(trees, 2)) * 10.0**size
    made = tuple(
        tree if len(tree.values) < 2 else type(tree)(**{**vars(tree), "values": own[: len(tree.values), None]})
        for tree, own in zip(source.trees, values, strict=True)
    )
    fixed = fixed_point(type(source)(**{**vars(source), "trees": made}))
    first, second = fixed.encode(values)
    assert ((second >= 0) & (second < 1 << LOW_BITS)).all()
    assert fixed.wide or not second.any()
    for one in (np.abs(first.astype(np.int64)).max(axis=1).sum(), np.abs(first[:, 0].astype(np.int64).sum())):
        assert one < 2**31, "no sum leaves 32 bits"
    error = np.abs((first + second * 2.0**-LOW_BITS) * fixed.unit - values).max()
    assert error <= fixed.unit * (2.0**-LOW_BITS if fixed.wide else 0.5) + 1e-300
    assert fixed.wide or trees * error <= 2e-7 or (precision == "float32" and error * np.sqrt(trees) <= 1e-6)
    assert fixed.fits or trees * error > 2e-7
    assert fixed.unit * 2.0**30 <= np.abs(values).max(axis=1).sum() * 2 + 1e-300


def test_leaves_of_nothing(forests: Any):
    source = forests.random_forest(0, trees=2, depth=0)
    made = tuple(type(tree)(**{**vars(tree), "values": np.zeros((1, 1))}) for tree in source.trees)
    fixed = fixed_point(type(source)(**{**vars(source), "trees": made}))
    assert not fixed.encode(np.zeros((2, 1))).any()


@pytest.mark.parametrize(
    ("values", "fits"),
    [((1e-310, -3e-310), True), ((1e-305, 0.0), True), ((1e30, 1 / 3), False), ((1.5e308, 1.5e308), False)],
)
def test_values_of_any_size_have_a_representation_or_none_that_fits(forests: Any, values: Any, fits: bool):
    source = forests.random_forest(0, trees=2, depth=0)
    made = tuple(replace(tree, values=np.array([[one]])) for tree, one in zip(source.trees, values, strict=True))
    scaled = replace(source, trees=made)
    assert fixed_point(scaled).fits is fits
    assert ("55 bits" in str(why_not_fixed(scaled, wide=True))) is not fits


def test_sums_of_large_scale_are_wide_but_for_whole_units(forests: Any):
    source = forests.random_forest(0, trees=30, depth=3)
    assert not fixed_point(source).wide, "its values are integers, so nothing is rounded"
    uneven = replace(source, trees=tuple(replace(tree, values=tree.values / 7) for tree in source.trees))
    assert fixed_point(uneven).wide
    assert "32 bits" in str(why_not_fixed(uneven, wide=False))
    assert why_not_fixed(uneven, wide=True) is None


def test_a_feature_whose_splits_know_no_category_has_numbers_below_zero_apart(forests: Any):
    """-0.5 counts as category 0 where fractions are cut off, and that is neither unknown nor missing."""
    source = forests.random_forest(1, trees=1, leaves=4, features=1, categories=(3,), negative_fraction_is_zero=True)
    tree = source.trees[0]
    none = tuple(replace(split, right=frozenset(), left=frozenset()) for split in tree.categories)
    found = category_bits(replace(source, trees=(replace(tree, categories=none),)), [frozenset()])
    assert len(found.features[0].classes) >= 3


def test_many_outputs_are_refused_by_kernels_of_several_rows(forests: Any):
    many = forests.random_forest(1, trees=300, depth=2, outputs=300, base=np.zeros(300))
    for name in ("leafwise", "leafwise-sse", "perfect"):
        assert "outputs" in str(kernel(name).refuses(many))
