"""Kernels of other architectures against the source libraries themselves, under QEMU and in Wasmtime.

And the same bytes wherever a kernel runs: K2 on every target, the forms of leafwise among themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

from outrider.compiler.backends import Order, backend
from outrider.compiler.model import Model
from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.kernels import ISA_LEVELS, KERNELS, kernel
from outrider.compiler.trees.kernels.leafwise import Leafwise
from outrider.runtime.engines import open_engine
from outrider.runtime.target import Target
from outrider.targets import boards, get_target
from outrider.targets.emulate import EmulatedEngine

pytestmark = pytest.mark.system

Array = np.ndarray

HOST = get_target("host")
FORMS = [name for name in KERNELS if isinstance(kernel(name), Leafwise)]
MODELS: dict[str, dict[str, Any]] = {
    "xgboost": {"shape": "many thresholds", "task": "three classes", "variant": "base score", "trees": 4},
    "xgboost categories": {"shape": "categories", "task": "two classes", "variant": "partition", "trees": 8},
    "lightgbm": {"shape": "categories", "task": "three classes", "variant": "zero is missing", "trees": 4},
    "forests": {"shape": "nine levels", "task": "regression", "variant": "random", "trees": 5},
    "histogram": {"shape": "many categories", "task": "two classes", "variant": "plain", "trees": 3},
}


def board_of(name: str) -> str:
    """The first board of the architecture that a kernel is for."""
    return next(board.name for board in boards().values() if board.arch == ISA_LEVELS[kernel(name).isa].arch)


PLACES = [
    *((name, "host" if ISA_LEVELS[kernel(name).isa].arch == HOST.arch else board_of(name)) for name in FORMS),
    *(("k2", name) for name, board in boards().items() if board.arch != HOST.arch),
]


class Case(NamedTuple):
    """A model with rows, the library's own results for them, and those of this machine by family of kernels."""

    model: Model
    forest: Forest
    rows: list[Array]
    wanted: list[Array]
    here: dict[str, list[Array]]


def runs_here(name: str) -> bool:
    level = ISA_LEVELS[kernel(name).isa]
    return level.arch in (None, HOST.arch) and set(level.features) <= set(HOST.features)


def results(name: str, model: Model, forest: Forest, batches: list[Array], target: Target) -> list[Array]:
    """What a kernel's artifact gives on a target; in a process of its own where that is another architecture."""
    level = {} if name == "k2" else {"isa": kernel(name).isa}
    options = {"lanes": "8"} if name == "k2" else kernel(name).variants(forest, target)[0]
    native = backend("native")
    candidate = native.recall(Order(model, target), "fp32", {"kernel": name, **options, **level})
    assert candidate is not None
    made = native.build(Order(model, target), candidate)
    given, output = model.signature.inputs[0].name, model.computed[0]
    foreign = made.entry.format == "native" and target.arch != HOST.arch
    with closing(
        EmulatedEngine(made.entry, made.data, target, model.signature)
        if foreign
        else open_engine(made.entry, made.data, model.signature)
    ) as engine:
        return [engine.run({given: rows})[output] for rows in batches]


@pytest.fixture(scope="module")
def cases(source_models: ModuleType) -> Callable[[str], Case]:
    known: dict[str, Case] = {}

    def find(which: str) -> Case:
        if which not in known:
            recipe = source_models.Recipe(library=which.split(maxsplit=1)[0], gaps=True, seed=11, **MODELS[which])
            source = recipe.train()
            model, forest = source_models.read(source)
            single, double = source_models.batches(source, model, 300)
            rows = [single, double, single[:1], single[:65]]
            first = {"k2": "k2", "leafwise": next(filter(runs_here, reversed(FORMS)))}
            here = {family: results(name, model, forest, rows, HOST) for family, name in first.items()}
            known[which] = Case(model, forest, rows, [source.predict(batch) for batch in rows], here)
        return known[which]

    return find


@pytest.mark.parametrize("which", MODELS)
@pytest.mark.parametrize(("name", "place"), PLACES)
def test_a_kernel_gives_what_the_library_predicts_and_the_same_bytes(
    name: str,
    place: str,
    which: str,
    cases: Callable[[str], Case],
    require_tool: Callable[[str], str],
    source_models: ModuleType,
) -> None:
    if place == "host" and not runs_here(name):
        pytest.skip(f"this machine does not run {kernel(name).isa}")
    emulator = None if place == "host" else boards()[place].emulator
    if emulator is not None:
        require_tool(f"{emulator.program}-static")
    case = cases(which)
    assert kernel(name).refuses(case.forest) is None
    found = results(name, case.model, case.forest, case.rows, get_target(place))
    here = case.here["leafwise" if name in FORMS else "k2"]
    for rows, own, wanted, same in zip(case.rows, found, case.wanted, here, strict=True):
        source_models.assert_close(own, wanted, rows)
        assert own.tobytes() == same.tobytes()
