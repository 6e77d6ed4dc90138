"""Kernel `leafwise`: all nodes of trees of any shape, with categories. The idea: leafwise.h; here are its tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, product

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.categories import PAGE, CategoryBits, category_bits, why_not
from outrider.compiler.trees.clusters import Cluster, Cutter, choose_shapes, halves, nodes_of
from outrider.compiler.trees.emit import array, defines, header, template
from outrider.compiler.trees.fixed import FixedPoint, fixed_point
from outrider.compiler.trees.forest import CATEGORY, LEAF, Forest
from outrider.compiler.trees.kernels import KernelSource, Role
from outrider.compiler.trees.kernels.ranks import LANES, bounds_file, rank_files, rank_tables, records
from outrider.compiler.trees.quantise import NEVER, Quantised, on_slots, quantise
from outrider.runtime.target import Target

MAX_LEAVES = 256  # leaf numbers are bytes
_REGISTER = 64  # rows
_SHARED_COLUMNS, _SHARED_USES = 64, 4  # sets that are made into columns once for all trees: how many, from what use

# Cost in cycles a register, for the choice of shapes.
_LOW_COST, _HIGH_COST, _CLUSTER_COST, _LOOP_COST = 1.4, 2.4, 2.5, 3.0

Set = tuple[int, int]  # place of the feature, bits


@dataclass(frozen=True)
class LeafwiseOptions:
    """Choices that change speed and never results. `registers`: 64 rows each. `group`: trees that go together."""

    registers: int
    group: int


_USUAL_GROUP = 8
_VARIANTS = (LeafwiseOptions(1, 8), LeafwiseOptions(2, 4))


class Leafwise:
    """Options: `registers`, `group`, as in LeafwiseOptions."""

    name = "leafwise"
    serves: frozenset[Role] = frozenset(("batch",))
    isa = "x86-64-v4-vbmi"
    block = _REGISTER

    def __init__(self) -> None:
        self._laid_out: tuple[Forest, _Layout] | None = None

    def refuses(self, forest: Forest) -> str | None:
        """Large trees, leaf vectors, too many classes of categories."""
        if forest.leaf_vectors:
            return "leaves are vectors"
        leaves = max(int((tree.kind == LEAF).sum()) for tree in forest.trees)
        if leaves > MAX_LEAVES:
            return f"a tree has {leaves} leaves, and this kernel takes up to {MAX_LEAVES}"
        return why_not(forest)

    def cost(self, forest: Forest) -> Mapping[Role, float]:
        """Each node and some more a tree, for 64 rows."""
        nodes = 2.6 * forest.splits.sum() + 1.0 * forest.category_splits.sum() + 25 * len(forest.trees)
        return {"batch": 3 * forest.features + nodes / _REGISTER}

    def variants(self, forest: Forest, target: Target) -> Sequence[dict[str, str]]:
        """Two registers share loads, one leaves more of L1 to a group's slots."""
        return [{key: str(value) for key, value in vars(options).items()} for options in _VARIANTS]

    def emit(self, forest: Forest, options: Mapping[str, str]) -> KernelSource:
        """Cut, sort, and write the tables down."""
        chosen = LeafwiseOptions(**{key: int(options.get(key, value)) for key, value in vars(_VARIANTS[0]).items()})
        if self._laid_out is None or self._laid_out[0] is not forest:
            self._laid_out = (forest, _Layout.of(forest))
        tables = _Tables(self._laid_out[1], chosen)
        names = ("leafwise.h", "categories.h", "planes.h", "fixed.h", "fixed_batch.h", "gather.h")
        return KernelSource(
            files={
                **{name: template(name) for name in names},
                "leafwise_tables.h": tables.text(),
                **rank_files(),
                **bounds_file(self._laid_out[1].quantised),
            },
            include="leafwise.h",
            prefix="leafwise",
            scratch=tables.scratch,
        )


