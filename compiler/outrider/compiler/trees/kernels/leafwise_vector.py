"""Kernels `leafwise-…` for vectors of bytes. The idea is in leafwise_vector.h; here is what differs in the tables.

One class an instruction-set level: the templates are the same, and so are the results. What differs is the size of a
vector, and how bounds are laid out for the search that the level's instructions allow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.emit import array, defines
from outrider.compiler.trees.fixed import LOW_BITS
from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.kernels import Role
from outrider.compiler.trees.kernels.leafwise import Leafwise
from outrider.compiler.trees.kernels.leafwise_tables import LeafwiseOptions, LeafwiseTables
from outrider.compiler.trees.kernels.ranks import rank_tables
from outrider.compiler.trees.quantise import REGISTER, Chunk, Quantised, search_tree


def search_planes(chunk: Chunk) -> NDArray[np.int32]:
    """The chunk's bounds as vector_ranks.h looks them up: pages of 16, each as four tables of a byte.

    They are the search tree of quantise.py, mirrored, so that a step is p = 2p + (key < t[p]): int32
    [2^levels, at least 16], in which bytes but the highest are xor 0x80.
    """
    tree = search_tree(chunk)
    for level in range(chunk.levels):
        tree[1 << level : 2 << level] = tree[1 << level : 2 << level][::-1].copy()
    pages = tree.astype("<i4").view(np.uint8).reshape(-1, REGISTER, 4).transpose(0, 2, 1)
    signs = np.array([[0x80], [0x80], [0x80], [0]], np.uint8)
    return np.ascontiguousarray(pages ^ signs).view("<i4").ravel()


class VectorTables(LeafwiseTables):
    """Positions for signed comparisons, sets as bytes, values as integers."""

    prefix = "VECTOR"
    templates = ("leafwise_vector.h", "vector_ranks.h", "vector.h", "columns.h", "fixed.h", "finish_batch.h")
    lanes = 16
    looks_up: ClassVar[bool] = True  # in tables of 16 bytes

    def files(self) -> dict[str, str]:
        """What it shares with leafwise.h is in the tables."""
        return self.own_files()

    def ranked(self, quantised: Quantised) -> Quantised:
        """As they are."""
        return quantised

    def ranks(self) -> str:
        """With search trees, in bytes where they are looked up."""
        search = search_planes if self.looks_up else search_tree
        return rank_tables(self.prefix, self.layout.forest, self.quantised, self.stride, search)

    def positions(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """What a rank has to be below to go left. A position that no rank passes comes with a column of zeros."""
        return np.minimum(positions + 1, 255) ^ 0x80

    def sets(self, name: str, bits: Sequence[int]) -> str:
        """The sets of classes that go right, a bit a class."""
        data = b"".join(one.to_bytes(self._set_bytes, "little") for one in bits)
        return array("uint8_t", name, np.frombuffer(data, np.uint8))

    def values(self) -> list[str]:
        """All trees' values, one tree behind the other, and where each one's start."""
        layout = self.layout
        words = [layout.fixed.encode(self.values_of(number)).astype(np.int64) for number in layout.order]
        first, second = np.concatenate(words, axis=1)
        wide = layout.fixed.wide
        sizes = {
            "VECTOR_BYTES": self.lanes,
            "VECTOR_LOOKS_UP": int(self.looks_up),
            "VECTOR_SET_BYTES": self._set_bytes,
        }
        return [
            defines(sizes),
            array("int64_t" if wide else "int32_t", "VECTOR_VALUES", first << LOW_BITS | second if wide else first),
            array("uint32_t", "VECTOR_OFFSETS", np.cumsum([0, *(one.shape[1] for one in words[:-1])])),
        ]

    @property
    def class_columns(self) -> int:
        """Byte and bit."""
        return 2

    @property
    def _set_bytes(self) -> int:
        return 16 if self.pages <= 2 else 32


class _WideTables(VectorTables):
    lanes = 32


class _WordTables(VectorTables):
    looks_up = False


class LeafwiseVector(Leafwise):
    """What the forms for all levels have in common: vectors of 16 bytes, up to four of them in a block of rows."""

    block = 22  # a register alone takes 1.4 times its share of four
    tables = VectorTables
    choices = (LeafwiseOptions(4, 8), LeafwiseOptions(2, 8))
    portable = True

    def cost(self, forest: Forest) -> Mapping[Role, float]:
        """For a register's rows each feature, node and split on categories; for each row its values."""
        nodes = 1.25 * float(forest.splits.sum()) + 2 * float(forest.category_splits.sum())
        return {"batch": (80 * forest.features + nodes) / self.tables.lanes + 1.5 * len(forest.trees)}


class LeafwiseAvx2(LeafwiseVector):
    """AVX2: vectors of 32 bytes."""

    name = "leafwise-avx2"
    isa = "x86-64-v3"
    block = 44
    tables = _WideTables
    choices = (LeafwiseOptions(4, 4), LeafwiseOptions(2, 8))


class LeafwiseSse(LeafwiseVector):
    """SSE up to SSSE3, which every machine of the board has."""

    name = "leafwise-sse"
    isa = "x86-64-v2"


class LeafwiseNeon(LeafwiseVector):
    """NEON of 64-bit ARM, which every machine of the board has."""

    name = "leafwise-neon"
    isa = "aarch64-neon"


class LeafwiseNeon32(LeafwiseVector):
    """NEON of 32-bit ARM."""

    name = "leafwise-neon32"
    isa = "armv7-neon"


class LeafwiseRvv(LeafwiseVector):
    """RVV, whose look-ups compilers do not reach from vectors of a fixed size: ranks are searched for row by row."""

    name = "leafwise-rvv"
    isa = "riscv64-v"
    tables = _WordTables


class LeafwiseWasm(LeafwiseVector):
    """SIMD of WebAssembly."""

    name = "leafwise-wasm"
    isa = "wasm32-simd128"
