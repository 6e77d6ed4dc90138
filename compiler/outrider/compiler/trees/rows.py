"""Rows made from a forest's own decisions: what random rows never hit is where two implementations part.

There are two kinds: float32 rows around the bounds, and float64 rows around the thresholds and between float32 values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.forest import CATEGORY, NUMERIC, Forest, Tree, key_value

MAX_ROWS = 2048
_SPECIAL = np.array([0.0, -0.0, 1e-45, -1e-45, 1e-38, 1e-35, -1e-35, 3.4e38, -3.4e38], np.float32)
_STRANGE_CATEGORIES = np.array([-1.0, -0.5, 0.5, 1e6, 2.0**24, 3e9], np.float32)
_NANS = np.array([0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)  # of other payloads and signs
_TINY = float(np.float32(1e-35))  # up to here LightGBM takes a number for zero
_LAST = 3.4028235677973362e38  # the last double that rounds to a finite float32
_NEAR_TINY = [_TINY, np.nextafter(_TINY, 0), np.nextafter(_TINY, 1), _TINY * (1 + 1e-8)]
_SPECIAL_DOUBLES = np.array(
    [0.0, 5e-324, 1e-310, 1e-45, 1e-35, *_NEAR_TINY, _LAST, np.nextafter(_LAST, np.inf), 1e300],
)
_STRANGE_DOUBLE_CATEGORIES = np.array(
    [-1.0, -1 + 1e-16, -1e-300, -0.5, 0.5, 1e-300, 2.0**24, 2.0**31, 2.0**32, 2.0**32 + 1, 2.0**53, 1e300, -1e300]
)


def rows_from_thresholds(
    forest: Forest, *, seed: int, nan: bool, inf: bool, max_rows: int = MAX_ROWS
) -> NDArray[np.float32]:
    """float32 [rows, features]: each threshold and its two neighbouring floats, in random combinations.

    Besides: zeros of both signs, subnormals, very large values, known and unknown categories and, where the source
    library takes them, NaN and infinities. Every value appears at least once, unless there are more than `max_rows`
    of a feature. The same forest and seed give the same rows.
    """
    bounds, categories = _decisions(forest, lambda tree: tree.bound)
    pools = [_pool(feature, bounds, categories, nan=nan, inf=inf) for feature in range(forest.features)]
    return _combine(pools, seed, max_rows)


def double_rows_from_thresholds(
    forest: Forest, *, seed: int, nan: bool, inf: bool, max_rows: int = MAX_ROWS
) -> NDArray[np.float64]:
    """float64 [rows, features], in the same way: each threshold, its neighbouring doubles, the float32 on either side
    of it and doubles half-way to them.

    Besides: doubles that float32 has no room for, the neighbours of 1e-35, categories with and without fractions and,
    where the source library takes them, NaN and infinities.
    """
    thresholds, categories = _decisions(forest, lambda tree: tree.threshold)
    pools = [_double_pool(feature, thresholds, categories, nan=nan, inf=inf) for feature in range(forest.features)]
    return _combine(pools, seed, max_rows)


def _combine(pools: list[NDArray[Any]], seed: int, max_rows: int) -> NDArray[Any]:
    """Rows of random combinations, of one value of each pool."""
    rng = np.random.default_rng(seed)
    rows = int(np.clip(2 * max(map(len, pools)), 256, max_rows))
    columns = []
    for pool in pools:
        repeated = np.tile(rng.permutation(pool), -(-rows // len(pool)))[:rows]
        columns.append(rng.permutation(repeated))
    return np.ascontiguousarray(np.stack(columns, axis=1))


def _pool(
    feature: int, bounds: dict[int, NDArray[np.int32]], categories: dict[int, set[int]], *, nan: bool, inf: bool
) -> NDArray[np.float32]:
    own = bounds.get(feature, np.zeros(0, np.int32)).astype(np.int64)
    near = np.unique(np.concatenate([own - 2, own - 1, own, own + 1]))
    values = key_value(near.clip(-(2**31) + 1, 2**31 - 1).astype(np.int32))
    parts = [values[np.isfinite(values)]]
    if feature in categories:
        known = np.array(sorted(categories[feature]), np.float32)
        parts += [known, known + 1, known + np.float32(0.5), _STRANGE_CATEGORIES]
    else:
        parts.append(_SPECIAL)
    if nan:
        parts += [np.full(max(1, sum(map(len, parts)) // 8), np.nan, np.float32), _NANS]
    if inf:
        parts.append(np.array([np.inf, -np.inf], np.float32))
    return np.concatenate(parts)


def _double_pool(
    feature: int, thresholds: dict[int, NDArray[np.float64]], categories: dict[int, set[int]], *, nan: bool, inf: bool
) -> NDArray[np.float64]:
    own = thresholds.get(feature, np.zeros(0))
    own = own[np.isfinite(own)]
    with np.errstate(over="ignore", under="ignore"):
        single = own.astype(np.float32)
        below, above = (np.nextafter(single, np.float32(end)).astype(np.float64) for end in (-np.inf, np.inf))
    parts = [own, np.nextafter(own, -np.inf), np.nextafter(own, np.inf), single.astype(np.float64), below, above]
    parts += [own / 2 + other / 2 for other in (below, above)]
    if feature in categories:
        known = np.array(sorted(categories[feature]), np.float64)
        parts += [known, known + 0.5, np.nextafter(known, -np.inf), np.nextafter(known + 1, 0)]
        parts.append(_STRANGE_DOUBLE_CATEGORIES)
    else:
        parts += [_SPECIAL_DOUBLES, -_SPECIAL_DOUBLES]
    found = np.unique(np.concatenate(parts))
    parts = [found[np.isfinite(found)], np.array([-0.0])]
    if nan:
        parts.append(np.full(max(1, len(found) // 8), np.nan))
    if inf:
        parts.append(np.array([np.inf, -np.inf]))
    return np.concatenate(parts)


def _decisions(
    forest: Forest, field: Callable[[Tree], NDArray[Any]]
) -> tuple[dict[int, NDArray[Any]], dict[int, set[int]]]:
    """By feature, the different values of a field of the numeric nodes, and the categories that splits know."""
    bounds: dict[int, list[NDArray[Any]]] = {}
    categories: dict[int, set[int]] = {}
    for tree in forest.trees:
        numeric = np.flatnonzero(tree.kind == NUMERIC)
        for feature in np.unique(tree.feature[numeric]).tolist():
            bounds.setdefault(feature, []).append(field(tree)[numeric][tree.feature[numeric] == feature])
        for node in np.flatnonzero(tree.kind == CATEGORY).tolist():
            split = tree.categories[tree.payload[node]]
            categories.setdefault(int(tree.feature[node]), set()).update(split.right | split.left)
    return {feature: np.unique(np.concatenate(parts)) for feature, parts in bounds.items()}, categories