@dataclass(frozen=True)
class _Layout:
    """What all options share. `low` are the shapes of lowest clusters, `high`: what others are evaluated as."""

    forest: Forest
    order: tuple[int, ...]  # trees, by output
    low: tuple[int, ...]
    high: dict[int, int]
    clusters: tuple[tuple[Cluster, ...], ...]
    quantised: Quantised
    categories: CategoryBits
    fixed: FixedPoint
    numbers: tuple[dict[int, int], ...]  # of leaves, by node

    @classmethod
    def of(cls, forest: Forest) -> _Layout:
        cutters = [Cutter(tree) for tree in forest.trees]
        loop = _LOOP_COST * len(forest.trees) / _USUAL_GROUP
        small = Counter(shape for cutter in cutters for shape in cutter.small())
        low = {shape for shape, count in small.items() if count * nodes_of(shape) * (_HIGH_COST - _LOW_COST) > loop}
        clusters = tuple(tuple(cutter.cut(low)) for cutter in cutters)
        others = Counter(one.shape for each in clusters for one in each if one.rank)
        swapped = [frozenset().union(*(one.swapped for one in each)) for each in clusters]
        return cls(
            forest,
            tuple(sorted(range(len(forest.trees)), key=lambda number: forest.trees[number].output or 0)),
            tuple(sorted(low)),
            choose_shapes(others, lambda shape: nodes_of(shape) * _HIGH_COST + _CLUSTER_COST, 2 * loop),
            clusters,
            on_slots(quantise(forest, swapped)),
            category_bits(forest, swapped),
            fixed_point(forest),
            tuple(_number_leaves(cutter, each) for cutter, each in zip(cutters, clusters, strict=True)),
        )


def _number_leaves(cutter: Cutter, clusters: Sequence[Cluster]) -> dict[int, int]:
    """A number for each leaf: in a row for those of a lowest cluster."""
    numbers: dict[int, int] = {}
    for cluster in clusters:
        if cluster.rank == 0:
            for leaf in cluster.exits:
                numbers[leaf] = len(numbers)
    for leaf in cutter.leaves:
        numbers.setdefault(leaf, len(numbers))
    return numbers


@dataclass
class _Group:
    """Some trees as the kernel reads them; columns and exits are places in its data, in units of a column."""

    sets: list[Set] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    nodes: list[tuple[int, int]] = field(default_factory=list)  # position, column
    first: list[int] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)
    roots: list[int] = field(default_factory=list)


