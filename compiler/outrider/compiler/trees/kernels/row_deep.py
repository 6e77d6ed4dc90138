"""Row-deep: one row through a deep forest, 16 trees a register. Told in `row_deep.h` and `deep.h`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from outrider.compiler.trees.deep_layout import LANES, refuses
from outrider.compiler.trees.emit import defines, header, template
from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.kernels import KernelSource, Role
from outrider.compiler.trees.kernels.deep import ISA, deep_files, deep_tables, in_flight, level_cost, stride
from outrider.runtime.target import Target

_GROUPS = (7, 4)
_TOGETHER = 4  # registers of lanes in flight, once walks have been moved together


class RowDeep:
    """Options: `groups`, how many registers of 16 trees are in flight."""

    name = "row-deep"
    serves: frozenset[Role] = frozenset(("row",))
    isa = ISA
    block = 1

    def refuses(self, forest: Forest) -> str | None:
        """Splits by category, too many columns or nodes."""
        return refuses(forest)

    def cost(self, forest: Forest) -> Mapping[Role, float]:
        """Each search; then the levels of the deepest of 16 trees, which go together."""
        levels = -(-len(forest.trees) // LANES) * int(forest.depths.max())
        return {"row": 20 * forest.features + level_cost(forest) * levels}

    def variants(self, forest: Forest, target: Target) -> Sequence[dict[str, str]]:
        """One a number of groups, as far as there are so many trees."""
        return in_flight(_GROUPS, forest)

    def emit(self, forest: Forest, options: Mapping[str, str]) -> KernelSource:
        """Lay out, and write the tables down."""
        tables = deep_tables(forest)
        groups = int(options.get("groups", _GROUPS[0]))
        sizes = header("Row-deep's options.", defines({"ROW_DEEP_GROUPS": groups, "ROW_DEEP_TOGETHER": _TOGETHER}))
        return KernelSource(
            files={**deep_files(tables), "row_deep.h": template("row_deep.h"), "row_deep_tables.h": sizes},
            include="row_deep.h",
            prefix="row_deep",
            scratch=2 * stride(tables) + 8 * LANES * (tables.groups + _TOGETHER),
        )
