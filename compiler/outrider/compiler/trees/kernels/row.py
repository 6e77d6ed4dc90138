"""Row: one row through trees of up to 9 levels, 16 trees a register. Told in `row.h`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.deep_layout import LANES
from outrider.compiler.trees.emit import array, defines, header, template
from outrider.compiler.trees.fixed import fixed_point, why_not
from outrider.compiler.trees.forest import LEAF, Forest
from outrider.compiler.trees.kernels import KernelSource, Role
from outrider.compiler.trees.kernels.deep import ISA, in_flight, segments
from outrider.compiler.trees.kernels.single import registers, scratch, single_files
from outrider.compiler.trees.quantise import NEVER, Quantised, ranks_of
from outrider.runtime.target import Target

_IN_FLIGHT = (4, 6, 2)
_MANY = 500  # trees
_DEPTHS = (3, 6, 8, 9)  # that trees are padded to
_GATHERS = {3: 1, 6: 4, 8: 6, 9: 7}  # of a group
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
        if reason := why_not(forest, wide=False):
            return reason
        columns = ranks_of(forest).columns
        return f"it has {columns} virtual columns, of {_MAX_COLUMNS} at most" if columns > _MAX_COLUMNS else None

    def cost(self, forest: Forest) -> Mapping[Role, float]:
        """Each column; then, for 16 trees at once, a few instructions a level and the gathers of their nodes."""
        quantised, levels = ranks_of(forest), _levels(forest)
        gathers = _GATHERS[levels] + (0 if registers(quantised) else levels)
        return {"row": 4 * len(quantised.chunks) + (10 * levels + 20 * gathers) * -(-len(forest.trees) // LANES)}

    def variants(self, forest: Forest, target: Target) -> Sequence[dict[str, str]]:
        """One a number of groups; many where all of them can be kept busy for long."""
        favourite, *others = _IN_FLIGHT
        most = [others[0], favourite] if len(forest.trees) > _MANY else [favourite, others[0]]
        return in_flight((*most, *others[1:]), forest)

    def emit(self, forest: Forest, options: Mapping[str, str]) -> KernelSource:
        """Lay out, and write the tables down."""
        quantised = ranks_of(forest)
        groups = int(options.get("groups", _IN_FLIGHT[0]))
        return KernelSource(
            files={
                **{name: template(name) for name in ("row.h", "gather.h", "fixed.h")},
                "row_tables.h": _tables_header(forest, quantised, groups),
                **single_files(quantised),
            },
            include="row.h",
            prefix="row",
            scratch=scratch(forest, quantised),
        )


def _levels(forest: Forest) -> int:
    """What trees are padded to."""
    return next(deep for deep in _DEPTHS if forest.depths.max() <= deep)


def _tables_header(forest: Forest, quantised: Quantised, in_flight: int) -> str:
    levels = _levels(forest)
    order = np.argsort([tree.output or 0 for tree in forest.trees], kind="stable")
    nodes, values = _perfect(forest, quantised, order, levels)
    leaves = fixed_point(forest).encode(values)[0]
    sizes = {
        "ROW_GROUPS": len(nodes) // LANES,
        "ROW_IN_FLIGHT": in_flight,
        "ROW_DEPTH": levels,
    }
    return header(
        "Row's sizes and tables.",
        defines(sizes),
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
        parts.append(array("uint32_t", "ROW_MIDDLES", _block(nodes, 3, 7)))
    if levels == 8:
        bottoms = _block(nodes, 6, 3)
        bottoms[:, :, 4:] = leaves.view(np.uint32).reshape(trees, 64, 4)
        return [*parts, array("uint32_t", "ROW_BOTTOMS", bottoms)]
    if levels == 9:
        parts.append(array("uint32_t", "ROW_BOTTOMS", _block(nodes, 6, 7)))
    return [*parts, array("int32_t", "ROW_LEAVES", leaves)]


def _block(nodes: NDArray[np.uint32], level: int, count: int) -> NDArray[np.uint32]:
    """The blocks [trees, 2^level, 8] whose roots are at a level: the first `count` nodes of each, at places 1 to 7."""
    roots = (1 << level) - 1 + np.arange(1 << level)
    found = np.zeros((len(nodes), len(roots), 8), np.uint32)
    for place in range(1, count + 1):
        found[:, :, place] = nodes[:, _below(roots, place)]
    return found


def _below(root: NDArray[np.int64], place: int) -> NDArray[np.int64]:
    """Breadth-first numbers, from 0, of the nodes at a place (1 the root itself, 2 and 3 its children) below roots."""
    level = place.bit_length() - 1
    numbers: NDArray[np.int64] = ((root + 1) << level) - 1 + place - (1 << level)
    return numbers
