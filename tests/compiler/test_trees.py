"""The stages between a source model and C: keys and bounds, reading, layout, the kernel's own mathematics."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.compiler.backends import Candidate, Order, backend
from outrider.compiler.frontends import read_model
from outrider.compiler.model import forest_model
from outrider.compiler.trees.emit import artifact_sources
from outrider.compiler.trees.forest import (
    CATEGORY,
    LEAF,
    NUMERIC,
    CategorySplit,
    Forest,
    Tree,
    bound_below,
    bound_up_to,
    key_value,
    sort_key,
)
from outrider.compiler.trees.kernels import kernel
from outrider.compiler.trees.layout import lay_out
from outrider.compiler.trees.rows import rows_from_thresholds
from outrider.runtime.engines import open_engine
from outrider.runtime.errors import BadModelError, UnsupportedError
from outrider.targets import get_target
from outrider.targets.toolchain import build_shared

finite32 = st.floats(width=32, allow_nan=False)
doubles = st.floats(allow_nan=False) | finite32 | st.sampled_from([1e-46, -1e-46, 3.5e38, -3.5e38, 1e-300, -0.0])


def key(x: float) -> int:
    return int(sort_key(np.array([x], np.float32))[0])


@given(finite32, finite32)
def test_keys_order_as_floats_do(a, b):
    assert (key(a) < key(b)) == (a < b)
    assert (key(a) == key(b)) == (a == b)
    assert float(key_value(np.array([key(a)], np.int32))[0]) == a


@settings(max_examples=300)
@given(finite32, doubles, st.booleans())
def test_bounds_decide_as_the_source_does(x, t, near):
    if near:  # a value at or next to the threshold
        with np.errstate(over="ignore"):
            x = float(np.nextafter(np.float32(t), np.float32(x)))
    strict, inclusive = bound_below(np.array([t])), bound_up_to(np.array([t]))
    assert (key(x) < strict[0]) == (x < t)
    assert (key(x) < inclusive[0]) == (x <= t)


def test_nothing_is_below_a_threshold_that_is_not_a_number():
    for bound in (bound_below(np.array([np.nan]))[0], bound_up_to(np.array([np.nan]))[0]):
        assert key(-np.inf) >= bound


def stump(feature: int = 0, threshold: float = 0.0, *, missing_right: bool = False, **changes: object) -> Tree:
    """x[feature] < threshold ? 1 : 2."""
    tree = Tree(
        kind=np.array([NUMERIC, LEAF, LEAF], np.uint8),
        feature=np.array([feature, 0, 0], np.int32),
        bound=np.array([bound_below(np.array([threshold]))[0], 0, 0], np.int32),
        missing_right=np.array([missing_right, False, False]),
        left=np.array([1, -1, -1], np.int32),
        right=np.array([2, -1, -1], np.int32),
        payload=np.array([0, 0, 1], np.int32),
        values=np.array([[1.0], [2.0]]),
        categories=(),
        output=0,
    )
    return replace(tree, **changes)  # type: ignore[arg-type]


def forest(*trees: Tree, features: int = 1, **changes: object) -> Forest:
    plain = Forest(
        features=features,
        outputs=1,
        trees=trees,
        base=np.zeros(1),
        divisor=None,
        precision="float64",
        transform="identity",
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def run(source: Forest, rows: np.ndarray, lanes: int = 8) -> np.ndarray:
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
    made = backend("native").build(Order(model, get_target("host")), Candidate("native", options={"lanes": str(lanes)}))
    with closing(open_engine(made.entry, made.data, model.signature)) as engine:
        return engine.run({"features": np.ascontiguousarray(rows, np.float32)})["score"]


def test_missing_values_take_their_default_side():
    both = forest(stump(missing_right=False), stump(missing_right=True))
    assert run(both, np.array([[np.nan], [-1], [0], [-0.0], [-np.inf], [np.inf]])).tolist() == [3, 2, 4, 4, 2, 4]


def test_category_sides_for_known_unknown_and_missing():
    split = CategorySplit(right=frozenset({1, 40}), left=frozenset({2}), other_right=True, missing_right=False)
    tree = stump(kind=np.array([CATEGORY, LEAF, LEAF], np.uint8), categories=(split,))
    rows = np.array([[1], [40], [2], [0], [41], [3e9], [-1], [np.nan], [2.5], [-0.5]])
    assert run(forest(tree), rows).tolist() == [2, 2, 1, 2, 2, 2, 2, 1, 1, 2]
    assert run(forest(tree, exact_categories=True), rows).tolist()[-2:] == [2, 2]
    zero_left = CategorySplit(right=frozenset(), left=frozenset({0}), other_right=True, missing_right=True)
    truncating = forest(replace(tree, categories=(zero_left,)), negative_fraction_is_zero=True)
    assert run(truncating, rows).tolist()[-1] == 1


def test_trees_beyond_sixteen_bits():
    """A chain deeper than 32767 has more than 65536 nodes: the wide form of nodes."""
    depth = 33_000
    inner, leaves = np.arange(0, 2 * depth, 2), np.arange(1, 2 * depth + 1, 2)
    nodes = 2 * depth + 1
    kind = np.full(nodes, LEAF, np.uint8)
    kind[inner] = NUMERIC
    left, right = np.full(nodes, -1, np.int32), np.full(nodes, -1, np.int32)
    left[inner], right[inner] = leaves, inner + 2
    payload = np.zeros(nodes, np.int32)
    payload[kind == LEAF] = np.arange(depth + 1)
    bound = np.zeros(nodes, np.int32)
    bound[inner] = bound_below(np.arange(depth, dtype=np.float64))
    chain = Tree(
        kind=kind,
        feature=np.zeros(nodes, np.int32),
        bound=bound,
        missing_right=np.zeros(nodes, bool),
        left=left,
        right=right,
        payload=payload,
        values=np.arange(depth + 1.0)[:, None],
        categories=(),
        output=0,
    )
    assert lay_out(forest(chain)).wide
    rows = np.array([[-1], [0.5], [1000], [32998.5], [1e9], [np.nan]])
    assert run(forest(chain), rows).tolist() == [0, 1, 1001, 32999, 33000, 0]


def test_thousands_of_features():
    wide = forest(*(stump(feature, 0.5) for feature in range(0, 5000, 7)), features=5000)
    rows = np.zeros((70, 5000))
    rows[1, ::7] = 1
    result = run(wide, rows)
    assert result[0] == len(wide.trees)
    assert result[1] == 2 * len(wide.trees)


@pytest.mark.parametrize(
    ("transform", "exact"),
    [
        ("sigmoid", lambda x: 1 / (1 + np.exp(-1.5 * x))),
        ("exponential", np.exp),
        ("log_one_plus_exp", lambda x: np.logaddexp(0, x)),
        ("signed_square", lambda x: np.sign(x) * x * x),
        ("hinge", lambda x: (x > 0).astype(float)),
        ("exponential_ratio", lambda x: 2 ** (-x / 1.5)),
        ("isolation", lambda x: -(2 ** (-x / 1.5))),
    ],
)
def test_transforms_are_right_to_the_last_float32_bit(transform, exact):
    """One tree whose leaves are the arguments: the C functions against numpy's, over their whole range."""
    points = np.concatenate([np.linspace(-110, 110, 255), [-1e-8, 0.0, 1e-8, -1e4, 1e4, 0.5, -0.5]])
    count = len(points)
    trees = [
        stump(0, i + 0.5, values=np.array([[points[i] if i == 0 else 0.0], [points[i + 1] - points[i]]]))
        for i in range(count - 1)
    ]
    trees[0] = replace(trees[0], values=np.array([[points[0]], [points[1]]]))
    sums = np.array([sum(tree.values[int(row > i + 0.5), 0] for i, tree in enumerate(trees)) for row in range(count)])
    found = run(forest(*trees, transform=transform, scale=1.5), np.arange(count)[:, None])
    with np.errstate(over="ignore", under="ignore"):
        wanted = exact(sums).astype(np.float32)
    finite = np.isfinite(wanted)
    assert np.array_equal(np.isinf(found), np.isinf(wanted))
    spacing = np.spacing(np.abs(wanted[finite]))
    assert (np.abs(found[finite].astype(np.float64) - wanted[finite]) <= spacing).all()


