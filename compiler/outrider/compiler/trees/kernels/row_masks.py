"""Row-masks: one row through trees of any shape, all of a tree's decisions as a mask. Told in `row_masks.h`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees import categories, fixed
from outrider.compiler.trees.categories import MAX_CLASSES, CategoryFeature, category_bits
from outrider.compiler.trees.emit import array, defines, header, template
from outrider.compiler.trees.fixed import FixedPoint, fixed_point
from outrider.compiler.trees.forest import CATEGORY, LEAF, NUMERIC, Forest, Tree, once_a_forest
from outrider.compiler.trees.kernels import KernelSource, Role
from outrider.compiler.trees.kernels.ranks import records
from outrider.compiler.trees.kernels.single import MAX_COLUMNS, scratch, single_files
from outrider.compiler.trees.parts import can_part, in_parts
from outrider.compiler.trees.quantise import NEVER, Quantised, ranks_of
from outrider.runtime.target import Target

_WORD = 64  # nodes
_MAX_LEAVES = 128  # so that numbers of splits and leaves are bytes
_BYTE = 8  # splits on categories; a tree's begin with a byte
_MAX_LINES = 16 << 20  # bytes
_TOGETHER = 8  # trees that walk interleaved
_AHEAD = 2  # times as many are decided before they walk
_LINE = 64


class RowMasks:
    """No options."""

    name = "row-masks"
    serves: frozenset[Role] = frozenset(("row",))
    isa = "x86-64-v4-vbmi"
    block = 1

    def refuses(self, forest: Forest) -> str | None:
        """Paths too long, leaf vectors, many virtual columns or classes of categories."""
        if forest.leaf_vectors:
            return "leaves are vectors"
        if not can_part(forest, _MAX_LEAVES):
            return f"a tree of more than {_MAX_LEAVES} leaves has a path of more than half as many splits"
        if reason := fixed.why_not(forest, wide=True) or categories.why_not(forest):
            return reason
        lines = sum(one.count for one in _category_features(forest)) * -(-int(forest.category_splits.sum()) // _BYTE)
        if lines > _MAX_LINES:
            return f"decisions on categories take {lines} bytes, of {_MAX_LINES} at most"
        columns = ranks_of(forest).columns
        return f"it has {columns} virtual columns, of {MAX_COLUMNS} at most" if columns > MAX_COLUMNS else None

    def cost(self, forest: Forest) -> Mapping[Role, float]:
        """Each column; each line of decisions on categories; each word of a tree's mask, and the levels of the walk."""
        words = int((forest.splits // _WORD + 1).sum())
        lines = len(_category_features(forest)) * int(forest.category_splits.sum()) / (_BYTE * _LINE)
        trees = 5 * words + 1.6 * float(forest.depths.sum())
        return {"row": 4 * len(ranks_of(forest).chunks) + 3 * lines + trees}

    def variants(self, forest: Forest, target: Target) -> Sequence[dict[str, str]]:
        """One."""
        return [{}]

    def emit(self, forest: Forest, options: Mapping[str, str]) -> KernelSource:
        """Lay out, and write the tables down."""
        small = in_parts(forest, _MAX_LEAVES)
        quantised = ranks_of(small)
        tables = _Tables(small, quantised, fixed_point(forest))
        return KernelSource(
            files={
                **{name: template(name) for name in ("row_masks.h", "fixed.h")},
                "row_masks_tables.h": tables.text(),
                **single_files(quantised),
            },
            include="row_masks.h",
            prefix="row_masks",
            scratch=scratch(forest, quantised) + tables.line + tables.decisions + 2 * _LINE,
        )


@once_a_forest
def _category_features(forest: Forest) -> tuple[CategoryFeature, ...]:
    return category_bits(forest, [frozenset()] * len(forest.trees)).features


def _is_small(tree: Tree) -> bool:
    """Whether a mask holds all decisions."""
    numeric, by_category = (int((tree.kind == kind).sum()) for kind in (NUMERIC, CATEGORY))
    return numeric + by_category <= _WORD and numeric < _WORD


@dataclass(frozen=True)
class _Laid:
    """A tree's tables: `columns` and `positions` of its nodes, `children` and leaf `values` by number.

    Splits on numbers come first, then those on categories, then leaves. `record`: the first byte of its
    decisions on categories, its output, how many splits on numbers it has, where walks start, the first leaf.
    """

    columns: NDArray[np.uint8]
    positions: NDArray[np.uint8]
    children: NDArray[np.int64]
    values: NDArray[np.float64]
    record: tuple[int, int, int, int, int]


@dataclass
class _Kind:
    """Trees with tables of the same sizes: `numeric` of `words` masks are of splits on numbers; `leaves` at most.

    `levels`: those of each group of trees that walk together.
    """

    name: str
    numeric: int
    words: int
    leaves: int
    trees: list[_Laid] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)

    @property
    def entries(self) -> int:
        """Entries of a tree's children: two for each split and leaf, in whole lines."""
        return -(-(4 * self.leaves - 2) // _LINE) * _LINE


class _Tables:
    """Lays the trees out: small ones, then large ones, each kind by depth, so that walks arrive together."""

    def __init__(self, forest: Forest, quantised: Quantised, fixed: FixedPoint) -> None:
        self._forest, self._quantised, self._fixed = forest, quantised, fixed
        self._categories = category_bits(forest, [frozenset()] * len(forest.trees))
        self._sets: list[tuple[int, int]] = []  # place of the feature, bits of its classes; in whole bytes
        depths = forest.depths.tolist()
        by_depth = sorted(range(len(depths)), key=depths.__getitem__)
        small = [number for number in by_depth if _is_small(forest.trees[number])]
        large = [number for number in by_depth if not _is_small(forest.trees[number])]
        self._kinds = [self._kind("SMALL", small), self._kind("LARGE", large)]
        for kind, numbers in zip(self._kinds, (small, large), strict=True):
            kind.trees = [self._lay(kind, number) for number in numbers]
            kind.trees += [self._empty(kind, (0, 0, 0, 0, 0))] * (-len(numbers) % _TOGETHER)
            own = [depths[number] for number in numbers]
            kind.levels = [max(own[first : first + _TOGETHER]) for first in range(0, len(own), _TOGETHER)]

    @property
    def line(self) -> int:
        """Bytes of a line of decisions on categories."""
        return -(-len(self._sets) // (_BYTE * _LINE)) * _LINE

    @property
    def decisions(self) -> int:
        """Bytes that the decisions of some groups take, and what walks that have arrived read behind them."""
        tree = max(8 if kind.words == 1 else _WORD * kind.words for kind in self._kinds)
        return _AHEAD * _TOGETHER * tree + 2 * _MAX_LEAVES

    def _kind(self, name: str, numbers: list[int]) -> _Kind:
        trees = [self._forest.trees[number] for number in numbers]
        numeric, by_category, leaves = (
            max((int((tree.kind == kind).sum()) for tree in trees), default=1) for kind in (NUMERIC, CATEGORY, LEAF)
        )
        if name == "SMALL":
            return _Kind(name, 1, 1, leaves)
        numeric, by_category = max(-(-numeric // _WORD), 1), -(-by_category // _WORD)
        return _Kind(name, numeric, max(numeric + by_category, 2), leaves)

    def _lay(self, kind: _Kind, number: int) -> _Laid:
        tree = self._forest.trees[number]
        numeric, by_category, leaves = (np.flatnonzero(tree.kind == one) for one in (NUMERIC, CATEGORY, LEAF))
        splits = np.concatenate([numeric, by_category])
        place = np.zeros(tree.nodes, np.int64)
        place[np.concatenate([splits, leaves])] = np.arange(tree.nodes)
        laid = self._empty(kind, (len(self._sets) // _BYTE, tree.output or 0, len(numeric), int(place[0]), len(splits)))
        laid.columns[: len(numeric)] = self._quantised.column[number][numeric]
        laid.positions[: len(numeric)] = self._quantised.position[number][numeric]
        for side, below in enumerate((tree.left, tree.right)):
            laid.children[2 * place[splits] + side] = place[below[splits]]
        laid.values[: len(leaves)] = tree.values[tree.payload[leaves], 0]
        self._sets += [self._categories.sets[number][node] for node in by_category.tolist()]
        self._sets += [(0, 0)] * (-len(self._sets) % _BYTE)
        return laid

    @staticmethod
    def _empty(kind: _Kind, record: tuple[int, int, int, int, int]) -> _Laid:
        """A tree without a node: every number leads to itself, nothing goes right, all values are 0."""
        nodes, itself = kind.numeric * _WORD, np.arange(kind.entries) // 2
        return _Laid(np.zeros(nodes, np.uint8), np.full(nodes, NEVER, np.uint8), itself, np.zeros(kind.leaves), record)

    # ---- text ----

    def text(self) -> str:
        """The header of tables."""
        sizes = {
            "TOGETHER": _TOGETHER,
            "AHEAD": _AHEAD,
            "LEAF_WORDS": 2 if self._fixed.wide else 1,
            "CATEGORY_FEATURES": len(self._categories.features),
            "LINE_BYTES": self.line,
            "DECISION_BYTES": self.decisions,
        }
        return header(
            "The tables of the kernel row-masks, for one forest.",
            defines({f"ROW_MASKS_{name}": value for name, value in sizes.items()}),
            "typedef struct { uint32_t bits, output; uint16_t shift, root, leaf; } row_masks_tree_t;",
            *self._category_tables(),
            *(part for kind in self._kinds for part in self._kind_tables(kind)),
        )

    def _category_tables(self) -> list[str]:
        found = self._categories.features
        rows, positions, lines = [], 0, 0
        for one in found:
            rows.append((one.feature, positions, lines, len(one.classes)))
            positions += len(one.classes)
            lines += one.count
        return [
            "typedef struct { uint32_t feature, classes, first_line, positions; } row_masks_category_t;",
            "#if ROW_MASKS_CATEGORY_FEATURES",
            records("row_masks_category_t", "ROW_MASKS_CATEGORIES", rows),
            array(
                "uint8_t", "ROW_MASKS_CLASSES", np.concatenate([np.zeros(0, np.uint8), *(one.classes for one in found)])
            ),
            array("uint8_t", "ROW_MASKS_LINES", np.concatenate([np.zeros((0, self.line), np.uint8), *self._lines()])),
            "#endif",
        ]

    def _lines(self) -> Iterator[NDArray[np.uint8]]:
        """By feature, a line for each class: which splits on that feature it goes right at, uint8 [classes, line]."""
        places = np.array([place for place, _ in self._sets], np.int64)
        sets = b"".join(bits.to_bytes(MAX_CLASSES // 8, "little") for _, bits in self._sets)
        right = np.unpackbits(np.frombuffer(sets, np.uint8).reshape(-1, MAX_CLASSES // 8), axis=1, bitorder="little")
        for place, feature in enumerate(self._categories.features):
            own = np.zeros((feature.count, _BYTE * self.line), np.uint8)
            own[:, : len(places)] = (right[:, : len(own)] * (places == place)[:, None]).T
            yield np.packbits(own, axis=1, bitorder="little")

    def _kind_tables(self, kind: _Kind) -> list[str]:
        name = f"ROW_MASKS_{kind.name}"
        groups = len(kind.trees) // _TOGETHER
        sizes = {"GROUPS": groups, "NUMERIC": kind.numeric, "WORDS": kind.words, "LEAVES": kind.leaves}
        if not groups:
            return [defines({f"{name}_GROUPS": 0})]
        first, second = self._fixed.encode(np.stack([tree.values for tree in kind.trees]))
        words = np.stack([first, second], axis=1) if self._fixed.wide else first
        return [
            defines({f"{name}_{key}": value for key, value in sizes.items()}),
            array("uint8_t", f"{name}_COLUMNS", np.concatenate([tree.columns for tree in kind.trees])),
            array("uint8_t", f"{name}_POSITIONS", np.concatenate([tree.positions for tree in kind.trees])),
            array("uint8_t", f"{name}_CHILDREN", np.concatenate([tree.children for tree in kind.trees])),
            array("int32_t", f"{name}_VALUES", words),
            array("uint16_t", f"{name}_LEVEL_COUNTS", np.array(kind.levels)),
            records("row_masks_tree_t", f"{name}_TREES", [tree.record for tree in kind.trees]),
        ]
