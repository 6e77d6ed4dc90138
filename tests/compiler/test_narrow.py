"""Narrowing: kernels decide on narrowed doubles, and on float32 rows, as `Tree.threshold` and `bound` say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.compiler.backends import Candidate, Order, backend
from outrider.compiler.trees.check import check_forest
from outrider.compiler.trees.forest import NUMERIC, Forest, Tree, bound_up_to
from outrider.compiler.trees.kernels import KernelSource
from outrider.compiler.trees.kernels.k2 import K2
from outrider.compiler.trees.narrow import block_rows, filter_words, limit_keys, narrow
from outrider.compiler.trees.rows import double_rows_from_thresholds
from outrider.runtime.engines import open_engine
from outrider.runtime.errors import UnsupportedError
from outrider.targets import get_target

Array = np.ndarray
Sums = Callable[[Forest, Array], Array]
TINY = float(np.float32(1e-35))
AROUND_TINY = [
    *(number * step for number in (TINY, -TINY) for step in (1.0, 1 - 2**-53, 1 + 2**-52, 1 + 1e-9, 1 + 1e-7, 0.5)),
    *(0.0, -0.0, 5e-324, -5e-324, 1e-40, -1e-40, 1e-45, -1e-45),
]
POOLS: dict[str, Callable[[np.random.Generator], Array]] = {
    "apart": lambda rng: rng.standard_normal(30),
    "float32": lambda rng: rng.standard_normal(30).astype(np.float32).astype(np.float64),
    "just below float32": lambda rng: np.nextafter(rng.standard_normal(30).astype(np.float32).astype(float), -np.inf),
    "crowded": lambda rng: rng.choice([0.1, 1e9, -3.0, 7e-39], 30) * (1 + rng.integers(0, 9, 30) * 1e-12),
    "around 1e-35": lambda rng: rng.choice(AROUND_TINY, 30),
    "sparse around 1e-35": lambda rng: rng.choice(AROUND_TINY, 2),
    "just below zero": lambda rng: np.array([-5e-324, 1.0, -1.0]),
    "infinite": lambda rng: np.array([np.inf, -np.inf, 1e200, np.nan]),
    "far": lambda rng: rng.choice([1e300, -1e300, 1e200, 3.4e38, -3.5e38, np.inf, -np.inf, 1.8e-45, np.nan], 30),
}
FLAGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tiny is zero": {"tiny_is_zero": True},
    "zero is missing": {"tiny_is_zero": True, "missing": "zero"},
}


def with_thresholds(forest: Forest, pools: Array) -> Forest:
    """The forest with thresholds drawn from `pools` [features, n]."""
    rng = np.random.default_rng(len(forest.trees))

    def changed(tree: Tree) -> Tree:
        drawn = pools[tree.feature, rng.integers(0, pools.shape[1], tree.nodes)]
        threshold = np.where(tree.kind == NUMERIC, drawn, 0.0)
        return replace(tree, threshold=threshold, bound=bound_up_to(threshold))

    return replace(forest, trees=tuple(map(changed, forest.trees)))


def split_by_value_too(forest: Forest, features: int) -> Forest:
    """The forest with a third of its comparisons moved to the last features, which have categories."""

    def changed(tree: Tree) -> Tree:
        moved = (tree.kind == NUMERIC) & (np.arange(tree.nodes) % 3 == 0)
        last = forest.features - 1 - np.arange(tree.nodes) % features
        return replace(tree, feature=np.where(moved, last, tree.feature).astype(np.int32))

    return replace(forest, trees=tuple(map(changed, forest.trees)))


@pytest.fixture
def compiled(forests: Any) -> Any:
    """Build a forest that decides in float64; what comes is a function from rows to results."""

    @contextmanager
    def build(forest: Forest) -> Iterator[Callable[[Array], Array]]:
        check_forest(forest)
        model = replace(forests.model_of(forest), decides_in="float64")
        made = backend("native").build(Order(model, get_target("host")), Candidate("native", options={"lanes": "8"}))
        engine = open_engine(made.entry, made.data, model.signature)
        assert engine.doubles
        yield lambda rows: engine.run({"features": np.ascontiguousarray(rows)})["score"]
        engine.close()

    return build


def assert_decides(run: Callable[[Array], Array], forest: Forest, sums: Sums, doubles: Array) -> None:
    """Results are exact, since leaves are integers: on doubles, in batches of all kinds, and on float32."""
    wanted = sums(forest, doubles)[:, 0].astype(np.float32)
    found = run(doubles)
    np.testing.assert_array_equal(found, wanted)
    for size in (0, 1, 2, 63, 64, 65, 1025):
        np.testing.assert_array_equal(run(doubles[:size]), wanted[:size])
    with np.errstate(over="ignore"):
        singles = doubles.astype(np.float32)
    np.testing.assert_array_equal(run(singles), sums(forest, singles)[:, 0].astype(np.float32))
    np.testing.assert_array_equal(run(singles.astype(np.float64)), run(singles))


@pytest.mark.parametrize("flags", FLAGS)
def test_kernels_decide_on_narrowed_doubles_as_thresholds_say(compiled, forests, sums, flags):
    """A feature for each pool."""
    rng = np.random.default_rng(len(flags))
    pools = np.stack([np.resize(make(rng), 30) for make in POOLS.values()])
    made = forests.random_forest(3, trees=30, features=len(POOLS), leaves=40, base=np.zeros(1), **FLAGS[flags])
    forest = with_thresholds(made, pools)
    found = narrow(forest, "float64")
    names = list(POOLS)
    assert names.index("crowded") in found.ranked
    assert names.index("apart") not in found.ranked
    assert len(found.limits[names.index("apart")]) > 20
    assert len(found.limits[names.index("float32")]) == 0
    doubles = double_rows_from_thresholds(forest, seed=1, nan=True, inf=True, max_rows=1200)
    doubles = np.concatenate(
        [doubles, rng.standard_normal((100, forest.features)), rng.choice(AROUND_TINY, (700, len(POOLS)))]
    )
    with compiled(forest) as run:
        assert_decides(run, forest, sums, doubles)


@pytest.mark.parametrize("rules", [{}, {"exact_categories": True}, {"negative_fraction_is_zero": True}])
def test_categories_and_features_split_in_both_ways(compiled, forests, sums, rules):
    rng = np.random.default_rng(5)
    made = forests.random_forest(5, trees=25, features=5, leaves=40, categories=(4, 9), base=np.zeros(1), **rules)
    pools = rng.choice([0.5, 2.5, 3.0, np.nextafter(3.0, 0), 4.1, -0.5, 1e-300], (5, 30))
    for both in (False, True):
        forest = with_thresholds(split_by_value_too(made, 2) if both else made, pools)
        found = narrow(forest, "float64")
        assert (set(found.ranked) >= {3, 4}, found.categories) == ((True, ()) if both else (False, (3, 4)))
        doubles = double_rows_from_thresholds(forest, seed=2, nan=True, inf=True)
        doubles = np.concatenate([doubles, rng.integers(-2, 12, (300, 5)), rng.uniform(-2, 12, (300, 5))])
        with compiled(forest) as run:
            assert_decides(run, forest, sums, doubles)


def test_what_cannot_be_narrowed_is_refused(forests):
    made = forests.random_forest(5, trees=9, features=4, leaves=40, categories=(4,), missing="zero")
    assert narrow(made, "float64").categories == (3,)
    with pytest.raises(UnsupportedError, match="feature 3 is split by value and by category"):
        narrow(split_by_value_too(made, 1), "float64")


def test_wide_rows_go_through_in_several_blocks(compiled, forests, sums):
    made = forests.random_forest(1, trees=20, features=400, leaves=30, base=np.zeros(1))
    rng = np.random.default_rng(1)
    forest = with_thresholds(made, rng.standard_normal((400, 20)))
    assert block_rows(forest) == 256
    doubles = double_rows_from_thresholds(forest, seed=1, nan=True, inf=True)
    with compiled(forest) as run:
        for size in (255, 256, 257, 513, 1023):
            found = run(doubles[:size])
            np.testing.assert_array_equal(found, sums(forest, doubles[:size])[:, 0].astype(np.float32))


LIMITS = st.floats(allow_nan=False) | st.sampled_from(
    [*AROUND_TINY, 0.1, 0.1 + 1e-12, 3.0, np.nextafter(3.0, 0), 1e300, -1e300, 3.4028234663852886e38, np.inf, -np.inf]
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(LIMITS, min_size=1, max_size=6), st.sampled_from(list(FLAGS)))
def test_ranked_is_what_no_float32_can_stand_for(limits, flags):
    """A feature is ranked just where a double beside its limits is decided as no float32 is."""
    forest = stump(sorted(limits), **FLAGS[flags])
    found = narrow(forest, "float64")
    with np.errstate(over="ignore", under="ignore"):
        near = np.array([step(limit) for limit in limits for step in (float, up, down)])
        single = near.astype(np.float32)
        pool = np.unique([single, np.nextafter(single, np.float32(np.inf)), np.nextafter(single, np.float32(-np.inf))])
        pool = np.concatenate([pool, np.nextafter(np.float32([1e-35, -1e-35]), np.float32([1, -1]))])
    known = set(map(tuple, ways(forest, pool.astype(np.float64)).T.tolist()))
    lacks = any(way not in known for way in map(tuple, ways(forest, near).T.tolist()))
    assert lacks == (found.ranked == (0,))


def up(value: float) -> float:
    return float(np.nextafter(value, np.inf))


def down(value: float) -> float:
    return float(np.nextafter(value, -np.inf))


def ways(forest: Forest, values: Array) -> Array:
    """Where each tree of one split sends each value: 1 right, 0 left, 2 missing; [trees, values]."""
    tiny = np.abs(values) <= TINY
    read = np.where(tiny & forest.tiny_is_zero, 0.0, values)
    right = np.stack([~(read <= tree.threshold[0]) for tree in forest.trees]).astype(int)
    return np.where(tiny & (forest.missing == "zero"), 2, right)


def stump(limits: list[float], **flags: Any) -> Forest:
    """A tree of one split for each limit."""
    trees = [
        Tree(
            kind=np.array([NUMERIC, 0, 0], np.uint8),
            feature=np.zeros(3, np.int32),
            bound=np.array([*bound_up_to(np.array([limit])), 0, 0], np.int32),
            missing_right=np.zeros(3, bool),
            left=np.array([1, -1, -1], np.int32),
            right=np.array([2, -1, -1], np.int32),
            payload=np.array([0, 0, 1], np.int32),
            values=np.array([[0.0], [1.0]]),
            categories=(),
            output=0,
            threshold=np.array([limit, 0, 0]),
        )
        for limit in limits
    ]
    return Forest(1, 1, tuple(trees), np.zeros(1), None, "float32", "identity", **flags)


def test_models_that_round_need_no_tables(forests):
    forest = forests.random_forest(1, trees=3, depth=3)
    found = narrow(forest, "float32")
    assert found.nearest
    assert found.forest is forest
    assert (found.ranked, found.categories, len(filter_words(found))) == ((), (), 0)


def test_a_forest_without_crowded_limits_is_left_alone():
    forest = stump([0.1, 0.2, 0.3])
    found = narrow(forest, "float64")
    assert found.forest is forest
    assert found.limits[0].tolist() == [0.1, 0.2, 0.3]
    assert narrow(stump([0.1, 0.1 + 1e-12]), "float64").ranked == (0,)
    assert narrow(stump([0.1, 0.1]), "float64").ranked == ()
    assert narrow(stump([float("nan"), 1.0]), "float64").limits[0].tolist() == []


def test_limits_are_ordered_as_integers():
    values = np.array([-np.inf, -1e300, -1.0, -5e-324, 0.0, 5e-324, 1.0, np.inf])
    keys = limit_keys(values)
    assert (np.diff(keys) > 0).all()
    assert limit_keys(np.array([-0.0])) == limit_keys(np.array([0.0])) == 0


def test_the_filter_lets_few_pass():
    """A hundredth, or so, of numbers that are near no limit; all that are."""
    rng = np.random.default_rng(0)
    forest = stump(rng.standard_normal(3000).tolist())
    words = filter_words(narrow(forest, "float64"))
    assert len(words) * 32 >= 16 * 3000
    bits = np.unpackbits(words.view(np.uint8)).mean()
    assert bits**3 < 0.01
    assert isinstance(K2().emit(forest, {"lanes": "8"}), KernelSource)
