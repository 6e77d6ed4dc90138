"""Kernel `leafwise`: all nodes of trees of any shape, with categories, for AVX-512. The idea is in leafwise.h."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from outrider.compiler.trees import categories, fixed
from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.kernels import KernelSource, Role
from outrider.compiler.trees.kernels.leafwise_tables import LeafwiseOptions, LeafwiseTables
from outrider.compiler.trees.kernels.ranks import MAX_OUTPUTS
from outrider.compiler.trees.leafwise_layout import MAX_LEAVES, lay_out_leafwise
from outrider.compiler.trees.parts import can_part
from outrider.runtime.target import Target


class Leafwise:
    """Options: `registers`, `group`, as in LeafwiseOptions. Other forms of the kernel have other tables."""

    name = "leafwise"
    serves: frozenset[Role] = frozenset(("batch",))
    isa = "x86-64-v4-vbmi"
    block = 64

    tables: ClassVar[type[LeafwiseTables]] = LeafwiseTables
    choices: ClassVar[tuple[LeafwiseOptions, ...]] = (LeafwiseOptions(1, 8), LeafwiseOptions(2, 4))
    portable: ClassVar[bool] = False

    def refuses(self, forest: Forest) -> str | None:
        """Trees too deep, leaf vectors, too many outputs or classes of categories."""
        if forest.leaf_vectors:
            return "leaves are vectors"
        if forest.outputs > MAX_OUTPUTS:
            return f"it has {forest.outputs} outputs, of {MAX_OUTPUTS} at most"
        if not can_part(forest, MAX_LEAVES):
            return f"a path is longer than half of {MAX_LEAVES}, the leaves of a part of a tree"
        return fixed.why_not(forest, wide=True) or categories.why_not(forest)

    def cost(self, forest: Forest) -> Mapping[Role, float]:
        """Each node and some more a tree, for 64 rows."""
        nodes = 2.6 * forest.splits.sum() + 1.0 * forest.category_splits.sum() + 25 * len(forest.trees)
        return {"batch": 3 * forest.features + nodes / self.tables.lanes}

    def variants(self, forest: Forest, target: Target) -> Sequence[dict[str, str]]:
        """More registers share loads, fewer leave more of L1 to a group's slots."""
        return [{key: str(value) for key, value in vars(options).items()} for options in self.choices]

    def emit(self, forest: Forest, options: Mapping[str, str]) -> KernelSource:
        """Cut, sort, and write the tables down."""
        chosen = LeafwiseOptions(**{key: int(options.get(key, value)) for key, value in vars(self.choices[0]).items()})
        tables = self.tables(lay_out_leafwise(forest), chosen)
        return KernelSource(
            files=tables.files(),
            include=tables.templates[0],
            prefix=tables.prefix.lower(),
            scratch=tables.scratch,
            portable=self.portable,
        )
