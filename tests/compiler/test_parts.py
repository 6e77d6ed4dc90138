"""Large trees in parts: the parts' values add up to the tree's, wherever a row goes."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outrider.compiler.trees.check import check_forest
from outrider.compiler.trees.parts import can_part, in_parts, parts_of
from outrider.compiler.trees.rows import rows_from_thresholds


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(1, 400),
    leaves=st.integers(2, 200),
    lean=st.sampled_from([0.0, 0.3, 0.8]),
    categories=st.sampled_from([(), (3, 40)]),
    seed=st.integers(0, 2**16),
)
def test_parts_add_up_to_the_tree(
    forests: ModuleType, sums: Any, size: int, leaves: int, lean: float, categories: tuple[int, ...], seed: int
) -> None:
    forest = forests.random_forest(seed, trees=2, leaves=size, lean=lean, categories=categories, outputs=2)
    if not can_part(forest, leaves):
        return
    parts = in_parts(forest, leaves)
    check_forest(parts)
    assert (parts.splits < leaves).all()
    assert [tree.output for tree in parts.trees] == sorted(tree.output for tree in parts.trees)
    rows = rows_from_thresholds(forest, seed=0, nan=True, inf=True)
    assert np.array_equal(sums(parts, rows), sums(forest, rows))


def test_small_trees_stay_as_they_are(forests):
    forest = forests.random_forest(1, trees=3, leaves=20)
    assert in_parts(forest, 20) is forest


def test_a_path_of_too_many_exits_is_told(forests):
    forest = forests.random_forest(1, trees=1, leaves=50, lean=1.0)
    assert forest.depths[0] == 49
    assert not can_part(forest, 40)
    assert can_part(forest, 50)
    with pytest.raises(ValueError, match="a path of 50 nodes has more exits than a part of 7 leaves"):
        parts_of(forest.trees[0], 7)
