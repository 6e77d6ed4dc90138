"""Float64 rows -> the float32 rows that kernels take, without a decision that the source would not make.

Where the source compares float32, a double is rounded to the nearest float32, as the source does it. Where it compares
doubles, a double x that is no float32 lies between two, f < x < c, and kernels, which decide on float32, are given one
of them:

    c, unless a limit t (`Tree.threshold`) of the feature has x <= t < c; then f

That is right for all limits at once as long as no two of them lie in the same [f, c). A feature for which they do is
*ranked*: kernels get the number of its limits that are below x, plus one, and its splits compare that number. So is one
that is split by value and by category, since no one float32 need serve both. Of a ranked feature, numbers of float32
rows are replaced too.

Around zero some numbers are alike to kernels (`tiny_is_zero`, `missing="zero"`): the limits among them are drawn
together first, so that nothing lands among the tiny numbers that is none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.forest import (
    CATEGORY,
    MAX_CATEGORY,
    NUMERIC,
    CategorySplit,
    Forest,
    Tree,
    bound_up_to,
)
from outrider.runtime.errors import UnsupportedError

Limits = NDArray[np.float64]

_TINY = float(np.float32(1e-35))  # the largest number that is as good as zero where such are
_BEFORE_TINY = float(np.nextafter(np.float32(-1e-35), np.float32(-1)))  # the float32 just below -_TINY
_BELOW_TINY = float(np.nextafter(-_TINY, -1.0))  # the double just below it
_BLOCK_BYTES = 1 << 18  # of narrowed rows, so that they stay in a cache
_FEWEST_ROWS, _MOST_ROWS = 256, 1024  # of a block
_FILTER_BITS = 16  # a limit, at least: of other numbers, one in a hundred passes
_LARGEST_FILTER = 14  # logarithm of its words: 64 KiB


@dataclass(frozen=True)
class Narrowing:
    """How rows become those that kernels take, of as many features. `forest` is the forest as kernels see it.

    `nearest`: float64 rows are rounded, and nothing else happens. Otherwise, of features:
    `limits`, float64 ascending: of a ranked feature all, of another one those that are no float32.
    `ranked`, `categories`: those that are ranked, and those that only splits by category look at; ascending.
    """

    forest: Forest
    nearest: bool
    limits: tuple[Limits, ...]
    ranked: tuple[int, ...] = ()
    categories: tuple[int, ...] = ()


def narrow(forest: Forest, decides_in: Literal["float32", "float64"]) -> Narrowing:
    """How the rows of a forest that decides in this type are narrowed.

    Raises UnsupportedError for a feature of 2^24 thresholds, and where numbers near zero are missing, for one that is
    split by value and by category.
    """
    if decides_in == "float32":
        return Narrowing(forest, nearest=True, limits=(np.zeros(0),) * forest.features)
    limits, categories = _limits(forest), _categories(forest)
    ranked: dict[int, Limits] = {}
    for feature, own in enumerate(limits):
        if len(own) >= MAX_CATEGORY:
            raise UnsupportedError(f"feature {feature} has {len(own)} thresholds", hint="16,777,215 are supported")
        if feature in categories and len(own):
            if forest.missing == "zero":  # a number near zero would be missing and a category at once
                raise UnsupportedError(f"feature {feature} is split by value and by category, while zero is missing")
            ranked[feature] = np.unique(np.concatenate([own, *_edges(forest, categories[feature])]))
        elif _crowded(own, forest):
            ranked[feature] = own
    seen = replace(forest, trees=tuple(_ranked(tree, ranked, forest) for tree in forest.trees)) if ranked else forest
    return Narrowing(
        forest=seen,
        nearest=False,
        limits=tuple(ranked.get(feature, own[own != _floor(own)]) for feature, own in enumerate(limits)),
        ranked=tuple(ranked),
        categories=tuple(feature for feature in sorted(categories) if feature not in ranked),
    )


# Limits -------------------------------------------------------------------------------------------------------------


def _limits(forest: Forest) -> list[Limits]:
    """The limits of each feature, without NaN, which decides on no number."""
    features = [tree.feature[tree.kind == NUMERIC] for tree in forest.trees]
    found = [_drawn_together(tree.threshold[tree.kind == NUMERIC], forest) for tree in forest.trees]
    feature, limit = np.concatenate(features), np.concatenate(found)
    feature, limit = feature[~np.isnan(limit)], limit[~np.isnan(limit)]
    order = np.argsort(feature, kind="stable")
    ends = np.searchsorted(feature[order], np.arange(forest.features + 1))
    return [np.unique(limit[order[ends[i] : ends[i + 1]]]) for i in range(forest.features)]


def _drawn_together(limits: Limits, forest: Forest) -> Limits:
    """One limit for all that decide alike since the numbers between them are as good as zero, or missing."""
    limits = limits + 0.0  # not -0
    if forest.missing == "zero":
        return np.where(np.abs(limits) <= _TINY, _BELOW_TINY, limits)
    if forest.tiny_is_zero:
        return np.where(np.abs(limits) <= _TINY, np.where(limits >= 0, _TINY, _BELOW_TINY), limits)
    return limits


def _floor(values: Limits) -> Limits:
    """The largest float32 that is not above each."""
    with np.errstate(over="ignore", under="ignore"):
        near = values.astype(np.float32)
        below = np.nextafter(near, np.float32(-np.inf))
    return np.where(near > values, below, near).astype(np.float64)


def _crowded(limits: Limits, forest: Forest) -> bool:
    """Whether two of the limits lie between the same two float32 that kernels tell apart."""
    gaps = _floor(limits)
    if forest.missing == "zero":
        gaps = np.where(gaps == _TINY, _BEFORE_TINY, gaps)
    return len(np.unique(gaps)) < len(gaps)


# Ranked features ----------------------------------------------------------------------------------------------------


def _ranked(tree: Tree, limits: Mapping[int, Limits], forest: Forest) -> Tree:
    """The tree with splits that compare ranks where a feature is among `limits`."""
    bound, threshold, splits = tree.bound.copy(), tree.threshold.copy(), list(tree.categories)
    inner = (tree.kind == NUMERIC) | (tree.kind == CATEGORY)
    for feature in np.intersect1d(tree.feature[inner], np.fromiter(limits, np.int32)).tolist():
        own, nodes = limits[feature], tree.feature == feature
        compared = nodes & (tree.kind == NUMERIC) & ~np.isnan(threshold)
        threshold[compared] = 1 + np.searchsorted(own, _drawn_together(threshold[compared], forest))
        bound[compared] = bound_up_to(threshold[compared])
        for node in np.flatnonzero(nodes & (tree.kind == CATEGORY)).tolist():
            split = splits[tree.payload[node]]
            right, left = (_ranks(forest, side, own) for side in (split.right, split.left))
            splits[tree.payload[node]] = CategorySplit(right, left, split.other_right, split.missing_right)
    return replace(tree, bound=bound, threshold=threshold, categories=tuple(splits))


def _ranks(forest: Forest, categories: frozenset[int], limits: Limits) -> frozenset[int]:
    """The ranks of all numbers that are of one of these categories."""
    found: set[int] = set()
    for below, last in _edges(forest, categories):
        found.update(range(*(2 + np.searchsorted(limits, (below, last))).tolist()))
    return frozenset(found)


def _edges(forest: Forest, categories: Collection[int]) -> Iterator[tuple[float, float]]:
    """Of each category the last number below it, and its own last number."""
    for category in sorted(categories):
        first = last = float(category)
        if not forest.exact_categories:
            last = float(np.nextafter(last + 1, 0.0))
        below = float(np.nextafter(first, -np.inf))
        if category == 0 and forest.negative_fraction_is_zero:
            below = -1.0
        yield below, last


def _categories(forest: Forest) -> dict[int, set[int]]:
    """The categories that splits know, by feature."""
    found: dict[int, set[int]] = {}
    for tree in forest.trees:
        for node in np.flatnonzero(tree.kind == CATEGORY).tolist():
            split = tree.categories[tree.payload[node]]
            found.setdefault(int(tree.feature[node]), set()).update(split.right | split.left)
    return found


# Tables of narrow.h -------------------------------------------------------------------------------------------------


def block_rows(forest: Forest) -> int:
    """How many rows are narrowed at a time."""
    fit = _BLOCK_BYTES // (4 * forest.features) // 64 * 64
    return int(np.clip(fit, _FEWEST_ROWS, _MOST_ROWS))


def limit_keys(limits: Limits) -> NDArray[np.int64]:
    """int64 in the order of the doubles, -0 as +0."""
    bits = (limits + 0.0).view(np.int64)
    return np.where(bits < 0, bits ^ np.int64(2**63 - 1), bits)


def filter_words(narrowing: Narrowing) -> NDArray[np.uint32]:
    """The Bloom filter, a power of two of words, that knows the float32 just above each limit; none without limits.

    It is for features that are not ranked. `narrow_near` of narrow.h asks it.
    """
    ranked = set(narrowing.ranked)
    rounded = [feature for feature in range(narrowing.forest.features) if feature not in ranked]
    found = [(feature, _ceil_bits(narrowing.limits[feature])) for feature in rounded]
    if narrowing.forest.missing == "zero" and not narrowing.nearest:
        found += [(feature, _ceil_bits(np.array([_BELOW_TINY]))) for feature in rounded]
    count = sum(len(bits) for _, bits in found)
    if count == 0:
        return np.zeros(0, np.uint32)
    log = min((_FILTER_BITS * count // 32).bit_length(), _LARGEST_FILTER)
    words = np.zeros(1 << log, np.uint32)
    for feature, bits in found:
        mixed = bits + np.uint32(feature * 0x9E3779B9 & 0xFFFFFFFF)
        mixed = (mixed ^ mixed >> np.uint32(15)) * np.uint32(0x85EBCA6B)
        three = [np.uint32(1) << (mixed >> np.uint32(shift) & np.uint32(31)) for shift in (13, 8, 3)]
        place = mixed >> np.uint32(18) >> np.uint32(_LARGEST_FILTER - log)
        np.bitwise_or.at(words, place, three[0] | three[1] | three[2])
    return words


def _ceil_bits(limits: Limits) -> NDArray[np.uint32]:
    """The smallest float32 above each limit that is none, as its bits."""
    return (-_floor(-limits)).astype(np.float32).view(np.uint32)
