"""Categorical splits -> classes of categories, and each split as the set of classes that go right.

Categories that no split of a forest tells apart are one class, so a feature has few. As in keys.h, position 0 stands
for an unknown category, 1 for a missing one, c + 2 for category c. A class's number is a byte.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.forest import CATEGORY, CategorySplit, Forest

MAX_CLASSES = 256
PAGE = 64  # classes that a word of a set holds
_MAX_POSITIONS = 1 << 16
_UNKNOWN, _MISSING, _FIRST = 0, 1, 2


@dataclass(frozen=True)
class CategoryFeature:
    """`classes` uint8 [positions]: the class of each position; beyond them, that of position 0."""

    feature: int
    classes: NDArray[np.uint8]

    @property
    def pages(self) -> int:
        """Words that a set of its classes takes."""
        return -(-self.count // PAGE)

    @property
    def count(self) -> int:
        """How many classes there are."""
        return int(self.classes.max()) + 1


@dataclass(frozen=True)
class CategoryBits:
    """`features` ascending; `sets[tree][node]`: the place of the feature and the set, an int of a bit a class."""

    features: tuple[CategoryFeature, ...]
    sets: tuple[dict[int, tuple[int, int]], ...]


def why_not(forest: Forest) -> str | None:
    """What keeps a forest's categories from fitting into bytes, in words."""
    for feature, splits in _splits(forest).items():
        if _positions(splits) > _MAX_POSITIONS:
            return f"feature {feature} has category ids beyond {_MAX_POSITIONS - _FIRST - 1}"
        classes = int(_classes(splits).max()) + 1
        if classes > MAX_CLASSES:
            return f"splits tell {classes} classes of categories of feature {feature} apart, of {MAX_CLASSES} at most"
    return None


def category_bits(forest: Forest, swapped: Sequence[Set[int]]) -> CategoryBits:
    """The classes and sets of a forest that `why_not` has no word against.

    `swapped`: by tree, the nodes whose children have changed sides, so that the other classes go right.
    """
    features: list[CategoryFeature] = []
    bits: dict[int, tuple[int, int]] = {}
    for place, (feature, splits) in enumerate(sorted(_splits(forest).items())):
        classes = _classes(splits)
        features.append(CategoryFeature(feature, classes.astype(np.uint8)))
        _, first = np.unique(classes, return_index=True)
        for split in splits:
            goes_right = _goes_right(split, len(classes))[first]
            bits[id(split)] = place, sum(1 << int(one) for one in np.flatnonzero(goes_right))
    every = [(1 << one.count) - 1 for one in features]
    sets: list[dict[int, tuple[int, int]]] = []
    for tree, others in zip(forest.trees, swapped, strict=True):
        sets.append({})
        for node in np.flatnonzero(tree.kind == CATEGORY).tolist():
            place, right = bits[id(tree.categories[tree.payload[node]])]
            sets[-1][node] = place, every[place] ^ right if node in others else right
    return CategoryBits(tuple(features), tuple(sets))


def _splits(forest: Forest) -> dict[int, list[CategorySplit]]:
    """The categorical splits by feature."""
    found: dict[int, list[CategorySplit]] = {}
    for tree in forest.trees:
        for node in np.flatnonzero(tree.kind == CATEGORY):
            found.setdefault(int(tree.feature[node]), []).append(tree.categories[tree.payload[node]])
    return found


def _positions(splits: list[CategorySplit]) -> int:
    """How many positions have a class: there is always one of a category, so that numbers below 0 are told from it."""
    return _FIRST + 1 + max((max(split.right | split.left, default=0) for split in splits), default=0)


def _classes(splits: list[CategorySplit]) -> NDArray[np.int64]:
    """The class of each position: positions that all splits send the same way are of one class."""
    positions = _positions(splits)
    classes = np.zeros(positions, np.int64)
    for split in splits:
        refined = 2 * classes + _goes_right(split, positions)
        _, classes = np.unique(refined, return_inverse=True)
    return classes


def _goes_right(split: CategorySplit, positions: int) -> NDArray[np.bool_]:
    right = np.full(positions, split.other_right)
    right[_MISSING] = split.missing_right
    right[[_FIRST + category for category in split.right]] = True
    right[[_FIRST + category for category in split.left]] = False
    return right
