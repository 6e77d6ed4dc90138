"""Row: one row through trees of up to 8 levels, 16 trees a register. Told in `row.h`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.deep_layout import LANES
from outrider.compiler.trees.emit import array, defines, header, template
from outrider.compiler.trees.fixed import fixed_point
from outrider.compiler.trees.forest import LEAF, Forest
from outrider.compiler.trees.kernels import KernelSource, Role
from outrider.compiler.trees.kernels.deep import ISA, search_levels, segments
from outrider.compiler.trees.quantise import NEVER, Chunk, Quantised, ranks_of
from outrider.runtime.target import Target

_IN_FLIGHT = (4, 6, 2)
_DEPTHS = (3, 6, 8)  # that trees are padded to
_GATHERS = {3: 1, 6: 4, 8: 7}  # of a group
_REGISTER_RANKS = 64
_REGISTERS = (1, 2, 4)
_MAX_COLUMNS = 1 << 15


class Row:
    """Options: `groups`, how many registers of 16 trees are in flight."""

    name = "row"
    serves: frozenset[Role] = frozenset(("row",))
    isa = ISA
    block = 1

    def refuses(self, forest: Forest) -> str | None:
        """Deep trees, splits by category, leaf vectors, sums of more than 32 bits."""
        if forest.leaf_vectors:
            return "its leaves are vectors"
        if forest.category_splits.any():
            return "it has splits by category"
        if forest.depths.max() > _DEPTHS[-1]:
            return f"it has {forest.depths.max()} levels, of {_DEPTHS[-1]} at most"
        if fixed_point(forest).wide:
            return "its sums need more than 32 bits"
        columns = ranks_of(forest).columns
        return f"it has {columns} virtual columns, of {_MAX_COLUMNS} at most" if columns > _MAX_COLUMNS else None

    def cost(self, forest: Forest) -> Mapping[Role, float]:
        """Each column; then, for 16 trees at once, a few instructions a level and the gathers of their nodes."""
        levels = _levels(forest)
        group = 10 * levels + 20 * _GATHERS[levels]
        return {"row": 10 * len(ranks_of(forest).chunks) + group * -(-len(forest.trees) // LANES)}

    def variants(self, forest: Forest, target: Target) -> Sequence[dict[str, str]]:
        """One a number of groups."""
        return [{"groups": str(groups)} for groups in _IN_FLIGHT]

    def emit(self, forest: Forest, options: Mapping[str, str]) -> KernelSource:
        """Lay out, and write the tables down."""
        quantised = ranks_of(forest)
        groups = int(options.get("groups", _IN_FLIGHT[0]))
        return KernelSource(
            files={
                "row.h": template("row.h"),
                **{name: template(name) for name in ("gather.h", "fixed.h")},
                "row_tables.h": _tables_header(forest, quantised, groups),
            },
            include="row.h",
            prefix="row",
            scratch=_stride(quantised),
        )


def _levels(forest: Forest) -> int:
    """What trees are padded to."""
    return next(deep for deep in _DEPTHS if forest.depths.max() <= deep)


def _registers(quantised: Quantised) -> int:
    """Registers that hold a row's ranks; 0: they are read from memory."""
    return next((count for count in _REGISTERS if quantised.columns <= _REGISTER_RANKS * count), 0)


