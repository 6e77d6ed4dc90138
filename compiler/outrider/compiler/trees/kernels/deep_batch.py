"""Deep-batch: many rows through a deep forest, trees outermost. Told in `deep_batch.h` and `deep.h`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from outrider.compiler.trees.deep_layout import LANES, DeepTables, refuses
from outrider.compiler.trees.emit import defines, header, template
from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.kernels import KernelSource, Role
from outrider.compiler.trees.kernels.deep import ISA, deep_files, deep_tables, level_cost, stride
from outrider.runtime.target import Target

_IN_FLIGHT = ((2, 4), (4, 2), (1, 8))  # groups of trees, rows
_BLOCK_ROWS = 1024
_BLOCK_BYTES = 256 << 10  # ranks and sums of a block of rows: a quarter of L2, the nodes of some trees take the rest


class DeepBatch:
    """Options: `groups` of 16 trees and `rows` in flight together, up to 8 pairs."""

    name = "deep-batch"
    serves: frozenset[Role] = frozenset(("batch",))
    isa = ISA
    block = 1

    def refuses(self, forest: Forest) -> str | None:
        """Splits by category, too many columns or nodes."""
        return refuses(forest)

    def cost(self, forest: Forest) -> Mapping[Role, float]:
        """Each search; then the levels of the deepest of 16 trees, which go together."""
        levels = -(-len(forest.trees) // LANES) * int(forest.depths.max())
        return {"batch": 30 * forest.features + 0.9 * level_cost(forest) * levels}

    def variants(self, forest: Forest, target: Target) -> Sequence[dict[str, str]]:
        """From many groups to many rows."""
        return [{"groups": str(groups), "rows": str(rows)} for groups, rows in _IN_FLIGHT]

    def emit(self, forest: Forest, options: Mapping[str, str]) -> KernelSource:
        """Lay out, and write the tables down."""
        tables = deep_tables(forest)
        groups, rows = int(options.get("groups", _IN_FLIGHT[0][0])), int(options.get("rows", _IN_FLIGHT[0][1]))
        block = _block_rows(tables, rows)
        sizes = {"DEEP_BATCH_GROUPS": groups, "DEEP_BATCH_ROWS": rows, "DEEP_BATCH_BLOCK": block}
        return KernelSource(
            files={
                **deep_files(tables),
                "deep_batch.h": template("deep_batch.h"),
                "deep_batch_tables.h": header("Deep-batch's options.", defines(sizes)),
            },
            include="deep_batch.h",
            prefix="deep_batch",
            scratch=block * _row_bytes(tables),
        )


def _row_bytes(tables: DeepTables) -> int:
    """Scratch bytes a row: its ranks and its sums."""
    return 2 * stride(tables) + 8 * tables.forest.outputs


def _block_rows(tables: DeepTables, rows: int) -> int:
    """Rows that pass through some trees before the next ones: a multiple of those in flight."""
    return max(rows, min(_BLOCK_ROWS, _BLOCK_BYTES // _row_bytes(tables)) // rows * rows)
