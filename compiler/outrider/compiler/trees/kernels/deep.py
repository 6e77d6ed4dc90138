"""What the kernels of deep forests share: one layout and one header of tables, `deep_tables.h`, read by `deep.h`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.deep_layout import LANES, DeepTables, Search, columns_of, lay_out_deep
from outrider.compiler.trees.emit import array, defines, header, template
from outrider.compiler.trees.forest import Forest, once_a_forest

ISA = "x86-64-v4-vbmi"
REGISTER_RANKS = 32
_FAN_OUT = 16  # bounds that a step of a search compares with
_LEVEL_COSTS, _GATHERED_LEVEL_COST = {1: 26.0, 2: 32.0, 4: 46.0}, 75.0  # by registers of a row's ranks
_NO_KEY = np.int32(2**31 - 1)  # above the key of every number

deep_tables = once_a_forest(lay_out_deep)


def level_cost(forest: Forest) -> float:
    """Cycles that 16 trees take for a level: a gather, and finding the ranks, by a permute or by more gathers."""
    columns = columns_of(forest)
    return next((cost for registers, cost in _LEVEL_COSTS.items() if columns <= 32 * registers), _GATHERED_LEVEL_COST)


def in_flight(choices: Sequence[int], forest: Forest) -> list[dict[str, str]]:
    """How many groups of trees go together, as options of a kernel: of those that come to all of them, the first."""
    groups = -(-len(forest.trees) // LANES)
    distinct = {min(choice, groups): choice for choice in reversed(choices)}
    return [{"groups": str(choice)} for choice in reversed(distinct.values())]


def stride(tables: DeepTables) -> int:
    """Ranks that a row takes in memory: whole registers, and room for a gather that reads 4 bytes at the last one."""
    if tables.format.registers:
        return REGISTER_RANKS * tables.format.registers
    return -(-(tables.columns + 3) // REGISTER_RANKS) * REGISTER_RANKS


def deep_files(tables: DeepTables) -> dict[str, str]:
    """`deep.h` and its tables."""
    return {"deep.h": template("deep.h"), "gather.h": template("gather.h"), "deep_tables.h": _tables_header(tables)}


def _tables_header(tables: DeepTables) -> str:
    forest, chosen = tables.forest, tables.format
    levels = [len(search_levels(search.bounds)) for search in tables.searches]
    sizes = {
        "DEEP_TREES": len(tables.order),
        "DEEP_GROUPS": tables.groups,
        "DEEP_COLUMNS": tables.columns,
        "DEEP_STRIDE": stride(tables),
        "DEEP_REGISTERS": chosen.registers,
        "DEEP_WIDE": int(chosen.wide),
        "DEEP_RANK_BITS": chosen.rank_bits,
        "DEEP_COLUMN_BITS": chosen.column_bits,
        "DEEP_WIDTH": tables.values.shape[1],
        "DEEP_NOWHERE": tables.nowhere,
        "DEEP_NOTHING": tables.zero if tables.leaf_rows is None else tables.nowhere,  # as deep_leaves tells it
        "DEEP_LEAF_IN_NODE": int(tables.leaf_rows is None),
        "DEEP_FLOAT_LEAVES": int(tables.float_leaves),
        **{f"DEEP_SEARCHES_{n}": sum(count <= n for count in levels) for n in range(1, 5)},
    }
    return header(
        "A deep forest's sizes, and its tables as deep_layout.py describes them.",
        defines(sizes),
        array("uint32_t", "DEEP_NODES", tables.nodes),
        array("uint32_t", "DEEP_ROOTS", tables.roots),
        *_searches(tables),
        *_leaves(tables),
        *segments("DEEP", forest, tables.order),
    )


def _searches(tables: DeepTables) -> list[str]:
    """The searches by number of levels, and the levels of each one, coarsest first."""
    rows, words, size = [], [], 0
    for search in sorted(tables.searches, key=lambda search: len(search_levels(search.bounds))):
        levels = search_levels(search.bounds)
        begins = [size + sum(map(len, levels[:i])) for i in range(len(levels))]
        begins += begins[-1:] * (4 - len(begins))
        words += levels
        size += sum(map(len, levels))
        rows.append(_search_row(search, begins, (1 << tables.format.rank_bits) - 1))
    return [
        "typedef struct { uint32_t feature, level[4]; uint16_t column[2], missing[2]; } deep_search_t;",
        f"static const deep_search_t DEEP_SEARCHES[{max(len(rows), 1)}] = {{\n" + ",\n".join(rows or ["{0}"]) + "};",
        array("int32_t", "DEEP_BOUNDS", np.concatenate(words) if words else np.zeros(0, np.int32)),
    ]


def _search_row(search: Search, begins: list[int], highest: int) -> str:
    columns = [(search.left, 0), (search.right, highest)]
    used = [pair for pair in columns if pair[0] >= 0]
    first, last = used[0], used[-1]
    offsets = ", ".join(map(str, begins))
    return f"{{{search.feature}, {{{offsets}}}, {{{first[0]}, {last[0]}}}, {{{first[1]}, {last[1]}}}}}"


def search_levels(bounds: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    """The bounds, and above them the last bound of each sixteen, and so on up to sixteen in all.

    Padding is above every key, and so is the last entry of a level's last sixteen above, which needs no look.
    """
    levels = [_padded(bounds)]
    while len(levels[0]) > _FAN_OUT:
        last = levels[0][_FAN_OUT - 1 :: _FAN_OUT].copy()
        last[-1] = _NO_KEY
        levels.insert(0, _padded(last))
    return levels


def _padded(bounds: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.concatenate([bounds, np.full(-len(bounds) % _FAN_OUT, _NO_KEY)]).astype(np.int32)


def _leaves(tables: DeepTables) -> list[str]:
    """Leaf values: by row where nodes name the row, or leaves are vectors; by node where they are single values."""
    ctype = "float" if tables.float_leaves else "double"
    if tables.leaf_rows is None:
        return [array(ctype, "DEEP_VALUES", tables.values)]
    if tables.values.shape[1] == 1:
        return [array(ctype, "DEEP_VALUES", tables.values[tables.leaf_rows])]
    return [array("uint32_t", "DEEP_LEAF_ROWS", tables.leaf_rows), array(ctype, "DEEP_VALUES", tables.values)]


def segments(prefix: str, forest: Forest, order: NDArray[np.int64]) -> list[str]:
    """For several sums of single leaf values: which lanes of a group of trees add to which sum."""
    if forest.outputs == 1 or forest.trees[0].output is None:
        return []
    output = np.array([forest.trees[i].output for i in order])
    starts, lanes, outputs = [0], [], []
    for first in range(0, len(output), LANES):
        group = output[first : first + LANES]
        for one in np.unique(group):
            lanes.append(int(np.sum(1 << np.flatnonzero(group == one))))
            outputs.append(int(one))
        starts.append(len(lanes))
    return [
        array("uint32_t", f"{prefix}_SEGMENT_START", np.array(starts)),
        array("uint16_t", f"{prefix}_SEGMENT_LANES", np.array(lanes)),
        array("uint32_t", f"{prefix}_SEGMENT_OUTPUT", np.array(outputs)),
    ]
