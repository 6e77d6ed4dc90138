"""The tables of ranks.h: bounds to search, and where their ranks go."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.emit import array, defines, template
from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.quantise import Chunk, Quantised, search_table

LANES = 4  # features that are transposed together


def rank_files() -> dict[str, str]:
    """The templates that kernels on ranks need beside their own."""
    return {name: template(name) for name in ("ranks.h", "finish_batch.h")}


def rank_tables(
    prefix: str,
    forest: Forest,
    quantised: Quantised,
    stride: int,
    search: Callable[[Chunk], NDArray[np.int32]] = search_table,
    *,
    inverted: bool = True,
) -> str:
    """C definitions of `<prefix>_RANK_GROUPS`, `_GROUP_COUNT`, `_CHUNKS` and `_TABLES`, for `ranks_fill`.

    `stride`: bytes of a virtual column. `search` lays a chunk's bounds out for the search. `inverted`: whether chunks
    name inverted columns. Ranks that no node reads go to column `quantised.columns`.
    """
    last = max(forest.features, LANES) - LANES  # the last group starts here, so that no row is read past its end

    def first_of(chunk: Chunk) -> int:
        return min(chunk.feature // LANES * LANES, last)

    groups: list[tuple[int, ...]] = []
    chunks: list[tuple[int, ...]] = []
    words = 0
    tables = [np.zeros(0, np.int32)]
    for first, members in groupby(quantised.chunks, first_of):
        before = len(chunks)
        for chunk in members:
            columns = (chunk.left, chunk.right, *(chunk.inverted if inverted else ()))
            offsets = ((quantised.columns if column < 0 else column) * stride for column in columns)
            tables.append(search(chunk))
            chunks.append((words, *offsets, chunk.feature - first, chunk.levels))
            words += len(tables[-1])
        groups.append((first, len(chunks) - before))
    return "\n".join(
        (
            defines({f"{prefix}_RANK_GROUP_COUNT": len(groups)}),
            records("ranks_group_t", f"{prefix}_RANK_GROUPS", groups),
            records("ranks_chunk_t", f"{prefix}_RANK_CHUNKS", chunks),
            array("int32_t", f"{prefix}_RANK_TABLES", np.concatenate(tables)),
        )
    )


def records(ctype: str, name: str, rows: list[tuple[int, ...]]) -> str:
    """C definition of a table of structures."""
    lines = ",\n".join("{" + ",".join(map(str, row)) + "}" for row in rows) or "{0}"
    return f"static const {ctype} {name}[{max(len(rows), 1)}] = {{\n{lines}}};"
