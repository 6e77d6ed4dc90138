"""The forest IR: what every tree ensemble is brought to before it is laid out. Plain data, no framework left in it.

A decision on float32 `x` is made on integers. `sort_key(x)` is an int32 whose order is that of the floats, with
-0 equal to +0, so that `x < t`, `x <= t` and double thresholds all become one test, exact for every float32:

    go right   iff   sort_key(x) >= bound

`x <= t` for a double `t` is `x <= floor32(t)` (the largest float32 that is not above `t`), hence
`bound = sort_key(floor32(t)) + 1`; `x < t` for a float32 `t` has `bound = sort_key(t)`.

Beside it stands the same decision on a double `x`, which has values between two float32: go left iff
`x <= threshold`. `x < t` has the double just below `t` as its threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Transform = Literal[
    "identity",
    "sigmoid",
    "softmax",
    "softmax_zero",
    "exponential",
    "hinge",
    "signed_square",
    "log_one_plus_exp",
    "exponential_ratio",
    "isolation",
    "argmax",
]
Missing = Literal["nan", "zero"]

T = TypeVar("T")

LEAF, NUMERIC, CATEGORY = 0, 1, 2
MAX_CATEGORY = 1 << 24  # the integers that a float32 counts without gaps
LOWEST_KEY, HIGHEST_KEY = ~0x7F800000, 0x7F800000  # of -inf and inf


@dataclass(frozen=True)
class CategorySplit:
    """Where a category goes: those of `right` to the right, those of `left` to the left, any other by `other_right`."""

    right: frozenset[int]
    left: frozenset[int]
    other_right: bool
    missing_right: bool


@dataclass(frozen=True)
class Tree:
    """One tree, as arrays over its nodes [n]; the root is node 0, `left` and `right` are node numbers.

    `kind` is LEAF, NUMERIC or CATEGORY. NUMERIC: `bound` int32, `missing_right` bool. CATEGORY: `payload` indexes
    `categories`. LEAF: `payload` is a row of `values`, float64 [leaves, 1], or [leaves, outputs] for leaf vectors.
    `output` is the sum that a leaf adds to, None for leaf vectors, which add to all.
    `threshold`, float64: the NUMERIC decision on doubles, left iff `x <= threshold`; NaN sends every number right.
    Where it is not given, it is the largest float32 that goes left.
    """

    kind: NDArray[np.uint8]
    feature: NDArray[np.int32]
    bound: NDArray[np.int32]
    missing_right: NDArray[np.bool_]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    payload: NDArray[np.int32]
    values: NDArray[np.float64]
    categories: tuple[CategorySplit, ...]
    output: int | None
    threshold: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        if len(self.threshold) == 0:
            object.__setattr__(self, "threshold", threshold_of(self.bound))

    @property
    def nodes(self) -> int:
        """How many nodes, leaves included."""
        return len(self.kind)


@dataclass(frozen=True)
class Forest:
    """An ensemble: `transform(base + sums)`, or `transform(base + sums / divisor)` where trees are averaged.

    Sums are of `precision`, start at `base` (at 0 where averaged) and take the trees in order: the arithmetic of
    the source, so that the result is the source's to the last bit or nearly so.

    - `outputs`: sums a row; `base` and `divisor` are float64 [outputs]; `divisor` None: not averaged.
    - `scale`: factor inside the sigmoid, or the `c` of `exponential_ratio` (2^(-x/c)) and `isolation` (-2^(-x/c)).
    - `softmax_zero`: a softmax of the sums that are not 0 (beyond 1e-7); the others stay 0 (ONNX).
    - `complement`: a single result `p` is given as the pair `[1 - p, p]`.
    - `missing`: `zero` makes |x| <= 1e-35 missing too. `tiny_is_zero`: |x| <= 1e-35 is read as 0 (LightGBM). In both,
      1e-35 is the float32 nearest to it, for double x too.
    - `negative_fraction_is_zero`: a category in (-1, 0) is category 0 (LightGBM truncates), not an unknown one.
      `exact_categories`: a fractional category is unknown (scikit-learn), not truncated.
    """

    features: int
    outputs: int
    trees: tuple[Tree, ...]
    base: NDArray[np.float64]
    divisor: NDArray[np.float64] | None
    precision: Literal["float32", "float64"]
    transform: Transform
    scale: float = 1.0
    complement: bool = False
    missing: Missing = "nan"
    tiny_is_zero: bool = False
    negative_fraction_is_zero: bool = False
    exact_categories: bool = False

    @property
    def columns_out(self) -> int:
        """Columns of the result: 1 where it is a vector over rows."""
        if self.complement:
            return 2
        return 1 if self.transform == "argmax" else self.outputs

    @property
    def nodes(self) -> int:
        """Nodes of all trees."""
        return sum(tree.nodes for tree in self.trees)

    @cached_property
    def depths(self) -> NDArray[np.int64]:
        """Levels of each tree, [trees]."""
        return np.array([depth_of(tree) for tree in self.trees])

    @cached_property
    def splits(self) -> NDArray[np.int64]:
        """Splits of each tree, [trees]."""
        return np.array([(tree.kind != LEAF).sum() for tree in self.trees])

    @cached_property
    def category_splits(self) -> NDArray[np.int64]:
        """Splits on categories of each tree, [trees]."""
        return np.array([(tree.kind == CATEGORY).sum() for tree in self.trees])

    @property
    def leaf_vectors(self) -> bool:
        """Whether a tree has leaves that are vectors over the outputs."""
        return any(tree.output is None for tree in self.trees)


def once_a_forest(function: Callable[[Forest], T]) -> Callable[[Forest], T]:
    """Keep a function's result on the forest, for as long as that lives: kernels share layouts."""

    @wraps(function)
    def kept(forest: Forest) -> T:
        results = vars(forest).setdefault("_results", {})
        if function not in results:
            results[function] = function(forest)
        found: T = results[function]
        return found

    return kept


