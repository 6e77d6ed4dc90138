"""The kernels of deep forests against K2, on forests that reach each format of nodes and each fallback."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from outrider.compiler.backends import Candidate, Order
from outrider.compiler.backends.native import NativeBackend
from outrider.compiler.model import forest_model
from outrider.compiler.trees import deep_layout
from outrider.compiler.trees.deep_layout import Format, fit_float, lay_out_deep, refuses
from outrider.compiler.trees.forest import CATEGORY, LEAF, NUMERIC, CategorySplit, Forest, Tree, bound_below
from outrider.compiler.trees.kernels import ISA_LEVELS
from outrider.compiler.trees.rows import rows_from_thresholds
from outrider.runtime.engines import open_engine
from outrider.runtime.errors import BadModelError
from outrider.targets import get_target

ISA = "x86-64-v4-vbmi"
BATCHES = (1, 2, 31, 32, 63, 64, 65, 127, 128, 129, 1000)
PAIR = {"row": "row-deep", "row.groups": "7", "batch": "deep-batch", "batch.groups": "4", "batch.rows": "2"}
DEEP = {**PAIR, "crossover": "32", "isa": ISA}


def grow(rng: np.random.Generator, leaves: int, features: int, grid: int, width: int = 1, lean: float = 0.5) -> Tree:
    """A random tree: leaves split one by one, at thresholds of a grid, into values that are small integers.

    A `lean` near 1 splits the latest leaf most often, which makes a tree deep.
    """
    left, right, at = [-1], [-1], [0]
    for _ in range(leaves - 1):
        node = at.pop(-1 if rng.random() < lean else int(rng.integers(len(at))))
        left[node], right[node] = len(left), len(left) + 1
        at += [left[node], right[node]]
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
        values=rng.integers(-50, 50, (leaves, width)).astype(np.float64),
        categories=(),
        output=0 if width == 1 else None,
    )


def chain(depth: int) -> Tree:
    """A tree as deep as it has splits: x < 0 ? 0 : x < 1 ? 1 : ..."""
    inner = np.arange(2 * depth + 1) % 2 == 0
    inner[-1] = False
    at = np.flatnonzero(inner)
    left, right, bound = (np.full(2 * depth + 1, -1, np.int32) for _ in range(3))
    left[at], right[at], bound[at] = at + 1, at + 2, bound_below(np.arange(depth, dtype=np.float64))
    return Tree(
        kind=np.where(inner, NUMERIC, LEAF).astype(np.uint8),
        feature=np.zeros(2 * depth + 1, np.int32),
        bound=bound,
        missing_right=np.zeros(2 * depth + 1, bool),
        left=left,
        right=right,
        payload=(np.cumsum(~inner) - 1).astype(np.int32),
        values=np.arange(depth + 1.0)[:, None],
        categories=(),
        output=0,
    )


def perfect(levels: int) -> Tree:
    """A perfect tree over [0, 1): a binary search for the sixteenth, and so on, of a feature."""
    nodes, splits = (2 << levels) - 1, (1 << levels) - 1
    number = np.arange(nodes)
    level = np.log2(number + 1).astype(np.int64)
    middle = (number + 1 - (1 << level) + 0.5) / (1 << level)
    inner = number < splits
    return Tree(
        kind=np.where(inner, NUMERIC, LEAF).astype(np.uint8),
        feature=np.zeros(nodes, np.int32),
        bound=np.where(inner, bound_below(middle), 0).astype(np.int32),
        missing_right=np.zeros(nodes, bool),
        left=np.where(inner, 2 * number + 1, -1).astype(np.int32),
        right=np.where(inner, 2 * number + 2, -1).astype(np.int32),
        payload=np.where(inner, 0, number - splits).astype(np.int32),
        values=np.arange(splits + 1.0)[:, None],
        categories=(),
        output=0,
    )


def forest(*trees: Tree, features: int = 5, outputs: int = 1, **changes: object) -> Forest:
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


def run(source: Forest, rows: np.ndarray, options: dict[str, str], batches: tuple[int, ...] = ()) -> list[np.ndarray]:
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


def agree(source: Forest, rows: np.ndarray, options: dict[str, str] = DEEP) -> None:
    wanted = run(source, rows, {"kernel": "k2", "lanes": "8"})[0]
    for found in run(source, rows, options, BATCHES):
        np.testing.assert_array_equal(found, wanted[: len(found)])


def adversarial(source: Forest) -> np.ndarray:
    return rows_from_thresholds(source, seed=3, nan=True, inf=True, max_rows=1024)


def bushes(count: int, *, features: int = 5, seed: int = 0, **settings: int) -> list[Tree]:
    rng = np.random.default_rng(seed)
    return [grow(rng, int(rng.integers(1, 120)), features, grid=64, **settings) for _ in range(count)]


@pytest.mark.parametrize("trees", [1, 16, 17, 130])
def test_rows_and_batches_decide_as_k2(trees):
    source = forest(*bushes(trees, seed=trees))
    assert lay_out_deep(source).format.registers == 1
    agree(source, adversarial(source))


def test_leaf_vectors_several_outputs_and_single_leaves():
    vectors = forest(*bushes(40, width=3), outputs=3, divisor=np.full(3, 8.0))
    agree(vectors, adversarial(vectors))
    several = forest(*(replace(tree, output=i % 3) for i, tree in enumerate(bushes(50))), outputs=3)
    agree(several, adversarial(several))


@pytest.mark.parametrize("features", [20, 50, 300])
def test_more_columns_take_more_registers_or_memory(features):
    source = forest(*bushes(40, features=features), features=features)
    assert lay_out_deep(source).format.registers == {20: 2, 50: 4, 300: 0}[features]
    agree(source, adversarial(source))


def test_a_large_tree_has_wide_nodes():
    source = forest(perfect(17), perfect(3), features=1)
    laid_out = lay_out_deep(source)
    assert laid_out.format.wide
    assert laid_out.leaf_rows is not None
    rows = np.random.default_rng(0).random((1000, 1), np.float32)
    rows[:4, 0] = np.nan, 2.0, -1.0, 0.5
    agree(source, rows)


def test_more_bounds_and_leaf_values_than_sixteen_bits():
    source = forest(chain(70_000), features=1, base=np.zeros(1))
    laid_out = lay_out_deep(source)
    assert not laid_out.format.wide
    assert laid_out.columns == 2
    assert laid_out.leaf_rows is not None
    rows = np.array([[-1], [0.5], [65534], [65535], [65535.5], [69998.5], [1e9], [np.nan]])
    assert run(source, rows, DEEP)[0].tolist() == [0, 1, 65535, 65536, 65536, 69999, 70000, 0]


@pytest.mark.parametrize(
    "forced",
    [Format(1, True, 16, 16), Format(0, True, 16, 16), Format(2, False, 8, 6), Format(0, False, 9, 9)],
    ids=str,
)
def test_formats_that_few_forests_need(monkeypatch, forced):
    monkeypatch.setattr(deep_layout, "_choose_format", lambda splits, reach: forced)
    vectors = forest(*bushes(33, width=2, seed=5), outputs=2)
    agree(vectors, adversarial(vectors))


@pytest.mark.parametrize("options", [{"groups": "1", "rows": "8"}, {"groups": "2", "rows": "4"}])
def test_walks_in_flight_change_no_result(options):
    source = forest(*bushes(70, seed=9, lean=0.95))
    agree(source, adversarial(source), {"kernel": "deep-batch", **options, "isa": ISA})


def test_what_counts_as_missing_and_as_zero():
    for rules in ({"missing": "zero"}, {"tiny_is_zero": True}, {"missing": "zero", "tiny_is_zero": True}):
        source = forest(*bushes(20), **rules)
        agree(source, adversarial(source))


def test_leaf_values_of_double_precision():
    rng = np.random.default_rng(1)
    exact = [replace(tree, values=rng.integers(-(2**40), 2**40, tree.values.shape) / 8.0) for tree in bushes(40)]
    source = forest(*exact, precision="float64")
    assert not fit_float(source)
    agree(source, adversarial(source))
    shares = [replace(tree, values=rng.random(tree.values.shape)) for tree in bushes(40)]
    average = forest(*shares, precision="float64", divisor=np.full(1, 40.0), base=np.zeros(1))
    assert fit_float(average)
    assert not fit_float(replace(average, transform="argmax"))
    rows = adversarial(average)
    wanted = run(average, rows, {"kernel": "k2", "lanes": "8"})[0]
    for found in run(average, rows, DEEP, BATCHES):
        assert (np.abs(found - wanted[: len(found)]) <= 1e-6 + 1e-5 * np.abs(wanted[: len(found)])).all()


def test_deep_forests_of_single_leaves():
    source = forest(*bushes(3, features=1)[:1], replace(grow(np.random.default_rng(0), 1, 1, 1)), features=1)
    agree(source, adversarial(source))
    nothing = forest(*(grow(np.random.default_rng(i), 1, 1, 1) for i in range(3)), features=1)
    agree(nothing, np.zeros((40, 1)))


def test_siblings_and_clusters_keep_to_their_lines():
    source = forest(*bushes(30, seed=2, lean=0.9))
    laid_out = lay_out_deep(source)
    word = laid_out.nodes.astype(np.int64)
    delta = (
        word >> laid_out.format.column_bits & (1 << (32 - laid_out.format.rank_bits - laid_out.format.column_bits)) - 1
    )
    inner = np.flatnonzero(delta)
    child = (inner // 2 + delta[inner]) * 2
    assert (child // 16 == (child + 1) // 16).all()
    assert len(np.unique(child)) == len(child)
    column = word & (1 << laid_out.format.column_bits) - 1
    below = np.concatenate([child, child + 1])
    leaves = below[delta[below] == 0]
    assert (column[leaves] == laid_out.columns + leaves % 2).all()


def test_refusals():
    tree = bushes(1, seed=4)[0]
    split = CategorySplit(right=frozenset({1}), left=frozenset(), other_right=False, missing_right=False)
    kind = tree.kind.copy()
    kind[0] = CATEGORY
    assert refuses(forest(tree)) is None
    assert "category" in str(refuses(forest(replace(tree, kind=kind, categories=(split,)))))
    wide = [grow(np.random.default_rng(i), 100, 20_000, 8) for i in range(100)]
    assert "columns" in str(refuses(forest(*wide, features=20_000)))
    shared = replace(tree, left=np.where(tree.left > 0, 1, tree.left).astype(np.int32))
    with pytest.raises(BadModelError):
        lay_out_deep(forest(shared))
