"""Random forests of every kind that kernels meet, and a way to run them: one set for all kernels.

Leaf values are integers, so that sums are exact in float32, float64 and fixed point alike: results are equal exactly
when every decision is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np

from outrider.compiler.backends import Candidate, Order, backend
from outrider.compiler.model import Model, forest_model
from outrider.compiler.trees.forest import CATEGORY, LEAF, NUMERIC, CategorySplit, Forest, Tree, bound_below
from outrider.compiler.trees.rows import rows_from_thresholds
from outrider.runtime.engines import open_engine
from outrider.runtime.target import Target
from outrider.targets import get_target
from outrider.targets.emulate import EmulatedEngine

Array = np.ndarray

BATCHES = (1, 2, 15, 31, 63, 64, 65, 127, 128, 129, 1000)
_FAR = np.array([-(2**31) + 1, ~0x7F800000, 0x7F800000, 0x7F800001, 2**31 - 1, 0, -1, 1, -2], np.int32)


def random_tree(
    rng: np.random.Generator,
    *,
    features: int,
    leaves: int,
    depth: int = 64,
    lean: float = 0.3,
    pool: Array,
    categories: Sequence[int] = (),
) -> Tree:
    """A tree that grows leaf by leaf up to `leaves` or until none may be split; a high `lean` makes it deep.

    Bounds are drawn from `pool` [features, n]. The last features have categories, so many each.
    """
    left, right, level, open_ = [-1], [-1], [0], [0] if depth else []
    count = 1
    while open_ and count < leaves:
        node = open_.pop(-1 if rng.random() < lean else int(rng.integers(len(open_))))
        left[node], right[node] = len(left), len(left) + 1
        left += [-1, -1]
        right += [-1, -1]
        level += [level[node] + 1] * 2
        count += 1
        if level[node] + 1 < depth:
            open_ += [left[node], right[node]]
    nodes = len(left)
    inner = np.array(left) >= 0
    feature = rng.integers(0, features, nodes)
    by_category = inner & (feature >= features - len(categories))
    kind = np.where(by_category, CATEGORY, np.where(inner, NUMERIC, LEAF))
    payload = np.where(inner, 0, np.cumsum(~inner) - 1)
    payload[by_category] = np.arange(int(by_category.sum()))
    sizes = [categories[one - features + len(categories)] for one in feature[by_category].tolist()]
    return Tree(
        kind=kind.astype(np.uint8),
        feature=np.where(inner, feature, 0).astype(np.int32),
        bound=np.where(kind == NUMERIC, pool[feature, rng.integers(0, pool.shape[1], nodes)], 0).astype(np.int32),
        missing_right=(kind == NUMERIC) & (rng.random(nodes) < 0.5),
        left=np.array(left, np.int32),
        right=np.array(right, np.int32),
        payload=payload.astype(np.int32),
        values=rng.integers(-1000, 1000, (int((~inner).sum()), 1)).astype(np.float64),
        categories=tuple(_random_split(rng, size) for size in sizes),
        output=0,
    )


def _random_split(rng: np.random.Generator, size: int) -> CategorySplit:
    chosen = rng.random(size) < 0.5
    right = frozenset(np.flatnonzero(chosen).tolist()) or frozenset((0,))
    left = frozenset(range(size)) - right if rng.random() < 0.3 else frozenset()
    return CategorySplit(right, left, other_right=bool(rng.random() < 0.5), missing_right=bool(rng.random() < 0.5))


def random_forest(
    seed: int, *, trees: int, features: int = 6, bounds: int = 40, outputs: int = 1, width: int = 0, **settings: Any
) -> Forest:
    """A forest of such trees, which add to the outputs in turn; with `width` leaves are vectors over all outputs.

    `settings` are those of `random_tree`, or fields of Forest.
    """
    rng = np.random.default_rng(seed)
    of_tree = {key: settings.pop(key) for key in ("leaves", "depth", "lean", "categories") if key in settings}
    pool = bound_below(rng.standard_normal((features, bounds)))
    pool[:, : len(_FAR)] = _FAR[:bounds]
    made = []
    for number in range(trees):
        tree = random_tree(rng, features=features, pool=pool, **{"leaves": 1 << 20, **of_tree})
        if width:
            tree = replace(tree, values=rng.integers(-50, 50, (len(tree.values), width)).astype(np.float64))
        made.append(replace(tree, output=None if width else number % outputs))
    plain = Forest(
        features=features,
        outputs=width or outputs,
        trees=tuple(made),
        base=np.arange(width or outputs, dtype=np.float64) / 2,
        divisor=None,
        precision="float32",
        transform="identity",
    )
    return replace(plain, **settings)


FORESTS: dict[str, dict[str, Any]] = {
    "leaves only": {"trees": 3, "depth": 0},
    "one stump": {"trees": 1, "depth": 1, "features": 1, "bounds": 1},
    "two features": {"trees": 5, "depth": 3, "features": 2},
    "three features, three outputs": {"trees": 13, "depth": 4, "features": 3, "bounds": 100, "outputs": 3},
    "perfect": {"trees": 9, "depth": 6, "features": 8, "bounds": 60},
    "perfect, seven levels": {"trees": 17, "depth": 7, "features": 30, "bounds": 15},
    "perfect, eight levels": {"trees": 5, "depth": 8, "features": 11, "bounds": 200},
    "perfect, nine levels": {"trees": 3, "depth": 9, "features": 11, "bounds": 200, "outputs": 2},
    "nine levels, many columns": {"trees": 20, "depth": 9, "leaves": 300, "features": 200, "bounds": 300},
    "chunks": {"trees": 40, "depth": 8, "leaves": 200, "features": 5, "bounds": 900},
    "hundreds of trees": {"trees": 300, "depth": 6, "leaves": 30, "features": 12},
    "leaf-wise": {"trees": 40, "leaves": 63, "features": 12, "bounds": 100},
    "leaf-wise, deep": {"trees": 20, "leaves": 63, "lean": 0.9},
    "leaf-wise, large": {"trees": 12, "leaves": 255, "features": 20, "bounds": 100, "outputs": 2},
    "leaf-wise, too large": {"trees": 6, "leaves": 700, "lean": 0.7},
    "many features": {"trees": 60, "depth": 7, "leaves": 60, "features": 1500, "bounds": 12, "outputs": 2},
    "categories": {"trees": 30, "leaves": 63, "categories": (2, 5, 20, 60), "features": 9},
    "categories of many kinds": {"trees": 9, "leaves": 120, "categories": (3, 200), "features": 5},
    "categories only": {"trees": 70, "leaves": 20, "categories": (2, 3, 9), "features": 3},
    "categories beyond bytes": {"trees": 5, "leaves": 30, "categories": (2000,), "features": 3},
    "strange categories": {
        **{"trees": 20, "leaves": 40, "categories": (4, 9), "features": 4},
        **{"exact_categories": True, "tiny_is_zero": True},
    },
    "LightGBM's categories": {
        **{"trees": 20, "leaves": 40, "categories": (4, 9), "features": 4},
        **{"negative_fraction_is_zero": True, "tiny_is_zero": True, "precision": "float64"},
    },
    "zero is missing": {"trees": 9, "depth": 5, "missing": "zero"},
    "tiny is zero": {"trees": 9, "depth": 5, "tiny_is_zero": True},
    "softmax": {"trees": 30, "depth": 4, "outputs": 10, "transform": "softmax", "base": np.zeros(10)},
    "sigmoid": {"trees": 3, "depth": 4, "transform": "sigmoid"},
    "pair": {"trees": 3, "depth": 4, "transform": "sigmoid", "complement": True},
    "averaged": {"trees": 32, "depth": 4, "divisor": np.full(1, 32.0)},
    "sums of float64": {"trees": 300, "leaves": 20, "precision": "float64"},
    "vectors": {"trees": 20, "depth": 5, "width": 3},
}


def adversarial(source: Forest) -> Array:
    """Rows from the forest's own thresholds, random ones, sizes around 1e-35, and NaNs of other bits."""
    strange = np.array([[0xFFC00001], [0x7F800001]], np.uint32).repeat(source.features, 1).view(np.float32)
    return np.concatenate(
        [
            rows_from_thresholds(source, seed=1, nan=True, inf=True, max_rows=1800),
            np.random.default_rng(2).standard_normal((100, source.features)).astype(np.float32),
            np.full((2, source.features), [[1e-35], [-1.1e-35]], np.float32),
            strange,
        ]
    )


def model_of(source: Forest) -> Model:
    """A model of the forest whose own library knows nothing."""
    shape = () if source.columns_out == 1 else (source.columns_out,)
    return forest_model(
        source,
        lambda x: np.zeros((len(x), *shape)),
        framework="test",
        framework_version="1",
        description="",
        sha256="0" * 64,
        probabilities=False,
    )


def run(
    source: Forest, rows: Array, options: dict[str, str], batches: Sequence[int] = BATCHES, target: Target | None = None
) -> Iterator[Array]:
    """Results of a plan for all rows at once, then for the first ones in batches; under QEMU for a foreign target."""
    model, host = model_of(source), get_target("host")
    target = target or host
    made = backend("native").build(Order(model, target), Candidate("native", options=options))
    rows = np.ascontiguousarray(rows, np.float32)
    foreign = made.entry.format == "native" and target.arch != host.arch
    with closing(
        EmulatedEngine(made.entry, made.data, target, model.signature)
        if foreign
        else open_engine(made.entry, made.data, model.signature)
    ) as engine:
        for size in (len(rows), *batches):
            yield engine.run({"features": np.ascontiguousarray(rows[:size])})[model.computed[0]]
