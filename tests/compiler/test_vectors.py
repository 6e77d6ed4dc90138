"""Leafwise gives the same bytes with every instruction set: natively, under QEMU and in Wasmtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from outrider.compiler.trees.categories import category_bits
from outrider.compiler.trees.fixed import fixed_point
from outrider.compiler.trees.kernels import ISA_LEVELS, KERNELS, kernel
from outrider.compiler.trees.kernels.leafwise import Leafwise
from outrider.runtime.probe import host_target
from outrider.runtime.target import Target
from outrider.targets import boards, get_target

FORMS = [name for name in KERNELS if isinstance(kernel(name), Leafwise)]
BATCHES = (1, 15, 16, 17, 31, 33, 64, 65, 129)

# Trees in parts, few features with chunks of bounds and every strange number; categories in large sets, several
# outputs, wide values.
FORESTS: dict[str, dict[str, Any]] = {
    "numbers": {"trees": 13, "leaves": 300, "features": 3, "bounds": 600, "missing": "zero", "tiny_is_zero": True},
    "categories": {
        **{"trees": 30, "leaves": 60, "features": 7, "categories": (3, 200, 9), "outputs": 3, "base": np.zeros(3)},
        **{"negative_fraction_is_zero": True, "precision": "float64"},
    },
}


def why_not_here(name: str) -> str | None:
    """What keeps this machine itself from running a form of the kernel."""
    level, host = ISA_LEVELS[kernel(name).isa], host_target()
    runs = level.arch == host.arch and set(level.features) <= set(host.features)
    return None if runs else f"this machine has not the instructions of {level.name}"


@pytest.fixture
def target_of(require_tool: Callable[[str], str]) -> Callable[[str], Target]:
    """The machine that a form of the kernel is for, where it can be had here."""

    def find(name: str) -> Target:
        level = ISA_LEVELS[kernel(name).isa]
        board = next(board for board in boards().values() if board.arch == level.arch)
        if board.arch == host_target().arch:
            reason = why_not_here(name)
            if reason is not None:
                pytest.skip(reason)
            return get_target("host")
        if board.emulator is not None:
            require_tool(f"{board.emulator.program}-static")
            if not set(level.features) <= set(board.emulator.cpus):
                pytest.skip(f"{board.emulator.program} plays no CPU of the level {level.name}")
        return board.target()

    return find


@pytest.fixture(scope="module")
def cases(forests: Any) -> dict[str, Any]:
    """Forests with rows, K2's results, and those of this machine's first form, which all others have to equal."""
    made = {}
    here = next(name for name in reversed(FORMS) if why_not_here(name) is None)
    for which, settings in FORESTS.items():
        source = forests.random_forest(5, **settings)
        if which == "categories":  # values that fixed point rounds
            source = replace(source, trees=tuple(replace(tree, values=tree.values / 7.0) for tree in source.trees))
            assert fixed_point(source).wide
            assert max(feature.pages for feature in category_bits(source, [set()] * 30).features) > 2
        rows = forests.adversarial(source)[-600:]
        walked = next(forests.run(source, rows, {"kernel": "k2", "lanes": "8"}, ()))
        made[which] = source, rows, walked, next(forests.run(source, rows, options_of(here), ()))
    return made


def options_of(name: str) -> dict[str, str]:
    """The favourite variant, which depends on neither forest nor target."""
    choice = kernel(name).choices[0]  # type: ignore[attr-defined]
    return {"kernel": name, **{key: str(value) for key, value in vars(choice).items()}, "isa": kernel(name).isa}


@pytest.mark.system
@pytest.mark.parametrize("which", FORESTS)
@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_bytes(name, which, forests, cases, target_of):
    target = target_of(name)
    source, rows, walked, wanted = cases[which]
    if which == "numbers":  # whose leaves are integers
        np.testing.assert_array_equal(wanted, walked)
    np.testing.assert_allclose(wanted, walked, rtol=1e-5, atol=1e-6)
    for found in forests.run(source, rows, options_of(name), BATCHES, target):
        assert found.tobytes() == wanted[: len(found)].tobytes(), len(found)
