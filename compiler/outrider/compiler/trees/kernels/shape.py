"""The tables of kernel `shape-avx2`: all nodes of shallow trees. The idea is in shape_avx2.h.

A tree is a perfect *top* and below it *blocks* of height up to 3. A block's shape is the set of its nodes: bit 0 the
root, bits 1 and 2 its children, bits 3 to 6 theirs. A block whose shape the kernel has no loop for is padded to the
cheapest larger one by nodes that nothing passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.emit import array, defines, header
from outrider.compiler.trees.forest import CATEGORY, LEAF, Forest, Tree
from outrider.compiler.trees.kernels.ranks import rank_tables
from outrider.compiler.trees.quantise import NEVER, Chunk, Quantised

MAX_DEPTH = 8  # leaf numbers are bytes
BLOCK = 3  # height of a block
MIN_PLANE = 64  # leaves of the smallest table

# Cost in cycles a register, for the choice of shapes: of a node, of a block, of leaving a shape's loop.
_NODE_COST, _BLOCK_COST, _LOOP_COST = 1.1, 1.5, 2.0


@dataclass(frozen=True)
class ShapeOptions:
    """Choices that change speed and never results.

    `block`: 0 or 3, the height of blocks. `registers`: 64 rows each. `group`: trees whose blocks are sorted together.
    """

    block: int
    registers: int
    group: int


@dataclass(frozen=True)
class Form:
    """What a kernel of this family wants of its tables.

    `lanes`: rows a register. `bias`: xor of positions, where compares are signed. `planes`: leaf values as four tables
    of bytes, else as floats. `search`: how bounds are laid out.
    """

    prefix: str
    lanes: int
    bias: int
    planes: bool
    search: Callable[[Chunk], NDArray[np.int32]]


@dataclass
class _Block:
    """A block of one tree: its shape, the slot that its result goes to, (column, position) of its nodes in preorder."""

    shape: int
    slot: int
    nodes: list[tuple[int, int]]


@dataclass
class _Laid:
    """A tree as the kernel reads it: the top in heap order, its blocks, and the leaf values [2^depth] by number."""

    column: NDArray[np.int64]
    position: NDArray[np.int64]
    leaves: NDArray[np.float32]
    blocks: list[_Block] = field(default_factory=list)


def why_not(forest: Forest) -> str | None:
    """The constraint of the all-nodes method that a forest breaks, in words."""
    if forest.precision != "float32":
        return "the source adds in float64, and this kernel adds in float32"
    if any(tree.output is None for tree in forest.trees):
        return "leaves are vectors"
    if any((tree.kind == CATEGORY).any() for tree in forest.trees):
        return "there are splits on categories"
    depth = int(forest.depths.max())
    return f"a tree has {depth} levels, and this kernel takes up to {MAX_DEPTH}" if depth > MAX_DEPTH else None


# ---- shapes ----


def parts(shape: int) -> tuple[int, int]:
    """The shapes of a shape's left and right half, as shapes themselves.

    >>> parts(0b1111111)
    (7, 7)
    """
    left = (shape >> 1 & 1) | (shape >> 3 & 1) << 1 | (shape >> 4 & 1) << 2
    right = (shape >> 2 & 1) | (shape >> 5 & 1) << 1 | (shape >> 6 & 1) << 2
    return left, right


def all_shapes() -> list[int]:
    """The 26 shapes of height up to 3, small ones first."""

    def whole(shape: int) -> bool:
        return all(not shape >> node & 1 or shape >> (node - 1) // 2 & 1 for node in range(1, 7))

    return sorted(filter(whole, range(128)), key=lambda shape: (nodes_of(shape), shape))


def nodes_of(shape: int) -> int:
    """How many nodes a shape has."""
    return bin(shape).count("1")


def choose_shapes(histogram: Mapping[int, int], groups: int, registers: int) -> dict[int, int]:
    """The shape that a block of each shape is evaluated as: a few of all, each at a price, larger ones for the rest.

    `histogram`: blocks of each shape. Greedy: from the full shape on, the shape that saves most is added.
    """
    chosen = [all_shapes()[-1]]

    def cheapest(shape: int, among: list[int]) -> int:
        return min((larger for larger in among if shape & larger == shape), key=nodes_of)

    def cost(among: list[int]) -> float:
        work = sum(
            count * (nodes_of(cheapest(shape, among)) * _NODE_COST + _BLOCK_COST) for shape, count in histogram.items()
        )
        return work + len(among) * groups * _LOOP_COST / registers

    current = cost(chosen)
    while True:
        costs = {shape: cost([*chosen, shape]) for shape in histogram if shape not in chosen}
        if not costs or min(costs.values()) >= current:
            return {shape: cheapest(shape, chosen) for shape in histogram}
        best = min(costs, key=costs.__getitem__)
        current = costs[best]
        chosen.append(best)


# ---- trees ----


class _Layer:
    """Lays out the trees of a forest."""

    def __init__(self, forest: Forest, quantised: Quantised, options: ShapeOptions, depth: int) -> None:
        self._forest, self._quantised = forest, quantised
        self._block, self._depth = options.block, depth
        self._top = depth - options.block
        self._padded: Mapping[int, int] = {}

    def shapes(self) -> dict[int, int]:
        """How many blocks of each shape there are."""
        histogram: dict[int, int] = {}
        for tree in self._forest.trees:
            for node, _ in self._slots(tree):
                shape = self._shape(tree, node)
                histogram[shape] = histogram.get(shape, 0) + 1
        return histogram

    def lay(self, number: int, padded: Mapping[int, int]) -> _Laid:
        """Lay out a tree; `padded`: the shape that a block of each shape is evaluated as."""
        tree, slots = self._forest.trees[number], 1 << self._top
        laid = _Laid(np.zeros(slots - 1, np.int64), np.full(slots - 1, NEVER), np.zeros(1 << self._depth, np.float32))
        self._padded = padded
        self._lay_top(number, tree, laid, 0, 0, 0)
        return laid

    def _lay_top(self, number: int, tree: Tree, laid: _Laid, node: int, place: int, level: int) -> None:
        slots = 1 << self._top
        if level == self._top or tree.kind[node] == LEAF:
            # A leaf above the blocks is the first block below it, since nothing passes the nodes between.
            slot = ((place + 1) << self._top - level) - slots
            if self._block:
                shape = self._padded[self._shape(tree, node)]
                block = _Block(shape, slot, [])
                self._lay_block(number, tree, laid, block, node, shape, slot << self._block)
                laid.blocks.append(block)
            else:
                laid.leaves[slot] = self._value(tree, node)
            return
        laid.column[place], laid.position[place] = self._decision(number, node)
        self._lay_top(number, tree, laid, int(tree.left[node]), 2 * place + 1, level + 1)
        self._lay_top(number, tree, laid, int(tree.right[node]), 2 * place + 2, level + 1)

    def _lay_block(self, number: int, tree: Tree, laid: _Laid, block: _Block, node: int, shape: int, leaf: int) -> int:
        """Append the nodes of a block, `node` at the root of `shape`, -1 for padding; returns the next leaf number."""
        if not shape:
            if node >= 0:
                laid.leaves[leaf] = self._value(tree, node)
            return leaf + 1
        left, right = parts(shape)
        if node < 0 or tree.kind[node] == LEAF:
            block.nodes.append((0, NEVER))
            after = self._lay_block(number, tree, laid, block, node, left, leaf)
            return self._lay_block(number, tree, laid, block, -1, right, after)
        block.nodes.append(self._decision(number, node))
        after = self._lay_block(number, tree, laid, block, int(tree.left[node]), left, leaf)
        return self._lay_block(number, tree, laid, block, int(tree.right[node]), right, after)

    def _slots(self, tree: Tree) -> Iterator[tuple[int, int]]:
        """(node, level) where the top ends."""
        stack = [(0, 0)]
        while stack:
            node, level = stack.pop()
            if level == self._top or tree.kind[node] == LEAF:
                yield node, level
            else:
                stack += [(int(tree.left[node]), level + 1), (int(tree.right[node]), level + 1)]

    def _shape(self, tree: Tree, node: int) -> int:
        at, shape = [node] + [-1] * 6, 0
        for i in range(7):
            if at[i] >= 0 and tree.kind[at[i]] != LEAF:
                shape |= 1 << i
                if i < 3:
                    at[2 * i + 1], at[2 * i + 2] = int(tree.left[at[i]]), int(tree.right[at[i]])
        return shape

    def _decision(self, number: int, node: int) -> tuple[int, int]:
        return int(self._quantised.column[number][node]), int(self._quantised.position[number][node])

    @staticmethod
    def _value(tree: Tree, node: int) -> np.float32:
        return np.float32(tree.values[tree.payload[node], 0])


# ---- tables ----


def read_options(options: Mapping[str, str], default: ShapeOptions) -> ShapeOptions:
    """The options of a candidate, with defaults for those that are not named."""
    return ShapeOptions(**{key: int(options.get(key, value)) for key, value in vars(default).items()})


def _depth(forest: Forest) -> int:
    return max(1, int(forest.depths.max()))


def shape_tables(forest: Forest, quantised: Quantised, options: ShapeOptions, form: Form) -> tuple[str, int]:
    """The tables' header, for a forest that `why_not` has no word against, and the kernel's bytes of scratch."""
    depth = max(options.block, _depth(forest))
    top, stride = depth - options.block, form.lanes * options.registers
    layer = _Layer(forest, quantised, options, depth)
    order = sorted(range(len(forest.trees)), key=lambda number: forest.trees[number].output or 0)
    groups = [order[i : i + options.group] for i in range(0, len(order), options.group)]
    padded = choose_shapes(layer.shapes(), len(groups), options.registers) if options.block else {}
    trees = [[layer.lay(number, padded) for number in group] for group in groups]
    flat = [tree for group in trees for tree in group]
    sizes = {
        "COLUMNS": quantised.columns,
        "DEPTH": depth,
        "BLOCK": options.block,
        "TOP_LEVELS": top,
        "REGISTERS": options.registers,
        "GROUP": options.group,
    }
    column = "uint32_t" if quantised.columns * stride > 0xFFFF else "uint16_t"
    write = _Writer(form, stride, column)
    text = header(
        "The tables of a kernel that evaluates all nodes, for one forest.",
        defines({f"{form.prefix}_{name}": value for name, value in sizes.items()}),
        f"typedef {column} {form.prefix.lower()}_column_t;",
        rank_tables(form.prefix, forest, quantised, stride, form.search, inverted=False),
        *write.nodes("TOP", *(np.concatenate([getattr(tree, of) for tree in flat]) for of in ("column", "position"))),
        *(write.blocks(trees, sorted(set(padded.values())), 1 << top) if options.block else ()),
        *write.outputs([forest.trees[number].output or 0 for number in order] if forest.outputs > 1 else []),
        write.leaves(np.stack([tree.leaves for tree in flat])),
    )
    buffer = options.group << top if options.block else 0
    scratch = stride * (quantised.columns + 1 + buffer + 4 * forest.outputs)
    return text, scratch + form.lanes * 4 * max(4, forest.features)


@dataclass(frozen=True)
class _Writer:
    """Writes tables in the form of a kernel; `stride`: bytes of a virtual column and of a slot."""

    form: Form
    stride: int
    column: str

    def nodes(self, name: str, columns: NDArray[np.int64], positions: NDArray[np.int64]) -> list[str]:
        """A position is four times the same byte: a broadcast of words needs no shuffle, one of bytes does."""
        name = f"{self.form.prefix}_{name}"
        return [
            array("uint32_t", f"{name}_POSITION", (positions ^ self.form.bias) * 0x01010101),
            array(self.column, f"{name}_COLUMN", columns * self.stride),
        ]

    def blocks(self, trees: list[list[_Laid]], shapes: list[int], slots: int) -> list[str]:
        """Blocks by group of trees, then by shape."""
        counts, slot = [], []
        nodes: list[tuple[int, int]] = []
        for group in trees:
            by_shape: dict[int, list[tuple[int, _Block]]] = {shape: [] for shape in shapes}
            for place, tree in enumerate(group):
                for block in tree.blocks:
                    by_shape[block.shape].append((place * slots + block.slot, block))
            for same in by_shape.values():
                counts.append(len(same))
                slot += [where * self.stride for where, _ in same]
                for _, block in same:
                    nodes += block.nodes
        prefix = self.form.prefix
        return [
            f"#define {prefix}_EACH(ONE) " + " ".join(f"ONE({shape})" for shape in shapes),
            array("uint16_t", f"{prefix}_BLOCK_COUNT", np.array(counts)),
            array("uint32_t", f"{prefix}_BLOCK_SLOT", np.array(slot)),
            *self.nodes("BLOCK", *np.array(nodes, np.int64).reshape(-1, 2).T),
        ]

    def outputs(self, outputs: list[int]) -> list[str]:
        """The output that each tree adds to; none are given where there is but one."""
        prefix = self.form.prefix
        if not outputs:
            return [f"#define {prefix}_TREE_OUTPUT(number) 0"]
        return [
            array("uint32_t", f"{prefix}_OUTPUT", np.array(outputs)),
            f"#define {prefix}_TREE_OUTPUT(number) {prefix}_OUTPUT[number]",
        ]

    def leaves(self, leaves: NDArray[np.float32]) -> str:
        """The leaf values [trees, 2^depth], as floats or a tree's as four tables of bytes, the lowest bytes first."""
        name = f"{self.form.prefix}_LEAVES"
        if not self.form.planes:
            return array("float", name, leaves)
        trees, plane = len(leaves), max(MIN_PLANE, leaves.shape[1])
        padded = np.zeros((trees, plane), "<f4")
        padded[:, : leaves.shape[1]] = leaves
        return array("uint8_t", name, padded.view(np.uint8).reshape(trees, plane, 4).transpose(0, 2, 1))
