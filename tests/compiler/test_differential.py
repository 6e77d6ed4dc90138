"""Every kernel that runs here against the source libraries' own predictions, on models and rows drawn by Hypothesis.

By default each kernel meets a few models of each library, always the same ones. With OUTRIDER_EXAMPLES=50 it meets so
many, other ones in every run.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st

from outrider.compiler.backends import Order, backend
from outrider.compiler.model import Model
from outrider.compiler.trees.forest import NUMERIC, Forest
from outrider.compiler.trees.kernels import BASELINE, ISA_LEVELS, KERNELS, kernel
from outrider.runtime.engines import open_engine
from outrider.runtime.engines.base import Engine
from outrider.targets import get_target

Array = np.ndarray

LIBRARIES = ("xgboost", "lightgbm", "forests", "histogram")
HOST = get_target("host")
OURS = [name for name in KERNELS if ISA_LEVELS[kernel(name).isa].arch in (None, HOST.arch)]
SIZES = (1, 63, 64, 65, 2, 31, 129)

EXAMPLES = os.environ.get("OUTRIDER_EXAMPLES")
SETTINGS = settings(
    max_examples=int(EXAMPLES or 4),
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a recipe is short already, and every attempt is a build
    suppress_health_check=list(HealthCheck),
)


def repeatably(name: str) -> Callable[[Any], Any]:
    """The settings, and draws that depend on `name` alone, unless other ones are asked for."""
    return lambda test: SETTINGS(test if EXAMPLES else seed(zlib.crc32(name.encode()))(test))


def runs_here(name: str) -> bool:
    return set(ISA_LEVELS[kernel(name).isa].features) <= set(HOST.features)


def takes(name: str, forest: Forest) -> bool:
    reason = kernel(name).refuses(forest)
    assert reason is None or len(reason) > 10
    return reason is None


def variant(name: str, forest: Forest, turn: int) -> dict[str, str]:
    found = kernel(name).variants(forest, HOST)
    return found[turn % len(found)]


def level(*names: str) -> dict[str, str]:
    """The option that says which instructions these kernels need."""
    isa = max((kernel(name).isa for name in names), key=list(ISA_LEVELS).index)
    return {} if isa == BASELINE else {"isa": isa}


@contextmanager
def compiled(model: Model, options: dict[str, str]) -> Iterator[Engine]:
    """The artifact of a plan."""
    native = backend("native")
    candidate = native.recall(Order(model, HOST), "fp32", options)
    assert candidate is not None, options
    made = native.build(Order(model, HOST), candidate)
    with closing(open_engine(made.entry, made.data, model.signature)) as engine:
        yield engine


def in_pieces(rows: Array) -> Iterator[Array]:
    """All rows, in batches of the sizes in turn."""
    start, turn = 0, 0
    while start < len(rows):
        yield np.ascontiguousarray(rows[start : start + SIZES[turn % len(SIZES)]])
        start, turn = start + SIZES[turn % len(SIZES)], turn + 1


def check(tools: ModuleType, engine: Engine, model: Model, source: Any, *, same_bytes: bool) -> None:
    """The artifact gives what the library does; one kernel gives the same bytes for a row in every batch."""
    name, output = model.signature.inputs[0].name, model.computed[0]

    def run(rows: Array) -> Array:
        return engine.run({name: rows})[output]

    for rows in tools.batches(source, model):
        wanted = source.predict(rows)
        whole = run(rows)
        tools.assert_close(whole, wanted, rows)
        pieces = np.concatenate([run(piece) for piece in in_pieces(rows)])
        tools.assert_close(pieces, wanted, rows)
        assert not same_bytes or pieces.tobytes() == whole.tobytes()
        assert run(rows[:0]).shape == (0, *wanted.shape[1:])


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", OURS)
def test_a_kernel_gives_what_the_library_predicts(name: str, library: str, source_models: ModuleType) -> None:
    """It serves rows and batches alone, so that all its ways are seen. Some model of the library must be for it."""
    if not runs_here(name):
        pytest.skip(f"this machine does not run {kernel(name).isa}")
    taken = 0

    @repeatably(f"{name}, {library}")
    @given(source_models.recipes(library), st.integers(0, 5))
    def agrees(recipe: Any, turn: int) -> None:
        nonlocal taken
        source = recipe.train()
        model, forest = source_models.read(source)
        assume(takes(name, forest))
        with compiled(model, {"kernel": name, **variant(name, forest, turn), **level(name)}) as engine:
            check(source_models, engine, model, source, same_bytes=True)
        taken += 1

    agrees()
    assert taken, "no model of this library was for this kernel"


@pytest.mark.parametrize("library", LIBRARIES)
def test_two_kernels_share_an_artifact(library: str, source_models: ModuleType) -> None:
    """One takes batches below the crossover, the other the rest, and both are right."""
    roles = {
        role: [name for name in OURS if role in kernel(name).serves and runs_here(name)] for role in ("row", "batch")
    }

    @repeatably(f"pairs, {library}")
    @given(source_models.recipes(library), st.integers(2, 64), st.integers(0, 5), st.data())
    def agrees(recipe: Any, crossover: int, turn: int, data: Any) -> None:
        source = recipe.train()
        model, forest = source_models.read(source)
        rows, batches = ([name for name in names if takes(name, forest)] for names in roles.values())
        row = data.draw(st.sampled_from(rows), label="row")
        batch = data.draw(st.sampled_from([name for name in batches if name != row] or batches), label="batch")
        assume(row != batch)
        options = {
            **{"row": row, **{f"row.{key}": value for key, value in variant(row, forest, turn).items()}},
            **{"batch": batch, **{f"batch.{key}": value for key, value in variant(batch, forest, turn).items()}},
            **{"crossover": str(crossover), **level(row, batch)},
        }
        with compiled(model, options) as engine:
            check(source_models, engine, model, source, same_bytes=False)

    agrees()


@pytest.mark.parametrize("library", LIBRARIES)
def test_shapes_are_what_they_are_called(library: str, source_models: ModuleType) -> None:
    """So that the models above reach what kernels treat apart."""
    assert set(LIBRARIES) == set(source_models.VARIANTS)
    by_category = library != "forests"
    for shape, limits in source_models.SHAPES.items():
        recipe = source_models.Recipe(
            library=library,
            shape=shape,
            task="regression",
            variant=next(iter(source_models.VARIANTS[library])),
            trees=limits.trees,
            gaps=True,
            seed=1,
        )
        _, forest = source_models.read(recipe.train())
        assert bool(forest.category_splits.any()) == (by_category and bool(limits.categories)), shape
        assert forest.depths.max() == limits.levels or not limits.levels, shape
        assert (forest.splits.max() >= 256) == (shape in ("large", "many categories")), shape
        assert (widest(forest) > 255) == (limits.features > 256), shape
        if shape == "many thresholds" and library != "histogram":  # which knows 255 bins at most
            assert most_thresholds(forest) > 255, shape
        if shape == "many categories" and by_category:
            splits = [split for tree in forest.trees for split in tree.categories]
            assert max(max(split.right | split.left) for split in splits) > 64


def widest(forest: Forest) -> int:
    """The last feature that is looked at."""
    return max(int(tree.feature.max()) for tree in forest.trees)


def most_thresholds(forest: Forest) -> int:
    """Different bounds of the feature that has most."""
    bounds = {
        (int(feature), int(bound))
        for tree in forest.trees
        for feature, bound in zip(tree.feature[tree.kind == NUMERIC], tree.bound[tree.kind == NUMERIC], strict=True)
    }
    return max(sum(feature == one for feature, _ in bounds) for one in range(forest.features))