def depth_of(tree: Tree) -> int:
    """Levels of splits on the longest way to a leaf."""
    level = np.zeros(1, np.int64)
    depth = -1
    while len(level):
        level = level[tree.kind[level] != LEAF]
        level = np.concatenate([tree.left[level], tree.right[level]]).astype(np.int64)
        depth += 1
    return depth


def sort_key(values: NDArray[np.float32]) -> NDArray[np.int32]:
    """int32 keys in the order of the floats, -0 as +0. NaN has no key of its own: its key is undefined."""
    bits = np.ascontiguousarray(values, np.float32).view(np.int32)
    bits = np.where(bits == np.int32(-(2**31)), np.int32(0), bits)
    return np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int32)


def key_value(keys: NDArray[np.int32]) -> NDArray[np.float32]:
    """The float32 of each key: the inverse of `sort_key`."""
    keys = np.ascontiguousarray(keys, np.int32)
    return np.where(keys < 0, keys ^ np.int32(0x7FFFFFFF), keys).astype(np.int32).view(np.float32)


def threshold_of(bounds: NDArray[np.int32]) -> NDArray[np.float64]:
    """The largest float32 that each bound sends left, as a double; NaN where it sends none left."""
    last = np.asarray(bounds, np.int64) - 1
    last = np.where(last == -1, -2, last)  # no float has the key -1, which would be that of -0
    values = key_value(np.clip(last, LOWEST_KEY, HIGHEST_KEY).astype(np.int32)).astype(np.float64)
    return np.where(last < LOWEST_KEY, np.nan, values)


def largest_below(thresholds: NDArray[Any]) -> NDArray[np.float64]:
    """The double `u` with which `x <= u` decides as `x < t` does, for every double x; NaN where nothing is below t."""
    wide = np.asarray(thresholds, np.float64)
    with np.errstate(over="ignore", under="ignore"):
        return np.where(wide == -np.inf, np.nan, np.nextafter(wide, -np.inf))


def bound_below(thresholds: NDArray[Any]) -> NDArray[np.int32]:
    """Bounds for `x < t`, exact for float32 x: the key of the smallest float32 that is not below `t`."""
    with np.errstate(over="ignore", under="ignore"):
        rounded = np.asarray(thresholds, np.float64).astype(np.float32)
    keys = sort_key(rounded)
    return _all_right_at_nan(keys + (rounded.astype(np.float64) < thresholds), thresholds)


def bound_up_to(thresholds: NDArray[Any]) -> NDArray[np.int32]:
    """Bounds for `x <= t`, exact for float32 x: one above the key of the largest float32 that is not above `t`."""
    with np.errstate(over="ignore", under="ignore"):
        rounded = np.asarray(thresholds, np.float64).astype(np.float32)
    keys = sort_key(rounded)
    return _all_right_at_nan(keys + 1 - (rounded.astype(np.float64) > thresholds), thresholds)


def _all_right_at_nan(bounds: NDArray[Any], thresholds: NDArray[Any]) -> NDArray[np.int32]:
    """No number is below NaN: every number goes right, the smallest key included."""
    return np.where(np.isnan(thresholds), np.int32(-(2**31) + 1), bounds).astype(np.int32)
