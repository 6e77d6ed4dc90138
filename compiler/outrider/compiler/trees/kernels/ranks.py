"""The tables of ranks.h: bounds to search, and where their ranks go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.emit import array, defines, header, template
from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.quantise import Chunk, Quantised, search_table

LANES = 4  # features that are transposed together
MAX_OUTPUTS = 256  # sums of several rows are finished on the stack (finish_batch.h)


def rank_files() -> dict[str, str]:
    """The templates that kernels on ranks need beside their own."""
    return {name: template(name) for name in ("ranks.h", "columns.h", "finish_batch.h")}


def bounds_file(quantised: Quantised) -> dict[str, str]:
    """`bounds.h`: the tables that ranks.h searches, and which kinds of them there are."""
    tables = [search_table(chunk) for chunk in quantised.chunks]
    kinds = sorted({(table.levels, table.pairs) for table in tables})
    text = header(
        "The bounds of a forest's chunks as quantise.py lays them out, and their kinds: levels, pairs of the last one.",
        "#define BOUNDS_EACH_KIND(ONE) " + " ".join(f"ONE({levels}, {pairs})" for levels, pairs in kinds),
        array("int32_t", "BOUNDS", np.concatenate([np.zeros(0, np.int32), *(table.words for table in tables)])),
    )
    return {"bounds.h": text}


def rank_tables(
    prefix: str,
    forest: Forest,
    quantised: Quantised,
    stride: int,
    search: Callable[[Chunk], NDArray[np.int32]] | None = None,
) -> str:
    """C definitions of `<prefix>_RANK_GROUPS`, `_GROUP_COUNT` and `_CHUNKS`, for `ranks_fill` on `bounds.h`.

    `stride`: bytes of a virtual column. Ranks that no node reads go to column `quantised.columns`. `search` lays bounds
    out otherwise, into `<prefix>_RANK_TABLES`.
    """
    last = max(forest.features, LANES) - LANES  # the last group starts here, so that no row is read past its end

    def first_of(chunk: Chunk) -> int:
        return min(chunk.feature // LANES * LANES, last)

    groups: list[tuple[int, ...]] = []
    chunks: list[tuple[int, ...]] = []
    own = [np.zeros(0, np.int32)]
    words = 0
    for first, members in groupby(quantised.chunks, first_of):
        before = len(chunks)
        for chunk in members:
            columns = (chunk.left, chunk.right, *chunk.inverted)
            offsets = ((quantised.columns if column < 0 else column) * stride for column in columns)
            if search is None:
                found = search_table(chunk)
                table, kind = found.words, found.levels << 4 | found.pairs
            else:
                table, kind = search(chunk), chunk.levels
                own.append(table)
            chunks.append((words, *offsets, chunk.feature - first, kind))
            words += len(table)
        groups.append((first, len(chunks) - before))
    return "\n".join(
        (
            defines({f"{prefix}_RANK_GROUP_COUNT": len(groups)}),
            records("ranks_group_t", f"{prefix}_RANK_GROUPS", groups),
            records("ranks_chunk_t", f"{prefix}_RANK_CHUNKS", chunks),
            *([array("int32_t", f"{prefix}_RANK_TABLES", np.concatenate(own))] if search else []),
        )
    )


def records(ctype: str, name: str, rows: Sequence[tuple[object, ...]]) -> str:
    """C definition of a table of structures."""
    lines = ",\n".join("{" + ",".join(map(str, row)) + "}" for row in rows) or "{0}"
    return f"static const {ctype} {name}[{max(len(rows), 1)}] = {{\n{lines}}};"