def _stride(quantised: Quantised) -> int:
    """Bytes for a row's ranks: whole registers, and behind them a byte that takes what no node reads.

    The rest of its line leaves room for gathers, which read 4 bytes.
    """
    return -(-max(quantised.columns, _REGISTER_RANKS * _registers(quantised)) // 64) * 64 + 64


def _tables_header(forest: Forest, quantised: Quantised, in_flight: int) -> str:
    levels = _levels(forest)
    order = np.argsort([tree.output or 0 for tree in forest.trees], kind="stable")
    nodes, values = _perfect(forest, quantised, order, levels)
    leaves = fixed_point(forest).encode(values)[0]
    counts = [len(search_levels(chunk.bounds)) for chunk in quantised.chunks]
    sizes = {
        "ROW_GROUPS": len(nodes) // LANES,
        "ROW_IN_FLIGHT": in_flight,
        "ROW_DEPTH": levels,
        "ROW_REGISTERS": _registers(quantised),
        "ROW_STRIDE": _stride(quantised),
        **{f"ROW_CHUNKS_{n}": sum(count <= n for count in counts) for n in (1, 2)},
    }
    return header(
        "Row's sizes and tables.",
        defines(sizes),
        *_chunks(quantised),
        *_blocks(nodes, leaves, levels),
        *segments("ROW", forest, order),
    )


def _perfect(
    forest: Forest, quantised: Quantised, order: NDArray[np.intp], levels: int
) -> tuple[NDArray[np.uint32], NDArray[np.float64]]:
    """Trees padded to perfect ones, in whole groups: node words [trees, 2^levels - 1], leaf values [trees, 2^levels].

    A leaf above the last level becomes nodes that nothing passes, over copies of itself.
    """
    words, leaves = [], []
    for i in order.tolist():
        tree = forest.trees[i]
        word = quantised.position[i].astype(np.uint32) << np.uint32(24) | quantised.column[i].astype(np.uint32)
        word[tree.kind == LEAF] = NEVER << 24
        level, parts = np.zeros(1, np.int64), []
        for _ in range(levels):
            parts.append(word[level])
            inner = tree.kind[level] != LEAF
            below = [np.where(inner, side[level], level) for side in (tree.left, tree.right)]
            level = np.stack(below, axis=1).ravel()
        words.append(np.concatenate(parts))
        leaves.append(tree.values[tree.payload[level], 0])
    spare = -len(order) % LANES
    words += [np.full((1 << levels) - 1, NEVER << 24, np.uint32)] * spare
    leaves += [np.zeros(1 << levels)] * spare
    return np.stack(words), np.stack(leaves)


def _blocks(nodes: NDArray[np.uint32], leaves: NDArray[np.int32], levels: int) -> list[str]:
    trees = len(nodes)
    tops = nodes[:, :7].reshape(-1, LANES, 7).transpose(0, 2, 1)
    parts = [array("uint32_t", "ROW_TOPS", tops)]
    if levels > 3:
        middles = np.zeros((trees, 8, 8), np.uint32)
        root = 7 + np.arange(8)
        for place in range(1, 8):
            middles[:, :, place] = nodes[:, _below(root, place)]
        parts.append(array("uint32_t", "ROW_MIDDLES", middles))
    if levels <= 6:
        return [*parts, array("int32_t", "ROW_LEAVES", leaves)]
    bottoms = np.zeros((trees, 64, 8), np.uint32)
    root = 63 + np.arange(64)
    for place in range(1, 4):
        bottoms[:, :, place] = nodes[:, _below(root, place)]
    bottoms[:, :, 4:] = leaves.view(np.uint32).reshape(trees, 64, 4)
    return [*parts, array("uint32_t", "ROW_BOTTOMS", bottoms)]


def _below(root: NDArray[np.int64], place: int) -> NDArray[np.int64]:
    """Breadth-first numbers, from 0, of the nodes at a place (1 the root itself, 2 and 3 its children) below roots."""
    level = place.bit_length() - 1
    numbers: NDArray[np.int64] = ((root + 1) << level) - 1 + place - (1 << level)
    return numbers


def _chunks(quantised: Quantised) -> list[str]:
    """The chunks by number of levels, where their levels begin, and where their ranks go."""
    nowhere = _stride(quantised) - 1
    rows: list[str] = []
    words: list[NDArray[np.int32]] = []
    size = 0
    for chunk in sorted(quantised.chunks, key=lambda chunk: len(search_levels(chunk.bounds))):
        levels = search_levels(chunk.bounds)
        begins = [size, size + (len(levels[0]) if len(levels) > 1 else 0)]
        rows.append(_chunk_row(chunk, begins, nowhere))
        words += levels
        size += sum(map(len, levels))
    return [
        "typedef struct { uint32_t feature, level[2]; uint16_t left, right; } row_chunk_t;",
        f"static const row_chunk_t ROW_CHUNKS[{max(len(rows), 1)}] = {{\n" + ",\n".join(rows or ["{0}"]) + "};",
        array("int32_t", "ROW_BOUNDS", np.concatenate(words) if words else np.zeros(0, np.int32)),
    ]


def _chunk_row(chunk: Chunk, begins: list[int], nowhere: int) -> str:
    left, right = (column if column >= 0 else nowhere for column in (chunk.left, chunk.right))
    return f"{{{chunk.feature}, {{{begins[0]}, {begins[1]}}}, {left}, {right}}}"
