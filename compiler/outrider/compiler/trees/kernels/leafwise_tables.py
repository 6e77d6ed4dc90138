"""The tables of the kernel leafwise: what leafwise.h reads, and with other forms of a few, leafwise_vector.h."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, product
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.categories import PAGE
from outrider.compiler.trees.clusters import Cluster, halves, nodes_of
from outrider.compiler.trees.emit import array, defines, header, template
from outrider.compiler.trees.fixed import FixedPoint
from outrider.compiler.trees.forest import CATEGORY
from outrider.compiler.trees.kernels.ranks import LANES, bounds_file, rank_files, rank_tables, records
from outrider.compiler.trees.leafwise_layout import Layout, Set
from outrider.compiler.trees.quantise import NEVER, Quantised, on_slots

One = TypeVar("One")


@dataclass(frozen=True)
class LeafwiseOptions:
    """Choices that change speed and never results. `registers`: of rows. `group`: trees that go together."""

    registers: int
    group: int


@dataclass
class _Group:
    """Some trees as the kernel reads them; columns and exits are places in its data, in units of a column."""

    sets: list[Set] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    nodes: list[tuple[int, int]] = field(default_factory=list)  # position, column
    first: list[int] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)
    roots: list[int] = field(default_factory=list)


class LeafwiseTables:
    """Lays out data and trees for a choice of options.

    The data are columns, one behind the other: ranks, and one for those that nobody reads; classes of categories;
    shared sets; a group's own sets; constants; a group's slots.
    """

    prefix: ClassVar[str] = "LEAFWISE"
    templates: ClassVar[tuple[str, ...]] = (
        *("leafwise.h", "categories.h", "planes.h", "fixed.h", "fixed_batch.h", "gather.h"),
    )
    lanes: ClassVar[int] = 64  # rows a register

    def __init__(self, layout: Layout, options: LeafwiseOptions) -> None:
        self.layout, self._options = layout, options
        self.stride = self.lanes * options.registers  # bytes of a column
        self.quantised = self.ranked(layout.quantised)
        batches = [layout.order[i : i + options.group] for i in range(0, len(layout.order), options.group)]
        own = [self._own_sets(batch) for batch in batches]
        self.leaves = max(map(len, layout.numbers))
        self._classes = layout.quantised.columns + 1
        self._shared = self._classes + self.class_columns * len(layout.categories.features)
        self._own = self._shared + len(layout.shared)
        self._constants = self._own + max(map(len, own))
        self._slots = self._constants + self.leaves
        slots = max(sum(len(layout.clusters[number]) for number in batch) for batch in batches)
        self._columns = self._slots + slots
        self._groups = [self._group(batch, sets) for batch, sets in zip(batches, own, strict=True)]

    @property
    def scratch(self) -> int:
        """Bytes of scratch."""
        words = 2 if self.layout.fixed.wide else 1
        sums = 4 * self.stride * self.layout.forest.outputs * words
        return self.stride * self._columns + sums + 4 * self.lanes * max(LANES, self.layout.forest.features)

    # ---- what differs from form to form ----

    def files(self) -> dict[str, str]:
        """Templates and tables."""
        return {**self.own_files(), **rank_files(), **bounds_file(self.quantised)}

    def own_files(self) -> dict[str, str]:
        """Those that go by the prefix."""
        named = {name: template(name) for name in self.templates}
        return {**named, f"{self.prefix.lower()}_tables.h": self.text()}

    def ranked(self, quantised: Quantised) -> Quantised:
        """Positions as the search ranks them."""
        return on_slots(quantised)

    def ranks(self) -> str:
        """What fills the columns of ranks."""
        return rank_tables(self.prefix, self.layout.forest, self.quantised, self.stride)

    def positions(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The byte to compare a rank with, for the position that it has to pass to go right."""
        return positions

    def sets(self, name: str, bits: Sequence[int]) -> str:
        """The sets of classes that go right."""
        words = [one >> PAGE * page & (1 << PAGE) - 1 for one in bits for page in range(self.pages)]
        return array("uint64_t", name, np.array(words, np.uint64))

    def values(self) -> list[str]:
        """The trees' values by leaf number, as tables of bytes."""
        plane = next(size for size in (64, 128, 256) if self.leaves <= size)
        values = np.zeros((len(self.layout.order), plane))
        for row, number in enumerate(self.layout.order):
            values[row, : len(self.layout.numbers[number])] = self.values_of(number)
        return [
            defines({f"{self.prefix}_PLANE": plane}),
            array("uint8_t", f"{self.prefix}_LEAVES", planes(values, self.layout.fixed)),
        ]

    # ---- groups of trees ----

    @property
    def class_columns(self) -> int:
        """Columns of a feature with categories: its class, or the byte of a set that the class is in, and its bit."""
        return 1 if self.pages == 1 else 2

    @property
    def pages(self) -> int:
        """Words of 64 classes that a set takes: 1, 2 or 4."""
        most = max((feature.pages for feature in self.layout.categories.features), default=1)
        return 1 << (most - 1).bit_length()

    def values_of(self, number: int) -> NDArray[np.float64]:
        """A tree's values [leaves] in the order of their numbers, which is that of insertion."""
        tree = self.layout.forest.trees[number]
        values: NDArray[np.float64] = tree.values[tree.payload[list(self.layout.numbers[number])], 0]
        return values

    def _own_sets(self, batch: Sequence[int]) -> dict[Set, int]:
        """The sets of a group that are not shared, with their places."""
        found = {one for number in batch for one in self.layout.categories.sets[number].values()}
        return {one: place for place, one in enumerate(sorted(found - self.layout.shared.keys()))}

    def _group(self, batch: Sequence[int], own: dict[Set, int]) -> _Group:
        group = _Group(sets=list(own), counts=[len(own)])
        work = [(number, one) for number in batch for one in self.layout.clusters[number]]
        slots: dict[tuple[int, int], int] = {}

        def write(number: int, cluster: Cluster, shape: int, exits: list[int] | None) -> None:
            slots[number, cluster.root] = self._slots + len(slots)
            group.nodes += self._nodes(number, cluster, shape, own)
            group.exits += _padded(cluster.shape, shape, exits) if exits is not None else []

        for shape in self.layout.low:
            same = [(number, one) for number, one in work if one.rank == 0 and one.shape == shape]
            group.counts.append(len(same))
            for number, one in same:
                group.first.append(self.layout.numbers[number][one.exits[0]])
                write(number, one, shape, None)
        ranks = sorted({one.rank for _, one in work} - {0})
        group.counts.append(len(ranks))
        for rank, shape in product(ranks, self._high):
            same = [(n, one) for n, one in work if one.rank == rank and self.layout.high[one.shape] == shape]
            group.counts.append(len(same))
            for number, one in same:
                write(number, one, shape, [self._exit(number, node, slots) for node in one.exits])
        group.roots = [slots.get((number, 0), self._constants) for number in batch]
        return group

    @property
    def _high(self) -> list[int]:
        return sorted(set(self.layout.high.values()))

    def _exit(self, number: int, node: int, slots: Mapping[tuple[int, int], int]) -> int:
        """Where the leaf number is that an exit leads to."""
        found = slots.get((number, node))
        return self._constants + self.layout.numbers[number][node] if found is None else found

    def _nodes(self, number: int, cluster: Cluster, shape: int, own: Mapping[Set, int]) -> list[tuple[int, int]]:
        """Position and column of a cluster's nodes in preorder, where evaluated as a larger shape.

        Nodes that are not there read the constant 0, which goes left in every form of ranks.
        """
        decisions = iter([self._decision(number, node, own) for node in cluster.nodes])
        return [next(decisions) if real else (NEVER, self._constants) for real in _preorder(cluster.shape, shape)]

    def _decision(self, number: int, node: int, own: Mapping[Set, int]) -> tuple[int, int]:
        layout = self.layout
        if layout.forest.trees[number].kind[node] != CATEGORY:
            return int(self.quantised.position[number][node]), int(self.quantised.column[number][node])
        found = layout.categories.sets[number][node]
        shared = layout.shared.get(found)
        return 0, self._own + own[found] if shared is None else self._shared + shared

    # ---- text ----

    def text(self) -> str:
        """The header of tables."""
        layout, groups, prefix = self.layout, self._groups, self.prefix
        at = "uint16_t" if self._columns * self.stride <= 0xFFFF else "uint32_t"
        sizes = {
            "TREES": len(layout.order),
            "REGISTERS": self._options.registers,
            "GROUP": self._options.group,
            "PAGES": self.pages,
            "SHARED_COUNT": len(layout.shared),
            "CONSTANT_COUNT": self.leaves,
            "SHARED_SETS": self._shared * self.stride,
            "OWN_SETS": self._own * self.stride,
            "CONSTANTS": self._constants * self.stride,
            "SLOTS": self._slots * self.stride,
            "DATA": self._columns * self.stride,
        }
        nodes = np.array([node for group in groups for node in group.nodes], np.int64).reshape(-1, 2)

        def places(name: str, of: Sequence[int]) -> str:
            return array(at, f"{prefix}_{name}", np.array(of, np.int64) * self.stride)

        def sets(name: str, of: Sequence[Set]) -> list[str]:
            columns = [self._classes + self.class_columns * place for place, _ in of]
            return [self.sets(f"{prefix}_{name}", [bits for _, bits in of]), places(f"{name}_CLASSES", columns)]

        return header(
            "The tables of a form of the kernel leafwise, for one forest.",
            defines({f"{prefix}_{name}": value for name, value in sizes.items()}),
            f"typedef {at} {prefix.lower()}_at_t;",
            _each(f"{prefix}_EACH_LOW", layout.low, lambda shape: _counting(prefix, shape)),
            _each(f"{prefix}_EACH_HIGH", self._high, lambda shape: _selecting(prefix, shape)),
            self.ranks(),
            *self._category_tables(),
            *sets("SHARED_SET", list(layout.shared)),
            *sets("SET", _all(group.sets for group in groups)),
            array("uint32_t", f"{prefix}_POSITION", self.positions(nodes[:, 0]) * 0x01010101),
            places("COLUMN", nodes[:, 1].tolist()),
            array("uint32_t", f"{prefix}_FIRSTS", np.array(_all(g.first for g in groups), np.int64) * 0x01010101),
            places("EXITS", _all(group.exits for group in groups)),
            places("ROOT", _all(group.roots for group in groups)),
            array("uint16_t", f"{prefix}_COUNTS", np.array(_all(group.counts for group in groups))),
            *self._outputs(),
            *self.values(),
        )

    def _category_tables(self) -> list[str]:
        """The features with categories, by groups of four neighbours, and their classes."""
        forest, found, prefix = self.layout.forest, self.layout.categories.features, self.prefix
        last = max(forest.features, LANES) - LANES
        rows: list[tuple[int, ...]] = []
        groups: list[tuple[int, ...]] = []
        begin = 0
        for first, members in groupby(enumerate(found), lambda item: min(item[1].feature // LANES * LANES, last)):
            before = len(rows)
            for place, one in members:
                column = self._classes + self.class_columns * place
                rows.append((begin, len(one.classes), column * self.stride, one.feature - first))
                begin += len(one.classes)
            groups.append((first, len(rows) - before))
        classes = np.concatenate([one.classes for one in found] + [np.zeros(3, np.uint8)])  # gathers read 4 bytes
        return [
            defines({f"{prefix}_CATEGORY_GROUP_COUNT": len(groups)}),
            f"#if {prefix}_CATEGORY_GROUP_COUNT",
            records("ranks_group_t", f"{prefix}_CATEGORY_GROUPS", groups),
            records("categories_feature_t", f"{prefix}_CATEGORY_FEATURES", rows),
            array("uint8_t", f"{prefix}_CLASSES", classes),
            "#endif",
        ]

    def _outputs(self) -> list[str]:
        forest, prefix = self.layout.forest, self.prefix
        if forest.outputs == 1:
            return [f"#define {prefix}_TREE_OUTPUT(number) 0"]
        outputs = np.array([forest.trees[number].output or 0 for number in self.layout.order])
        return [
            array("uint32_t", f"{prefix}_OUTPUT", outputs),
            f"#define {prefix}_TREE_OUTPUT(number) {prefix}_OUTPUT[number]",
        ]


def _each(name: str, shapes: Sequence[int], expression: Callable[[int], str]) -> str:
    """A macro that applies another one to each shape: its number of nodes, and its expression in C (leafwise.h)."""
    return " \\\n".join((f"#define {name}(ONE)", *(f"ONE({nodes_of(shape)}, {expression(shape)})" for shape in shapes)))


def _counting(prefix: str, shape: int, node: int = 0, leaf: int = 0) -> str:
    """The numbers below a lowest cluster's shape; `node` is its root's preorder number, `leaf` its first leaf's."""
    if not shape:
        return f"{prefix}_LEAF({leaf})"
    left, right = halves(shape)
    if not left:
        return f"{prefix}_PAIR({node}, {leaf})"
    leaves = nodes_of(left) + 1
    numbers = _counting(prefix, left, node + 1, leaf), _counting(prefix, right, node + leaves, leaf + leaves)
    return f"{prefix}_COUNT({numbers[0]}, {node}, {numbers[1]}, {leaves})"


def _selecting(prefix: str, shape: int, node: int = 0, exit_: int = 0) -> str:
    """The numbers below any other cluster's shape; `exit_` is its first exit."""
    if not shape:
        return f"{prefix}_EXIT({exit_})"
    left, right = halves(shape)
    later = nodes_of(left) + 1
    numbers = _selecting(prefix, left, node + 1, exit_), _selecting(prefix, right, node + later, exit_ + later)
    return f"{prefix}_SELECT({numbers[0]}, {node}, {numbers[1]})"


def _preorder(shape: int, larger: int) -> list[bool]:
    """For the nodes of a larger shape in preorder, whether they are of the shape."""
    if not larger:
        return []
    parts = zip(halves(shape), halves(larger), strict=True)
    return [shape > 0, *(real for half, larger_half in parts for real in _preorder(half, larger_half))]


def _padded(shape: int, larger: int, exits: list[int]) -> list[int]:
    """The exits of a shape where evaluated as a larger one: nothing goes right at a node that is not there."""
    if not larger:
        return exits[:1]
    if not shape:
        return _padded(0, halves(larger)[0], exits) + [exits[0]] * (nodes_of(halves(larger)[1]) + 1)
    (left, right), (larger_left, larger_right) = halves(shape), halves(larger)
    cut = nodes_of(left) + 1
    return _padded(left, larger_left, exits[:cut]) + _padded(right, larger_right, exits[cut:])


def planes(values: NDArray[np.float64], fixed: FixedPoint) -> NDArray[np.uint8]:
    """Values [trees, leaves] as planes.h reads them, uint8 [trees, 4 or 7, leaves]."""
    first, second = fixed.encode(values)
    words = first.astype("<i4").view(np.uint8).reshape(*values.shape, 4)
    if fixed.wide:
        words = np.concatenate([words, second.astype("<i4").view(np.uint8).reshape(*values.shape, 4)[..., :3]], axis=2)
    return np.ascontiguousarray(words.transpose(0, 2, 1))


def _all(lists: Iterator[list[One]]) -> list[One]:
    return [one for part in lists for one in part]
