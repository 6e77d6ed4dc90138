"""A native artifact that leans on the compiler's support library, for every board."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from outrider.runtime.bundle import ArtifactEntry, Signature, TensorSpec
from outrider.runtime.probe import host_target
from outrider.runtime.target import Requirements, Target
from outrider.targets import boards, get_target
from outrider.targets.emulate import find_emulator
from outrider.targets.toolchain import build_shared

# y = a0 / a1 (64-bit division) + exp(x), with blocks moved and cleared on the way (memcpy, memset)
SOURCE = """
#include "native_abi.h"
struct block { char bytes[4000]; };
uint32_t outrider_abi(void) { return OUTRIDER_ABI; }
size_t outrider_workspace(int64_t batch) { return 2 * sizeof(struct block) * (size_t)batch; }
int32_t outrider_run(const void *const *inputs, void *const *outputs, int64_t batch, void *workspace) {
    const int64_t *a = inputs[0];
    const double *x = inputs[1];
    double *y = outputs[0];
    struct block *blocks = workspace;
    for (int64_t i = 0; i < batch; i++) {
        if (a[2 * i + 1] == 0) return 3;
        for (size_t j = 0; j < sizeof(struct block); j++) blocks[0].bytes[j] = 0;
        blocks[1] = blocks[0];
        y[i] = (double)(a[2 * i] / a[2 * i + 1]) + __builtin_exp(x[i]) + blocks[1].bytes[i % 4000];
    }
    return 0;
}
#ifndef __wasm__
#include "python_call.h"
#endif
"""


@pytest.fixture
def require_board(require_tool: Callable[[str], str]) -> Callable[[str], Target]:
    """A target that can be run here; skips where QEMU or the C library is missing (see `require_tool`)."""

    def find(name: str) -> Target:
        target = get_target(name)
        if target.arch != host_target().arch:
            emulator = boards()[name].emulator
            assert emulator is not None
            if find_emulator(emulator) is None:
                require_tool(f"{emulator.program}-static")
            if not Path(emulator.glibc.path).is_dir():
                require_tool(emulator.glibc.package)
        return target

    return find


@pytest.fixture(scope="session")
def source() -> str:
    """The artifact's source."""
    return SOURCE


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Target], bytes]:
    """Build the artifact for a target."""
    folder = tmp_path_factory.mktemp("artifacts")
    return lambda target: build_shared({"model.c": SOURCE}, folder / f"{target.name}.so", target)


@pytest.fixture(scope="session")
def inputs() -> dict[str, np.ndarray]:
    """Three rows for the artifact."""
    return {
        "a": np.array([[100_000_000_007, 3], [-(10**15), 7], [5, -2]], np.int64),
        "x": np.array([0.5, 1.0, -700.0]),
    }


@pytest.fixture(scope="session")
def expected(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """What they give, within a few ulp."""
    return np.array([33333333335.0, -142857142857142.0, -2.0]) + np.exp(inputs["x"])


@pytest.fixture(scope="session")
def entry() -> ArtifactEntry:
    """The artifact's record."""
    return ArtifactEntry(
        path="artifacts/x/model.so",
        size=0,
        sha256="0" * 64,
        format="native",
        abi=1,
        engine="native",
        package=None,
        triple=None,
        needs=Requirements(),
        inputs=("a", "x"),
        outputs=("y",),
        candidate="x",
    )


@pytest.fixture(scope="session")
def signature() -> Signature:
    """The artifact's signature."""
    return Signature(
        inputs=(
            TensorSpec(name="a", dtype="int64", shape=(None, 2)),
            TensorSpec(name="x", dtype="float64", shape=(None,)),
        ),
        outputs=(TensorSpec(name="y", dtype="float64", shape=(None,)),),
        predict="y",
    )
