"""The kernel for single rows of shallow trees against K2, at each depth that trees are padded to."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from outrider.compiler.backends import Candidate, Order
from outrider.compiler.backends.native import NativeBackend
from outrider.compiler.model import forest_model
from outrider.compiler.trees.forest import CATEGORY, LEAF, NUMERIC, CategorySplit, Forest, Tree, bound_below, depth_of
from outrider.compiler.trees.kernels import ISA_LEVELS
from outrider.compiler.trees.kernels.row import Row
from outrider.compiler.trees.rows import rows_from_thresholds
from outrider.runtime.engines import open_engine
from outrider.targets import get_target

ISA = "x86-64-v4-vbmi"
ROW = {"kernel": "row", "groups": "4", "isa": ISA}


def grow(rng: np.random.Generator, levels: int, features: int, grid: int) -> Tree:
    """A random tree of at most so many levels, at thresholds of a grid, with small integers in its leaves."""
    left, right, at = [-1], [-1], [(0, 0)]
    while at:
        node, level = at.pop()
        if level < levels and rng.random() < 0.85:
            left[node], right[node] = len(left), len(left) + 1
            at += [(left[node], level + 1), (right[node], level + 1)]
            left += [-1, -1]
            right += [-1, -1]
    inner = np.array(left) >= 0
    nodes = len(left)
    thresholds = np.round(rng.normal(size=nodes) * grid) / grid
    return Tree(
        kind=np.where(inner, NUMERIC, LEAF).astype(np.uint8),
        feature=np.where(inner, rng.integers(0, features, nodes), 0).astype(np.int32),
        bound=np.where(inner, bound_below(thresholds), 0).astype(np.int32),
        missing_right=inner & (rng.random(nodes) < 0.5),
        left=np.array(left, np.int32),
        right=np.array(right, np.int32),
        payload=(np.cumsum(~inner) - 1).astype(np.int32),
        values=rng.integers(-50, 50, (int((~inner).sum()), 1)).astype(np.float64),
        categories=(),
        output=0,
    )


def grove(count: int, levels: int, *, features: int = 5, grid: int = 32, outputs: int = 1, **changes: object) -> Forest:
    rng = np.random.default_rng(count + levels)
    trees = tuple(replace(grow(rng, levels, features, grid), output=i % outputs) for i in range(count))
    plain = Forest(
        features=features,
        outputs=outputs,
        trees=trees,
        base=np.arange(outputs, dtype=np.float64),
        divisor=None,
        precision="float32",
        transform="identity",
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def run(source: Forest, rows: np.ndarray, options: dict[str, str], *batches: int) -> list[np.ndarray]:
    """Results for all rows at once, and for the first rows in each of the batches."""
    if not set(ISA_LEVELS[options.get("isa", "baseline")].features) <= set(get_target("host").features):
        pytest.skip(f"this machine is not of the level {ISA}")
    shape = () if source.columns_out == 1 else (source.columns_out,)
    model = forest_model(
        source,
        lambda x: np.zeros((len(x), *shape)),
        framework="test",
        framework_version="1",
        description="",
        sha256="0" * 64,
        probabilities=False,
    )
    made = NativeBackend().build(Order(model, get_target("host")), Candidate("native", options=options))
    rows = np.ascontiguousarray(rows, np.float32)
    with closing(open_engine(made.entry, made.data, model.signature)) as engine:
        return [engine.run({"features": rows[:batch]})["score"].copy() for batch in (len(rows), *batches)]


def agree(source: Forest, options: dict[str, str] = ROW) -> None:
    """The leaves are integers, so sums are exact, and results equal exactly when every decision does."""
    assert Row().refuses(source) is None
    rows = rows_from_thresholds(source, seed=3, nan=True, inf=True, max_rows=1024)
    wanted = run(source, rows, {"kernel": "k2", "lanes": "8"})[0]
    for found in run(source, rows, options, 1, 2, 63, 65):
        np.testing.assert_array_equal(found, wanted[: len(found)])


@pytest.mark.parametrize("levels", [0, 1, 3, 4, 6, 7, 8])
def test_each_depth_decides_as_k2(levels):
    agree(grove(70, levels))


@pytest.mark.parametrize(("trees", "groups"), [(1, 4), (16, 2), (17, 2), (200, 6)])
def test_groups_that_do_not_fill_what_is_in_flight(trees, groups):
    agree(grove(trees, 5), {**ROW, "groups": str(groups)})


@pytest.mark.parametrize(("features", "grid"), [(40, 16), (80, 8), (300, 8), (3, 4000)])
def test_more_columns_take_more_registers_or_memory(features, grid):
    agree(grove(120, 6, features=features, grid=grid))


def test_several_outputs():
    agree(grove(50, 8, outputs=3))
    agree(grove(40, 4, outputs=20))


@pytest.mark.parametrize("rules", [{"missing": "zero"}, {"tiny_is_zero": True}], ids=str)
def test_what_counts_as_missing_and_as_zero(rules):
    agree(grove(20, 6, **rules))


def test_sums_stay_within_the_tolerance_of_the_trees_taken_in_order():
    rng = np.random.default_rng(0)
    source = grove(300, 6)
    shares = tuple(
        replace(tree, values=rng.normal(size=tree.values.shape).astype(np.float32) / 50.0) for tree in source.trees
    )
    source = replace(source, trees=shares, transform="sigmoid")
    rows = rows_from_thresholds(source, seed=3, nan=True, inf=True, max_rows=1024)
    wanted = run(source, rows, {"kernel": "k2", "lanes": "8"})[0]
    found = run(source, rows, ROW)[0]
    assert (np.abs(found - wanted) <= 1e-6 + 1e-5 * np.abs(wanted)).all()


def test_numbers_of_groups_that_come_to_the_same_are_one_option():
    source = grove(3, 6)
    for trees, groups in ((1, ["4"]), (40, ["4", "2"]), (90, ["4", "6", "2"])):
        many = replace(source, trees=(source.trees * 30)[:trees])
        assert [options["groups"] for options in Row().variants(many, get_target("host"))] == groups


def test_refusals():
    source = grove(3, 8)
    assert max(depth_of(tree) for tree in source.trees) == 8
    assert "levels" in str(Row().refuses(grove(3, 10)))
    assert depth_of(grow(np.random.default_rng(1), 0, 1, 1)) == 0
    vectors = replace(source, trees=tuple(replace(tree, output=None) for tree in source.trees))
    assert "vectors" in str(Row().refuses(vectors))
    parts = tuple(replace(tree, values=tree.values / 7) for tree in source.trees)
    many = replace(source, trees=parts * 300, precision="float64")
    assert "32 bits" in str(Row().refuses(many))
    split = CategorySplit(right=frozenset({1}), left=frozenset(), other_right=False, missing_right=False)
    kind = source.trees[0].kind.copy()
    kind[0] = CATEGORY
    by_category = replace(source.trees[0], kind=kind, categories=(split,))
    assert "category" in str(Row().refuses(replace(source, trees=(by_category,))))
