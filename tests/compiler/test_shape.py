"""The kernels that evaluate all nodes on ranks, against K2 and against ranks computed plainly."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from outrider.compiler.backends import Candidate, backend
from outrider.compiler.model import forest_model
from outrider.compiler.trees.emit import artifact_sources
from outrider.compiler.trees.forest import CATEGORY, LEAF, NUMERIC, Forest, Tree, bound_below
from outrider.compiler.trees.kernels import ISA_LEVELS, kernel
from outrider.compiler.trees.kernels.shape import all_shapes, choose_shapes, parts
from outrider.compiler.trees.rows import rows_from_thresholds
from outrider.runtime.engines import open_engine
from outrider.targets import get_target
from outrider.targets.toolchain import build_shared

BATCHES = (1, 2, 63, 64, 65, 127, 128, 129, 1000)
FAR = np.array([-(2**31) + 1, ~0x7F800000, 0x7F800000, 0x7F800001, 2**31 - 1, 0, -1, 1, -2], np.int32)
VARIANTS = {
    "shape-avx2": [(0, 1, 8), (3, 2, 8), (3, 1, 3)],
}


def random_tree(
    rng: np.random.Generator, depth: int, features: int, pool: np.ndarray, output: int, grow: float
) -> Tree:
    """A tree of up to `depth` levels with bounds of `pool` [features, n], and integers as leaf values."""
    kind, feature, bound, left, right, level = [LEAF], [0], [0], [-1], [-1], [0]
    for node in range(1 << depth + 1):
        if node >= len(kind):
            break
        if level[node] < depth and (level[node] == 0 or rng.random() < grow):
            kind[node] = NUMERIC
            feature[node] = int(rng.integers(features))
            bound[node] = int(rng.choice(pool[feature[node]]))
            left[node], right[node] = len(kind), len(kind) + 1
            for column, value in ((kind, LEAF), (feature, 0), (bound, 0), (left, -1), (right, -1)):
                column += [value, value]
            level += [level[node] + 1] * 2
    leaves = np.cumsum(np.array(kind) == LEAF) - 1
    return Tree(
        kind=np.array(kind, np.uint8),
        feature=np.array(feature, np.int32),
        bound=np.array(bound, np.int32),
        missing_right=rng.random(len(kind)) < 0.5,
        left=np.array(left, np.int32),
        right=np.array(right, np.int32),
        payload=np.where(np.array(kind) == LEAF, leaves, 0).astype(np.int32),
        values=rng.integers(-1000, 1000, (int(leaves[-1]) + 1, 1)).astype(np.float64),
        categories=(),
        output=output,
    )


def random_forest(
    seed: int,
    *,
    trees: int,
    depth: int,
    features: int,
    bounds: int,
    outputs: int = 1,
    grow: float = 0.8,
    **changes: object,
) -> Forest:
    rng = np.random.default_rng(seed)
    pool = bound_below(rng.standard_normal((features, bounds)))
    pool[:, : len(FAR)] = FAR[:bounds]
    made = [random_tree(rng, depth, features, pool, i % outputs, grow) for i in range(trees)]
    plain = Forest(
        features=features,
        outputs=outputs,
        trees=tuple(made),
        base=np.arange(outputs, dtype=np.float64) / 2,
        divisor=None,
        precision="float32",
        transform="identity",
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def results(source: Forest, rows: np.ndarray, name: str, options: tuple[int, ...] = ()) -> list[np.ndarray]:
    """What a kernel gives for each batch size of BATCHES, and for all rows."""
    if not set(ISA_LEVELS[kernel(name).isa].features) <= set(get_target("host").features):
        pytest.skip(f"this machine has not the instructions of {kernel(name).isa}")
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
    own = dict(zip(("block", "registers", "group"), map(str, options), strict=False))
    chosen = {"kernel": name, "isa": kernel(name).isa, **own}
    made = backend("native").build(model, Candidate("native", options=chosen), get_target("host"))
    with closing(open_engine(made.entry, made.data, model.signature)) as engine:
        return [
            engine.run({"features": np.ascontiguousarray(rows[:size])})[model.computed[0]]
            for size in (*BATCHES, len(rows))
        ]


FORESTS = {
    "leaves only": {"trees": 3, "depth": 0, "features": 5, "bounds": 1},
    "one stump": {"trees": 1, "depth": 1, "features": 1, "bounds": 1},
    "two features": {"trees": 5, "depth": 3, "features": 2, "bounds": 20},
    "three features": {"trees": 13, "depth": 4, "features": 3, "bounds": 100, "outputs": 3},
    "five features, chunks": {"trees": 40, "depth": 8, "features": 5, "bounds": 900, "grow": 0.9},
    "perfect": {"trees": 9, "depth": 6, "features": 8, "bounds": 60, "grow": 1.0},
    "perfect, deep": {"trees": 5, "depth": 8, "features": 11, "bounds": 200, "grow": 1.0},
    "seven levels": {"trees": 17, "depth": 7, "features": 30, "bounds": 15},
    "lopsided": {"trees": 30, "depth": 8, "features": 6, "bounds": 40, "grow": 0.55},
    "many features": {"trees": 60, "depth": 7, "features": 1500, "bounds": 12, "outputs": 2},
    "zero is missing": {"trees": 9, "depth": 5, "features": 6, "bounds": 30, "missing": "zero"},
    "tiny is zero": {"trees": 9, "depth": 5, "features": 6, "bounds": 30, "tiny_is_zero": True},
    "probabilities": {
        "trees": 30,
        "depth": 4,
        "features": 6,
        "bounds": 30,
        "outputs": 10,
        "transform": "softmax",
        "base": np.zeros(10),
    },
    "logistic": {"trees": 3, "depth": 4, "features": 6, "bounds": 30, "transform": "sigmoid"},
    "pair": {"trees": 3, "depth": 4, "features": 6, "bounds": 30, "transform": "sigmoid", "complement": True},
    "averaged": {"trees": 30, "depth": 4, "features": 6, "bounds": 30, "divisor": np.full(1, 30.0)},
}


@pytest.mark.parametrize("which", FORESTS)
def test_results_are_those_of_the_portable_walk(which):
    source = random_forest(7, **FORESTS[which])  # type: ignore[arg-type]
    rows = np.concatenate(
        [
            rows_from_thresholds(source, seed=1, nan=True, inf=True, max_rows=1800),
            np.random.default_rng(2).standard_normal((100, source.features)).astype(np.float32),
            np.full((2, source.features), [[1e-35], [-1.1e-35]], np.float32),
            np.array([[0xFFC00001], [0x7F800001]], np.uint32).repeat(source.features, 1).view(np.float32),  # NaNs
        ]
    )
    wanted = results(source, rows, "k2")
    turn = list(FORESTS).index(which)
    for name, variants in VARIANTS.items():
        options = variants[turn % len(variants)]  # builds are slow: each forest is compiled for one variant in turn
        for found, expected in zip(results(source, rows, name, options), wanted, strict=True):
            assert np.array_equal(found, expected), (name, options)


def test_shapes():
    shapes = all_shapes()
    assert len(shapes) == 26
    assert parts(0b1111111) == (7, 7)
    assert parts(0b0010011) == (0b101, 0)
    histogram = dict.fromkeys(shapes, 1000)
    for groups, registers in ((1, 1), (100000, 2)):  # a loop is cheap: its own shape each; dear: the full shape for all
        chosen = choose_shapes(histogram, groups, registers)
        assert all(shape & larger == shape for shape, larger in chosen.items())
        assert len(set(chosen.values())) == (26 if groups == 1 else 1)


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_refused_is_said(name):
    taken = random_forest(1, trees=2, depth=8, features=3, bounds=20, grow=1.0)
    assert kernel(name).refuses(taken) is None
    deep = random_forest(1, trees=2, depth=9, features=3, bounds=20, grow=1.0)
    assert "9 levels" in str(kernel(name).refuses(deep))
    assert "float64" in str(kernel(name).refuses(replace(taken, precision="float64")))
    category = replace(taken.trees[0], kind=np.where(taken.trees[0].kind == LEAF, LEAF, CATEGORY).astype(np.uint8))
    assert "categories" in str(kernel(name).refuses(replace(taken, trees=(category,))))
    assert "vectors" in str(kernel(name).refuses(replace(taken, trees=(replace(taken.trees[0], output=None),))))


@pytest.mark.parametrize("name", VARIANTS)
def test_it_compiles_without_a_warning(name, tmp_path):
    source = random_forest(5, trees=9, depth=8, features=9, bounds=50, outputs=3)
    found = kernel(name)
    for options in found.variants(source, get_target("x86-64")):
        made = found.emit(source, options)
        flags = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", *ISA_LEVELS[found.isa].flags]
        assert build_shared(artifact_sources(source, made, made, 0), tmp_path / "model.so", get_target("x86-64"), flags)
