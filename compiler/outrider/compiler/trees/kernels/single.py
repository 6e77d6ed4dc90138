"""The tables of single.h: one row's ranks, in registers."""

from __future__ import annotations

import numpy as np

from outrider.compiler.trees.emit import array, defines, header, template
from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.kernels.deep import search_levels
from outrider.compiler.trees.kernels.ranks import records
from outrider.compiler.trees.quantise import Quantised

MAX_COLUMNS = 256  # in registers
_REGISTERS = (1, 2, 4)


def single_files(quantised: Quantised) -> dict[str, str]:
    """`single.h` and its tables."""
    return {"single.h": template("single.h"), "single_tables.h": _tables(quantised)}


def scratch(forest: Forest, quantised: Quantised) -> int:
    """Bytes that a row's keys and ranks take."""
    return 64 * (-(-forest.features // 16) + -(-forest.features // 64) + 1) + _rank_bytes(quantised)


def registers(quantised: Quantised) -> int:
    """Registers that hold a row's ranks; 0: they are read from memory."""
    return next((count for count in _REGISTERS if quantised.columns <= 64 * count), 0)


def _rank_bytes(quantised: Quantised) -> int:
    return 64 * (registers(quantised) or -(-quantised.columns // 64))


def _tables(quantised: Quantised) -> str:
    """The chunks by number of levels, where their levels begin, and where their ranks go."""
    nowhere = _rank_bytes(quantised) + 63  # gathers, which read 4 bytes at the last column, are behind it
    searches = sorted(((chunk, search_levels(chunk.bounds)) for chunk in quantised.chunks), key=lambda one: len(one[1]))
    rows: list[tuple[object, ...]] = []
    size = 0
    for chunk, levels in searches:
        left, right = (nowhere if column < 0 else column for column in (chunk.left, chunk.right))
        rows.append((chunk.feature, f"{{{size}, {size + (len(levels[0]) if len(levels) > 1 else 0)}}}", left, right))
        size += sum(map(len, levels))
    words = [level for _, levels in searches for level in levels]
    counts = {f"SINGLE_CHUNKS_{n}": sum(len(levels) <= n for _, levels in searches) for n in (1, 2)}
    return header(
        "One row's chunks, by number of levels.",
        defines({"SINGLE_REGISTERS": registers(quantised), "SINGLE_RANK_BYTES": _rank_bytes(quantised), **counts}),
        "typedef struct { uint32_t feature, level[2]; uint16_t left, right; } single_chunk_t;",
        records("single_chunk_t", "SINGLE_CHUNKS", rows),
        array("int32_t", "SINGLE_BOUNDS", np.concatenate([np.zeros(0, np.int32), *words])),
    )