class _Tables:
    """Lays out data and trees for a choice of options.

    The data are columns, one behind the other: ranks, and one for those that nobody reads; classes of categories;
    shared sets; a group's own sets; constants; a group's slots.
    """

    def __init__(self, layout: _Layout, options: LeafwiseOptions) -> None:
        self._layout, self._options = layout, options
        self._stride = _REGISTER * options.registers
        self._shared = _shared_sets(layout)
        batches = [layout.order[i : i + options.group] for i in range(0, len(layout.order), options.group)]
        own = [self._own_sets(batch) for batch in batches]
        leaves = max(map(len, layout.numbers))
        self._plane = next(size for size in (64, 128, 256) if leaves <= size)
        self._classes = layout.quantised.columns + 1
        self._shared_sets = self._classes + len(layout.categories.features)
        self._own = self._shared_sets + len(self._shared)
        self._constants = self._own + max(map(len, own))
        self._constant_count = leaves
        self._slots = self._constants + leaves
        slots = max(sum(len(layout.clusters[number]) for number in batch) for batch in batches)
        self._columns = self._slots + slots
        self._groups = [self._group(batch, sets) for batch, sets in zip(batches, own, strict=True)]

    @property
    def scratch(self) -> int:
        """Bytes of scratch."""
        words = 2 if self._layout.fixed.wide else 1
        sums = 4 * self._stride * self._layout.forest.outputs * words
        return self._stride * self._columns + sums + 4 * _REGISTER * max(LANES, self._layout.forest.features)

    def _own_sets(self, batch: Sequence[int]) -> dict[Set, int]:
        """The sets of a group that are not shared, with their places."""
        found = {one for number in batch for one in self._layout.categories.sets[number].values()}
        return {one: place for place, one in enumerate(sorted(found - self._shared.keys()))}

    def _group(self, batch: Sequence[int], own: dict[Set, int]) -> _Group:
        group = _Group(sets=list(own), counts=[len(own)])
        work = [(number, one) for number in batch for one in self._layout.clusters[number]]
        slots: dict[tuple[int, int], int] = {}

        def write(number: int, cluster: Cluster, shape: int, exits: list[int] | None) -> None:
            slots[number, cluster.root] = self._slots + len(slots)
            group.nodes += self._nodes(number, cluster, shape, own)
            group.exits += _padded(cluster.shape, shape, exits) if exits is not None else []

        for shape in self._layout.low:
            same = [(number, one) for number, one in work if one.rank == 0 and one.shape == shape]
            group.counts.append(len(same))
            for number, one in same:
                group.first.append(self._layout.numbers[number][one.exits[0]])
                write(number, one, shape, None)
        ranks = sorted({one.rank for _, one in work} - {0})
        group.counts.append(len(ranks))
        for rank, shape in product(ranks, self._high):
            same = [(n, one) for n, one in work if one.rank == rank and self._layout.high[one.shape] == shape]
            group.counts.append(len(same))
            for number, one in same:
                write(number, one, shape, [self._exit(number, node, slots) for node in one.exits])
        group.roots = [slots.get((number, 0), self._constants) for number in batch]
        return group

    @property
    def _high(self) -> list[int]:
        return sorted(set(self._layout.high.values()))

    def _exit(self, number: int, node: int, slots: Mapping[tuple[int, int], int]) -> int:
        """Where the leaf number is that an exit leads to."""
        found = slots.get((number, node))
        return self._constants + self._layout.numbers[number][node] if found is None else found

    def _nodes(self, number: int, cluster: Cluster, shape: int, own: Mapping[Set, int]) -> list[tuple[int, int]]:
        """Position and column of a cluster's nodes in preorder, where evaluated as a larger shape."""
        decisions = iter([self._decision(number, node, own) for node in cluster.nodes])
        return [next(decisions) if real else (NEVER, 0) for real in _preorder(cluster.shape, shape)]

    def _decision(self, number: int, node: int, own: Mapping[Set, int]) -> tuple[int, int]:
        layout = self._layout
        if layout.forest.trees[number].kind[node] != CATEGORY:
            return int(layout.quantised.position[number][node]), int(layout.quantised.column[number][node])
        found = layout.categories.sets[number][node]
        shared = self._shared.get(found)
        return 0, self._own + own[found] if shared is None else self._shared_sets + shared

    # ---- text ----

    def text(self) -> str:
        """The header of tables."""
        layout, groups = self._layout, self._groups
        forest = layout.forest
        at = "uint16_t" if self._columns * self._stride <= 0xFFFF else "uint32_t"
        pages = max((feature.pages for feature in layout.categories.features), default=1)
        sizes = {
            "REGISTERS": self._options.registers,
            "GROUP": self._options.group,
            "PAGES": pages,
            "PLANE": self._plane,
            "SHARED_COUNT": len(self._shared),
            "CONSTANT_COUNT": self._constant_count,
            "SHARED_SETS": self._shared_sets * self._stride,
            "OWN_SETS": self._own * self._stride,
            "CONSTANTS": self._constants * self._stride,
            "SLOTS": self._slots * self._stride,
            "DATA": self._columns * self._stride,
        }
        nodes = np.array([node for group in groups for node in group.nodes], np.int64).reshape(-1, 2)
        return header(
            "The tables of the kernel leafwise, for one forest.",
            defines({f"LEAFWISE_{name}": value for name, value in sizes.items()}),
            f"typedef {at} leafwise_at_t;",
            _each("LEAFWISE_EACH_LOW", layout.low, _counting),
            _each("LEAFWISE_EACH_HIGH", self._high, _selecting),
            rank_tables("LEAFWISE", forest, layout.quantised, self._stride),
            *self._category_tables(),
            *self._sets("SHARED_SET", "SHARED_CLASSES", list(self._shared), pages, at),
            *self._sets("SET", "SET_CLASSES", [one for group in groups for one in group.sets], pages, at),
            array("uint32_t", "LEAFWISE_POSITION", nodes[:, 0] * 0x01010101),
            array(at, "LEAFWISE_COLUMN", nodes[:, 1] * self._stride),
            array("uint32_t", "LEAFWISE_FIRSTS", np.array(_all(g.first for g in groups), np.int64) * 0x01010101),
            array(at, "LEAFWISE_EXITS", np.array(_all(g.exits for g in groups), np.int64) * self._stride),
            array(at, "LEAFWISE_ROOT", np.array(_all(g.roots for g in groups), np.int64) * self._stride),
            array("uint16_t", "LEAFWISE_COUNTS", np.array(_all(g.counts for g in groups))),
            *self._outputs(),
            self._leaves(),
        )

    def _category_tables(self) -> list[str]:
        """The features with categories, by groups of four neighbours, and their classes."""
        forest, found = self._layout.forest, self._layout.categories.features
        last = max(forest.features, LANES) - LANES
        rows: list[tuple[int, ...]] = []
        groups: list[tuple[int, ...]] = []
        begin = 0
        for first, members in groupby(enumerate(found), lambda item: min(item[1].feature // LANES * LANES, last)):
            before = len(rows)
            for place, one in members:
                rows.append((begin, len(one.classes), (self._classes + place) * self._stride, one.feature - first))
                begin += len(one.classes)
            groups.append((first, len(rows) - before))
        classes = np.concatenate([one.classes for one in found] + [np.zeros(3, np.uint8)])  # gathers read 4 bytes
        return [
            defines({"LEAFWISE_CATEGORY_GROUP_COUNT": len(groups)}),
            "#if LEAFWISE_CATEGORY_GROUP_COUNT",
            records("ranks_group_t", "LEAFWISE_CATEGORY_GROUPS", groups),
            records("categories_feature_t", "LEAFWISE_CATEGORY_FEATURES", rows),
            array("uint8_t", "LEAFWISE_CLASSES", classes),
            "#endif",
        ]

    def _sets(self, name: str, classes: str, sets: list[Set], pages: int, at: str) -> list[str]:
        words = [bits >> PAGE * page & (1 << PAGE) - 1 for _, bits in sets for page in range(pages)]
        columns = np.array([self._classes + place for place, _ in sets], np.int64)
        return [
            array("uint64_t", f"LEAFWISE_{name}", np.array(words, np.uint64)),
            array(at, f"LEAFWISE_{classes}", columns * self._stride),
        ]

    def _outputs(self) -> list[str]:
        forest = self._layout.forest
        if forest.outputs == 1:
            return ["#define LEAFWISE_TREE_OUTPUT(number) 0"]
        outputs = np.array([forest.trees[number].output or 0 for number in self._layout.order])
        return [
            array("uint32_t", "LEAFWISE_OUTPUT", outputs),
            "#define LEAFWISE_TREE_OUTPUT(number) LEAFWISE_OUTPUT[number]",
        ]

    def _leaves(self) -> str:
        """A tree's values as tables of bytes, by leaf number."""
        forest = self._layout.forest
        values = np.zeros((len(self._layout.order), self._plane))
        for row, number in enumerate(self._layout.order):
            tree = forest.trees[number]
            leaves, places = map(list, zip(*self._layout.numbers[number].items(), strict=True))
            values[row, places] = tree.values[tree.payload[leaves], 0]
        return array("uint8_t", "LEAFWISE_LEAVES", planes(values, self._layout.fixed))


def _each(name: str, shapes: Sequence[int], expression: Callable[[int], str]) -> str:
    """A macro that applies another one to each shape: its number of nodes, and its expression in C (leafwise.h)."""
    return " \\\n".join((f"#define {name}(ONE)", *(f"ONE({nodes_of(shape)}, {expression(shape)})" for shape in shapes)))


def _counting(shape: int, node: int = 0) -> str:
    """The numbers below a lowest cluster's shape, the preorder number of whose root is `node`."""
    if not shape:
        return "LEAFWISE_FIRST"
    left, right = halves(shape)
    leaves = nodes_of(left) + 1
    return f"LEAFWISE_COUNT({_counting(left, node + 1)}, {node}, {_counting(right, node + leaves)}, {leaves})"


def _selecting(shape: int, node: int = 0, exit_: int = 0) -> str:
    """The numbers below any other cluster's shape; `exit_` is its first exit."""
    if not shape:
        return f"LEAFWISE_EXIT({exit_})"
    left, right = halves(shape)
    later = nodes_of(left) + 1
    halves_ = _selecting(left, node + 1, exit_), _selecting(right, node + later, exit_ + later)
    return f"LEAFWISE_SELECT({halves_[0]}, {node}, {halves_[1]})"


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


def _shared_sets(layout: _Layout) -> dict[Set, int]:
    """The sets that many splits have in common."""
    uses = Counter(one for sets in layout.categories.sets for one in sets.values())
    common = [(count, one) for one, count in uses.items() if count >= _SHARED_USES]
    chosen = sorted(one for _, one in sorted(common, reverse=True)[:_SHARED_COLUMNS])
    return {one: place for place, one in enumerate(chosen)}


def planes(values: NDArray[np.float64], fixed: FixedPoint) -> NDArray[np.uint8]:
    """Values [trees, leaves] as planes.h reads them, uint8 [trees, 4 or 7, leaves]."""
    first, second = fixed.encode(values)
    words = first.astype("<i4").view(np.uint8).reshape(*values.shape, 4)
    if fixed.wide:
        words = np.concatenate([words, second.astype("<i4").view(np.uint8).reshape(*values.shape, 4)[..., :3]], axis=2)
    return np.ascontiguousarray(words.transpose(0, 2, 1))


def _all(lists: Iterator[list[int]]) -> list[int]:
    return [one for part in lists for one in part]
