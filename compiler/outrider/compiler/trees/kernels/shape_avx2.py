"""Kernel `shape-avx2`: the tables of `shape` for 32 rows a register. The idea is in shape_avx2.h."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from outrider.compiler.trees.emit import template
from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.kernels import KernelSource, Role
from outrider.compiler.trees.kernels.shape import Form, ShapeOptions, read_options, shape_tables, why_not
from outrider.compiler.trees.quantise import ranks_of, search_tree
from outrider.runtime.target import Target

_FORM = Form("SHAPE_AVX2", 32, 0x80, False, search_tree)
_VARIANTS = (ShapeOptions(3, 2, 8), ShapeOptions(3, 1, 8))


class ShapeAvx2:
    """Options: `block`, `registers`, `group`, as in ShapeOptions, with 32 rows a register."""

    name = "shape-avx2"
    serves: frozenset[Role] = frozenset(("batch",))
    isa = "x86-64-v3"
    block = 32

    def refuses(self, forest: Forest) -> str | None:
        """Deep trees, categories, leaf vectors, sums in float64."""
        return why_not(forest)

    def cost(self, forest: Forest) -> Mapping[Role, float]:
        """Each node, for 32 rows."""
        return {"batch": 10 * forest.features + (2.2 * float(forest.splits.sum()) + 60 * len(forest.trees)) / 32}

    def variants(self, forest: Forest, target: Target) -> Sequence[dict[str, str]]:
        """Two registers share the loads of positions; one leaves more of them for a tree."""
        return [{key: str(value) for key, value in vars(options).items()} for options in _VARIANTS]

    def emit(self, forest: Forest, options: Mapping[str, str]) -> KernelSource:
        """Quantise, lay out, and write the tables down."""
        chosen = read_options(options, _VARIANTS[0])
        tables, scratch = shape_tables(forest, ranks_of(forest), chosen, _FORM)
        names = ("shape_avx2.h", "finish_batch.h")
        return KernelSource(
            files={**{name: template(name) for name in names}, "shape_avx2_tables.h": tables},
            include="shape_avx2.h",
            prefix="shape_avx2",
            scratch=scratch,
        )
