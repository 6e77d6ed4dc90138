"""Rows made from a forest's own decisions: what random rows never hit is where two implementations part."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.forest import CATEGORY, NUMERIC, Forest, key_value

MAX_ROWS = 2048
_SPECIAL = np.array([0.0, -0.0, 1e-45, -1e-45, 1e-38, 1e-35, -1e-35, 3.4e38, -3.4e38], np.float32)
_STRANGE_CATEGORIES = np.array([-1.0, -0.5, 0.5, 1e6, 2.0**24, 3e9], np.float32)


def rows_from_thresholds(
    forest: Forest, *, seed: int, nan: bool, inf: bool, max_rows: int = MAX_ROWS
) -> NDArray[np.float32]:
    """float32 [rows, features]: each threshold and its two neighbouring floats, in random combinations.

    Besides: zeros of both signs, subnormals, very large values, known and unknown categories and, where the source
    library takes them, NaN and infinities. Every value appears at least once, unless there are more than `max_rows`
    of a feature. The same forest and seed give the same rows.
    """
    rng = np.random.default_rng(seed)
    bounds, categories = _decisions(forest)
    pools = [_pool(feature, bounds, categories, nan=nan, inf=inf) for feature in range(forest.features)]
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
        parts.append(np.full(max(1, sum(map(len, parts)) // 8), np.nan, np.float32))
    if inf:
        parts.append(np.array([np.inf, -np.inf], np.float32))
    return np.concatenate(parts)


def _decisions(forest: Forest) -> tuple[dict[int, NDArray[np.int32]], dict[int, set[int]]]:
    bounds: dict[int, list[NDArray[np.int32]]] = {}
    categories: dict[int, set[int]] = {}
    for tree in forest.trees:
        numeric = np.flatnonzero(tree.kind == NUMERIC)
        for feature in np.unique(tree.feature[numeric]).tolist():
            bounds.setdefault(feature, []).append(tree.bound[numeric][tree.feature[numeric] == feature])
        for node in np.flatnonzero(tree.kind == CATEGORY).tolist():
            split = tree.categories[tree.payload[node]]
            categories.setdefault(int(tree.feature[node]), set()).update(split.right | split.left)
    return {feature: np.unique(np.concatenate(parts)) for feature, parts in bounds.items()}, categories
