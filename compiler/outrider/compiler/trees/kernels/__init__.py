"""Kernels: Forest -> tables and a fixed piece of C that reads them. One module and one C template each.

`KERNELS` is the table. Of those that serve a role, run at the instruction-set level and take the forest, cost models
and measurements choose (`outrider.compiler.trees.select`). A new kernel is one module with a class of the interface
`Kernel`, its template `NAME.h` beside it, and one line here. The last kernel takes every forest on every CPU.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from outrider.compiler.trees.forest import Forest
from outrider.runtime.target import Arch, Target

Role = Literal["row", "batch"]


@dataclass(frozen=True)
class IsaLevel:
    """A set of instructions that an artifact may use.

    `arch` None: every architecture, with what its board has. `features` are those that a machine needs beyond the
    board's, as `outrider.runtime.probe.cpu_features` spells them; `flags` say the same to the compiler.
    """

    name: str
    arch: Arch | None = None
    features: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


BASELINE = "baseline"

_VBMI = ("avx512vbmi", "avx512vbmi2", "avx512vnni", "avx512bitalg", "avx512vpopcntdq", "gfni")

# From the least to the most: a level has all that the ones of its architecture before it have.
ISA_LEVELS: dict[str, IsaLevel] = {
    level.name: level
    for level in (
        IsaLevel(BASELINE),
        # What every machine of a board has, for kernels that are written for its architecture.
        IsaLevel("x86-64-v2", "x86_64"),
        IsaLevel("x86-64-v3", "x86_64", ("x86-64-v3",), ("-mcpu=x86_64_v3",)),
        # Ice Lake and Zen 4 onwards.
        IsaLevel(
            "x86-64-v4-vbmi",
            "x86_64",
            ("x86-64-v3", "x86-64-v4", *_VBMI),
            ("-mcpu=x86_64_v4+" + "+".join(_VBMI), "-mprefer-vector-width=512"),
        ),
        IsaLevel("aarch64-neon", "aarch64"),
        # Vectors of SVE have a length that is known on the device only.
        IsaLevel("aarch64-sve", "aarch64", ("sve",), ("-mcpu=generic+sve",)),
        # Float vectors of NEON on 32-bit ARM flush subnormals to zero; integers are exact.
        IsaLevel("armv7-neon", "armv7", ("neon",), ("-mcpu=generic+v7a+neon",)),
        # RVV 1.0, vectors of 128 bits at least. Loops over floats stay scalar: QEMU before 8 fails on conversions in
        # vectors, and what it cannot run it cannot verify.
        IsaLevel("riscv64-v", "riscv64", ("v",), ("-mcpu=baseline_rv64+v", "-fno-vectorize")),
        IsaLevel("wasm32-simd128", "wasm32", ("simd128",), ("-mcpu=lime1+simd128",)),
    )
}


@dataclass(frozen=True)
class KernelSource:
    """One forest for one kernel: `files` by name, the header to `include`, and the `prefix` of its C names.

    The header defines `size_t PREFIX_workspace(int64_t batch)` and `void PREFIX_run(const float *rows,
    float *results, int64_t batch, void *workspace)`, both static and fit for every batch of one row or more;
    every other name it brings starts with the prefix, too. `scratch` is the most bytes of workspace that a batch of
    1024 rows needs. `portable`: the sources compile for every architecture, so that a build for this machine can be
    tested in place of one that this machine cannot run.
    """

    files: dict[str, str]
    include: str
    prefix: str
    scratch: int
    portable: bool = False


class Kernel(Protocol):
    """Lays a forest out for one way of evaluating it. Instances serve one compile and may keep a forest's layout."""

    name: str
    serves: frozenset[Role]
    """What it is good at: single rows and a few, or batches. It must be right at any batch size."""
    isa: str
    """The least of ISA_LEVELS that it needs."""
    block: int
    """How many rows of a large batch take as long as the smallest batch: 1 for a kernel that takes them one by one."""

    def refuses(self, forest: Forest) -> str | None:
        """Why the kernel cannot take this forest, in words; None where it can. Every constraint is checked here."""
        ...

    def cost(self, forest: Forest) -> Mapping[Role, float]:
        """Cycles a row of a forest that it takes, for each role: the cost model of the template's header, as numbers.

        Constants are fitted to forests measured on Zen 4, and so hold what the header's counts of instructions leave
        out: loops, caches, waiting. What counts are the ratios between kernels.
        """
        ...

    def variants(self, forest: Forest, target: Target) -> Sequence[dict[str, str]]:
        """Options that change speed and no decision, the rule's favourite first. At least one, which may be empty."""
        ...

    def emit(self, forest: Forest, options: Mapping[str, str]) -> KernelSource:
        """The tables and the template. The same arguments give the same text. Raises UnsupportedError."""
        ...


KERNELS: dict[str, str] = {
    "perfect": "outrider.compiler.trees.kernels.perfect:Perfect",
    "leafwise": "outrider.compiler.trees.kernels.leafwise:Leafwise",
    "leafwise-avx2": "outrider.compiler.trees.kernels.leafwise_vector:LeafwiseAvx2",
    "leafwise-sse": "outrider.compiler.trees.kernels.leafwise_vector:LeafwiseSse",
    "leafwise-neon": "outrider.compiler.trees.kernels.leafwise_vector:LeafwiseNeon",
    "leafwise-neon32": "outrider.compiler.trees.kernels.leafwise_vector:LeafwiseNeon32",
    "leafwise-rvv": "outrider.compiler.trees.kernels.leafwise_vector:LeafwiseRvv",
    "leafwise-wasm": "outrider.compiler.trees.kernels.leafwise_vector:LeafwiseWasm",
    "row": "outrider.compiler.trees.kernels.row:Row",
    "row-masks": "outrider.compiler.trees.kernels.row_masks:RowMasks",
    "row-deep": "outrider.compiler.trees.kernels.row_deep:RowDeep",
    "deep-batch": "outrider.compiler.trees.kernels.deep_batch:DeepBatch",
    "k2": "outrider.compiler.trees.kernels.k2:K2",
}


def kernel(name: str) -> Kernel:
    """A fresh instance of the kernel of that name."""
    made: Kernel = pkgutil.resolve_name(KERNELS[name])()
    return made


__all__ = ["BASELINE", "ISA_LEVELS", "KERNELS", "IsaLevel", "Kernel", "KernelSource", "Role", "kernel"]
