"""What holds for every kernel of the table: it decides as K2 does, refuses in words, and compiles without a warning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from outrider.compiler.trees.emit import artifact_sources
from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.kernels import ISA_LEVELS, KERNELS, kernel
from outrider.targets import get_target
from outrider.targets.toolchain import build_shared

REFERENCE = {"kernel": "k2", "lanes": "8"}
HOST = get_target("host")
# Those for other architectures are forms of one that is here; test_vectors.py runs them all.
OTHERS = [name for name in KERNELS if name != "k2" and ISA_LEVELS[kernel(name).isa].arch in (None, HOST.arch)]


def runs_here(name: str) -> bool:
    return set(ISA_LEVELS[kernel(name).isa].features) <= set(HOST.features)


@pytest.fixture(scope="module")
def wanted(forests: Any) -> Any:
    """K2's results for each of the forests, made once."""
    known: dict[str, tuple[Forest, np.ndarray, list[np.ndarray]]] = {}

    def of(which: str) -> tuple[Forest, np.ndarray, list[np.ndarray]]:
        if which not in known:
            source = forests.random_forest(7, **forests.FORESTS[which])
            rows = forests.adversarial(source)
            known[which] = source, rows, list(forests.run(source, rows, REFERENCE, ()))
        return known[which]

    return of


@pytest.mark.parametrize("name", OTHERS)
def test_decisions_are_those_of_the_portable_walk(name, forests, wanted):
    """Each forest is compiled for one variant in turn, since builds are slow; some forest is taken in every variant."""
    if not runs_here(name):
        pytest.skip(f"this machine does not run {kernel(name).isa}")
    taken = 0
    for which in forests.FORESTS:
        source, rows, (expected,) = wanted(which)
        made = kernel(name)
        reason = made.refuses(source)
        if reason is not None:
            assert len(reason) > 10, which
            continue
        variants = made.variants(source, get_target("host"))
        options = {"kernel": name, **variants[taken % len(variants)], "isa": made.isa}
        if made.isa == "baseline":
            del options["isa"]
        for found in forests.run(source, rows, options):
            np.testing.assert_array_equal(found, expected[: len(found)], err_msg=f"{name} {options}: {which}")
        taken += 1
    assert taken >= 3, "the forests above should put every kernel to the test"


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("which", ["three features, three outputs", "leaf-wise", "categories", "sums of float64"])
def test_it_compiles_without_a_warning(name, which, forests, tmp_path):
    source = forests.random_forest(3, **forests.FORESTS[which])
    found = kernel(name)
    if found.refuses(source) is not None:
        return
    target = next(
        get_target(board)
        for board in ("x86-64", "aarch64", "armv7", "riscv64", "wasm32-wasi")
        if ISA_LEVELS[found.isa].arch in (None, get_target(board).arch)
    )
    made = found.emit(source, found.variants(source, target)[0])
    assert made.scratch >= 0
    flags = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", *ISA_LEVELS[found.isa].flags]
    again = kernel(name).emit(source, found.variants(source, target)[0])
    assert again == made, "the same arguments give the same text"
    assert build_shared(artifact_sources(source, made, made, 0), tmp_path / "model.so", target, flags)
