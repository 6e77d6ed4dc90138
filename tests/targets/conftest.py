"""A native artifact that leans on the compiler's support library, for every board."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from outrider.runtime.bundle import ArtifactEntry, Signature, TensorSpec
from outrider.runtime.target import Requirements, Target
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
"""


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Target], bytes]:
    """Build the artifact for a target."""
    folder = tmp_path_factory.mktemp("artifacts")
    return lambda target: build_shared({"model.c": SOURCE}, folder / f"{target.name}.so", target)


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