def test_what_is_no_tree_is_refused():
    shared = stump(right=np.array([1, -1, -1], np.int32))
    endless = stump(right=np.array([0, -1, -1], np.int32))
    outside = stump(right=np.array([9, -1, -1], np.int32))
    for tree in (shared, endless, outside):
        with pytest.raises(BadModelError):
            lay_out(forest(tree))
    with pytest.raises(BadModelError, match="feature 3"):
        lay_out(forest(stump(3)))


def test_category_ids_beyond_the_limit_are_refused():
    split = CategorySplit(right=frozenset({1 << 23}), left=frozenset(), other_right=False, missing_right=False)
    tree = stump(kind=np.array([CATEGORY, LEAF, LEAF], np.uint8), categories=(split,))
    with pytest.raises(UnsupportedError, match="category ids"):
        lay_out(forest(tree))


def test_equal_category_sets_are_stored_once():
    split = CategorySplit(right=frozenset({5}), left=frozenset(), other_right=False, missing_right=False)
    tree = stump(kind=np.array([CATEGORY, LEAF, LEAF], np.uint8), categories=(split,))
    assert len(lay_out(forest(tree, tree, tree)).category_sets) == 2


def test_rows_from_thresholds_hold_every_threshold_and_its_neighbours():
    source = forest(*(stump(0, t) for t in (0.5, -3.0, 1e30)))
    rows = rows_from_thresholds(source, seed=1, nan=True, inf=True)[:, 0]
    for t in np.array([0.5, -3.0, 1e30], np.float32):
        for near in (t, np.nextafter(t, np.float32(-np.inf)), np.nextafter(t, np.float32(np.inf))):
            assert near in rows
    assert np.isnan(rows).any()
    assert np.isinf(rows).any()
    assert np.signbit(rows[rows == 0]).any()
    plain = rows_from_thresholds(source, seed=1, nan=False, inf=False)
    assert np.isfinite(plain).all()


