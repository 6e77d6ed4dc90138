"""Perfect: shallow trees padded to perfect ones, rows and batches on the same tables. Told in `perfect.h`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.emit import array, defines, header, template
from outrider.compiler.trees.fixed import fixed_point, why_not
from outrider.compiler.trees.forest import LEAF, Forest, Tree
from outrider.compiler.trees.kernels import KernelSource, Role
from outrider.compiler.trees.kernels.ranks import LANES, MAX_OUTPUTS, bounds_file, rank_files, rank_tables
from outrider.compiler.trees.kernels.single import MAX_COLUMNS, scratch, single_files
from outrider.compiler.trees.quantise import NEVER, Quantised, on_slots, ranks_of
from outrider.runtime.target import Target

_MAX_LEVELS = 6
_NODES = 64  # of a tree in the tables, the first of which is none
_REGISTER = 64  # rows
_REGISTERS = (2, 1)
_FEWEST_LEAVES = 32  # that two registers hold
_CROSSOVER = 20  # rows: a block takes as long as some 20 single ones


class Perfect:
    """Options: `registers` of 64 rows in a block."""

    name = "perfect"
    serves: frozenset[Role] = frozenset(("row", "batch"))
    isa = "x86-64-v4-vbmi"
    block = _REGISTER

    def refuses(self, forest: Forest) -> str | None:
        """Deep trees, categories, leaf vectors, many virtual columns, sums of more than 32 bits."""
        if forest.leaf_vectors:
            return "leaves are vectors"
        if forest.category_splits.any():
            return "there are splits on categories"
        if forest.outputs > MAX_OUTPUTS:
            return f"there are {forest.outputs} outputs, of {MAX_OUTPUTS} at most"
        levels = _levels(forest)
        if levels > _MAX_LEVELS:
            return f"a tree has {levels} levels, and this kernel takes up to {_MAX_LEVELS}"
        if reason := why_not(forest, wide=False):
            return reason
        columns = ranks_of(forest).columns
        return f"there are {columns} virtual columns, of {MAX_COLUMNS} at most" if columns > MAX_COLUMNS else None

    def cost(self, forest: Forest) -> Mapping[Role, float]:
        """A row alone: each column, then a few instructions a tree. In batches: each node for 64 rows."""
        columns, trees = len(ranks_of(forest).chunks), len(forest.trees)
        nodes = (1 << _levels(forest)) - 1
        return {"row": 4 * columns + 7 * trees, "batch": 3 * columns + trees * (1.8 * nodes + 25) / _REGISTER}

    def variants(self, forest: Forest, target: Target) -> Sequence[dict[str, str]]:
        """Two registers share loads."""
        return [{"registers": str(count)} for count in _REGISTERS]

    def emit(self, forest: Forest, options: Mapping[str, str]) -> KernelSource:
        """Pad, and write the tables down."""
        quantised, registers = ranks_of(forest), int(options.get("registers", _REGISTERS[0]))
        names = ("perfect.h", "fixed.h", "fixed_batch.h")
        return KernelSource(
            files={
                **{name: template(name) for name in names},
                "perfect_tables.h": _tables(forest, quantised, registers),
                **rank_files(),
                **bounds_file(quantised),
                **single_files(quantised),
            },
            include="perfect.h",
            prefix="perfect",
            scratch=max(scratch(forest, quantised), _batch_scratch(forest, quantised, registers)),
        )


def _levels(forest: Forest) -> int:
    return max(1, int(forest.depths.max()))


def _batch_scratch(forest: Forest, quantised: Quantised, registers: int) -> int:
    rows = _REGISTER * registers
    return rows * (quantised.columns + 1 + 4 * forest.outputs) + 4 * _REGISTER * max(LANES, forest.features)


def _tables(forest: Forest, quantised: Quantised, registers: int) -> str:
    """The tables' header. Single rows rank by position, batches by slot."""
    levels = _levels(forest)
    order = sorted(range(len(forest.trees)), key=lambda number: forest.trees[number].output or 0)
    outputs = [forest.trees[number].output or 0 for number in order]
    slots = on_slots(quantised)
    sizes = {
        "LEVELS": levels,
        "REGISTERS": registers,
        "COLUMN_COUNT": quantised.columns,
        "CROSSOVER": _CROSSOVER,
    }
    trees = [_pad(forest.trees[number], levels) for number in order]
    columns = [_by_number(pad, quantised.column[number], 0) for pad, number in zip(trees, order, strict=True)]
    positions, splats = (
        [_by_number(pad, ranked.position[number], NEVER) for pad, number in zip(trees, order, strict=True)]
        for ranked in (quantised, slots)
    )
    values = np.zeros((len(trees), max(1 << levels, _FEWEST_LEAVES)))
    values[:, : 1 << levels] = [pad.values for pad in trees]
    return header(
        "The tables of the kernel perfect, for one forest.",
        defines({f"PERFECT_{name}": value for name, value in sizes.items()}),
        rank_tables("PERFECT", forest, quantised, _REGISTER * registers),
        array("uint32_t", "PERFECT_BEGIN", np.searchsorted(outputs, np.arange(forest.outputs + 1))),
        array("uint8_t", "PERFECT_COLUMNS", np.stack(columns)),
        array("uint8_t", "PERFECT_POSITIONS", np.stack(positions)),
        array("uint32_t", "PERFECT_SPLATS", np.stack(splats) * 0x01010101),
        array("int32_t", "PERFECT_VALUES", fixed_point(forest).encode(values)[0]),
    )


@dataclass(frozen=True)
class _Padded:
    """A perfect tree: the node at each place of the heap from 1 on, -1 for none; and the values of its leaves."""

    nodes: NDArray[np.int64]
    values: NDArray[np.float64]


def _pad(tree: Tree, levels: int) -> _Padded:
    """A leaf above the last level becomes nodes that nothing passes, over copies of itself."""
    leaf = tree.kind == LEAF
    nodes = np.full(_NODES, -1)
    level = np.zeros(1, np.int64)
    for height in range(levels):
        first = 1 << height
        nodes[first : 2 * first] = np.where(leaf[level], -1, level)
        below = [np.where(leaf[level], level, side[level]) for side in (tree.left, tree.right)]
        level = np.stack(below, axis=1).ravel()
    return _Padded(nodes, tree.values[tree.payload[level], 0])


def _by_number(padded: _Padded, of_node: NDArray[Any], none: int) -> NDArray[np.int64]:
    """What a tree's nodes have, int64 [64], as the kernel numbers them: from the last place of the heap on."""
    return np.where(padded.nodes < 0, none, of_node[padded.nodes])[::-1].astype(np.int64)
