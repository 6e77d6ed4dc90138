"""K2, the portable walk: any forest, any CPU. The idea, its cost and its limits are told in `k2.h`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from outrider.compiler.trees.emit import array, defines, header, sums, template
from outrider.compiler.trees.forest import Forest, once_a_forest
from outrider.compiler.trees.kernels import BASELINE, KernelSource, Role
from outrider.compiler.trees.layout import Tables, lay_out
from outrider.runtime.target import Target

_LANES = (8, 4, 16)
_LANES_NARROW = (4, 8)  # few registers: 32-bit ARM has 14 to use
_BLOCK_ROWS = 128
_BLOCK_BYTES = 256 << 10  # virtual columns and sums of a block of rows: about half of a small core's L2


_lay_out = once_a_forest(lay_out)


class K2:
    """Options: `lanes`, how many walks run interleaved; which is fastest depends on registers and caches."""

    name = "k2"
    serves: frozenset[Role] = frozenset(("row", "batch"))
    isa = BASELINE
    block = 1

    def refuses(self, forest: Forest) -> str | None:
        """Nothing: what this kernel cannot lay out, none can, and `lay_out` raises UnsupportedError."""
        return None

    def cost(self, forest: Forest) -> Mapping[Role, float]:
        """Each column, and each level of each tree, twice where categories are looked up."""
        level = 8.6 if forest.category_splits.any() else 4.3
        cycles = 2 * forest.features + level * float(forest.depths.sum())
        return {"row": cycles, "batch": cycles}

    def variants(self, forest: Forest, target: Target) -> Sequence[dict[str, str]]:
        """One a number of lanes."""
        lanes = _LANES_NARROW if target.arch == "armv7" else _LANES
        return [{"lanes": str(count)} for count in lanes]

    def emit(self, forest: Forest, options: Mapping[str, str]) -> KernelSource:
        """Lay out, and write the tables down."""
        tables, lanes = _lay_out(forest), int(options.get("lanes", _LANES[0]))
        rows = _block_rows(tables, lanes)
        return KernelSource(
            files={"k2.h": template("k2.h"), "k2_tables.h": _tables_header(tables, lanes, rows)},
            include="k2.h",
            prefix="k2",
            scratch=rows * _row_bytes(tables),
            portable=True,
        )


def _row_bytes(tables: Tables) -> int:
    """Scratch bytes a row: its virtual columns and its sums."""
    return 4 * tables.columns + 8 * tables.forest.outputs


def _block_rows(tables: Tables, lanes: int) -> int:
    """Rows that the kernel takes through a tree before the next one: a multiple of the lanes."""
    return max(lanes, min(_BLOCK_ROWS, _BLOCK_BYTES // _row_bytes(tables)) // lanes * lanes)


def _tables_header(tables: Tables, lanes: int, rows: int) -> str:
    sizes = {
        "K2_COLUMNS": tables.columns,
        "K2_LEFT_COLUMNS": tables.left_columns,
        "K2_RIGHT_COLUMNS": tables.right_columns,
        "K2_CATEGORY_COLUMNS": tables.category_columns,
        "K2_WIDTH": tables.width,
        "K2_LANES": lanes,
        "K2_BLOCK": rows,
        "K2_WIDE": int(tables.wide),
    }
    parts = [
        '#include "forest.h"',
        defines(sizes),
        array("uint32_t", "K2_COLUMN_FEATURE", tables.column_feature),
        _nodes(tables),
        array("uint32_t", "K2_ROOT", tables.root),
        array("uint32_t", "K2_DEPTH", tables.depth),
        *_outputs(tables),
        sums("K2_VALUES", tables.values, tables.forest),
    ]
    if tables.category_columns:
        parts.append(array("uint32_t", "K2_CATEGORY_SETS", tables.category_sets))
    return header("K2's sizes, and its tables as layout.py describes them.", *parts)


def _nodes(tables: Tables) -> str:
    bound = tables.bound.view(np.uint32)
    if tables.wide:
        return array("uint32_t", "K2_NODES", np.stack([bound, tables.column, tables.child], axis=1))
    words = bound.astype(np.uint64) | tables.column.astype(np.uint64) << np.uint64(32)
    return array("uint64_t", "K2_NODES", words | tables.child.astype(np.uint64) << np.uint64(48))


def _outputs(tables: Tables) -> list[str]:
    if tables.forest.outputs == 1:
        return ["#define K2_TREE_OUTPUT(tree) 0"]
    return [array("uint32_t", "K2_OUTPUT", tables.output), "#define K2_TREE_OUTPUT(tree) K2_OUTPUT[tree]"]