def test_the_same_forest_gives_the_same_bytes(table, tmp_path):
    rows, target = table
    booster = xgboost.train({"max_depth": 3}, xgboost.DMatrix(rows, label=target), 5)
    booster.save_model(tmp_path / "model.ubj")
    for target_name in ("host", "aarch64"):
        made = [
            backend("native").build(
                Order(read_model(source), get_target(target_name)), Candidate("native", options={"lanes": "8"})
            )
            for source in (booster, tmp_path / "model.ubj")
        ]
        assert made[0].data == made[1].data


@pytest.mark.parametrize("mark", [0xFFFE, 0xFEFF, 0x2F2B])
def test_tables_may_start_as_text_of_another_encoding_does(mark):
    """Clang refuses files that start with such a mark; here all values do, so one of them is a table's first."""
    bits = np.linspace(1, 2, 400).view(np.uint64) & ~np.uint64(0xFFFFFF) | np.uint64(0x760000 | mark)
    values = bits.view(np.float64)
    trees = [stump(0, 0.0, values=pair[:, None]) for pair in values.reshape(-1, 2)]
    left, right = values[::2].sum(), values[1::2].sum()
    np.testing.assert_array_equal(run(forest(*trees), np.array([[-1], [1]])), np.float32([left, right]))


def test_the_kernel_compiles_without_a_warning(table, tmp_path):
    rows, target = table
    booster = xgboost.train({"objective": "multi:softprob", "num_class": 3}, xgboost.DMatrix(rows, label=target), 2)
    payload = read_model(booster).payload
    assert isinstance(payload, Forest)
    flags = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    source = kernel("k2").emit(payload, {"lanes": "8"})
    sources = artifact_sources(payload, source, source, 0)
    assert build_shared(sources, tmp_path / "model.so", get_target("host"), flags)
