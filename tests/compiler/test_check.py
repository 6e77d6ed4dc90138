"""What a Forest must hold to, whatever made it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.compiler.trees.check import check_forest
from outrider.compiler.trees.forest import (
    CATEGORY,
    LEAF,
    NUMERIC,
    CategorySplit,
    Forest,
    Tree,
    bound_below,
    bound_up_to,
    largest_below,
    sort_key,
    threshold_of,
)
from outrider.runtime.errors import BadModelError

doubles = st.floats(allow_nan=False) | st.floats(width=32, allow_nan=False) | st.sampled_from([5e-324, -0.0, 1e300])


def tree(**changes: Any) -> Tree:
    """x[0] <= 0.5 ? 1 : (x[1] in {2} ? 3 : 2)."""
    made = Tree(
        kind=np.array([NUMERIC, LEAF, CATEGORY, LEAF, LEAF], np.uint8),
        feature=np.array([0, 0, 1, 0, 0], np.int32),
        bound=np.array([bound_up_to(np.array([0.5]))[0], 0, 0, 0, 0], np.int32),
        missing_right=np.zeros(5, bool),
        left=np.array([1, -1, 3, -1, -1], np.int32),
        right=np.array([2, -1, 4, -1, -1], np.int32),
        payload=np.array([0, 0, 0, 1, 2], np.int32),
        values=np.array([[1.0], [2.0], [3.0]]),
        categories=(CategorySplit(frozenset({2}), frozenset(), other_right=False, missing_right=False),),
        output=0,
    )
    return replace(made, **changes)


def forest(*trees: Tree, **changes: Any) -> Forest:
    made = Forest(
        features=2,
        outputs=1,
        trees=trees,
        base=np.zeros(1),
        divisor=None,
        precision="float64",
        transform="identity",
    )
    return replace(made, **changes)


def ints(*values: int) -> Any:
    return np.array(values, np.int32)


TREES = {
    "point in a circle": {"left": ints(1, -1, 0, -1, -1)},
    "twice at one node": {"right": ints(1, -1, 4, -1, -1)},
    "outside": {"right": ints(2, -1, 9, -1, -1)},
    "in a circle": {"kind": np.array([LEAF, NUMERIC, NUMERIC, LEAF, LEAF], np.uint8), "left": ints(-1, 2, 1, -1, -1)},
    "splits on feature 2": {"feature": ints(0, 0, 2, 0, 0)},
    "splits on feature -1": {"feature": ints(-1, 0, 1, 0, 0)},
    "not finite": {"values": np.array([[1.0], [np.nan], [3.0]])},
    "shape \\(2,\\)": {"values": np.ones((3, 2))},
    "without values": {"payload": ints(0, 0, 0, 1, 3)},
    "without its categories": {"categories": ()},
    "both ways": {"categories": (CategorySplit(frozenset({2}), frozenset({2}), False, False),)},
    "categories outside": {"categories": (CategorySplit(frozenset({-1}), frozenset(), False, False),)},
    "output 1": {"output": 1},
    "different lengths": {"bound": ints(0, 0)},
    "neither a split nor a leaf": {"kind": np.array([NUMERIC, LEAF, 7, LEAF, LEAF], np.uint8)},
    "otherwise on doubles": {"threshold": np.array([0.6, 0, 0, 0, 0])},
}
FORESTS = {
    "zero trees": {"trees": ()},
    "0 features": {"features": 0},
    "base scores": {"base": np.array([np.inf])},
    "averages": {"divisor": np.zeros(1)},
    "scales its results by 0": {"scale": 0.0},
    "complement of 2": {"complement": True, "outputs": 2, "base": np.zeros(2)},
}


def test_a_sound_forest_passes():
    check_forest(forest(tree(), tree(), divisor=np.full(1, 2.0)))


@pytest.mark.parametrize("message", TREES)
def test_a_tree_that_is_none(message):
    with pytest.raises(BadModelError, match=f"tree 1 of the model.*{message}"):
        check_forest(forest(tree(), tree(**TREES[message])))


@pytest.mark.parametrize("message", FORESTS)
def test_a_forest_that_is_none(message):
    with pytest.raises(BadModelError, match=message):
        check_forest(forest(tree(), **FORESTS[message]))


def test_a_deep_chain_is_checked_at_once():
    depth = 200_000
    inner = np.arange(0, 2 * depth, 2)
    kind = np.full(2 * depth + 1, LEAF, np.uint8)
    kind[inner] = NUMERIC
    left, right = np.full((2, 2 * depth + 1), -1, np.int32)
    left[inner], right[inner] = inner + 1, inner + 2
    payload = np.zeros(2 * depth + 1, np.int32)
    payload[kind == LEAF] = np.arange(depth + 1)
    zeros = np.zeros(2 * depth + 1, np.int32)
    chain = Tree(kind, zeros, zeros, zeros > 0, left, right, payload, np.ones((depth + 1, 1)), (), 0)
    check_forest(forest(chain))


@settings(max_examples=300)
@given(doubles, doubles, st.integers(-2, 2))
def test_thresholds_decide_on_doubles(x, t, near):
    """`x < t` and `x <= t` at `t` itself, next to it, and anywhere."""
    if near:
        x = math.nextafter(t, near * math.inf) if abs(near) == 1 else t
    limits = np.array([t])
    assert (x <= largest_below(limits)[0]) == (x < t)
    for bounds, thresholds in ((bound_below(limits), largest_below(limits)), (bound_up_to(limits), limits)):
        assert threshold_of(bounds).dtype == np.float64
        split = {"bound": ints(bounds[0], 0, 0, 0, 0), "threshold": np.array([thresholds[0], 0, 0, 0, 0])}
        check_forest(forest(tree(**split)))


def test_a_threshold_that_is_not_given_is_that_of_the_bound():
    thresholds = np.array([0.1, -np.inf, np.inf, np.nan, 0.0, 3e38])
    for bounds in (bound_below(thresholds), bound_up_to(thresholds)):
        derived = threshold_of(bounds)
        for value in np.concatenate([thresholds.astype(np.float32), np.float32([-0.0, 1e-45, -1e-45, 3.4028235e38])]):
            if not np.isnan(value):
                key = sort_key(np.array([value]))[0]
                assert ((key >= bounds) == ~(np.float64(value) <= derived)).all()
