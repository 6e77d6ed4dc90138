"""Leaf values as integers: sums of integers are exact in any order, and so the same for every batch and on every CPU.

A value `v` becomes `round(v * 2^exponent)`, with the exponent so chosen that no sum of a forest leaves 32 bits. What is
lost is up to half a unit a tree. Where the largest sum is far larger than the results that matter, that could be seen
(in a regression of prices, in targets of unlike scale); then values are *wide*: 24 bits more, added apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.forest import Forest, once_a_forest

LOW_BITS = 24  # of the second word of a wide value
_BITS = 31
_MOST_EXPONENT = 1000  # leaf values below 1e-290 are zero
# Errors of a sum that results within 1e-6 + 1e-5 * |value| do not show, with room for what the source rounds itself.
_SEEN = {"float32": 5e-7, "float64": 2e-7}
_SEEN_BY_SIGMOID, _SEEN_RELATIVE = 1.6e-5, 9e-6
_SPREAD = 0.29  # standard deviation of a rounding to integers
_SURE = 5.0  # standard deviations


@dataclass(frozen=True)
class FixedPoint:
    """How a forest's leaf values are held: a unit is `2^-exponent`; `wide`: as two words, see `encode`.

    `fits`: nothing is lost that could be seen; not so for sums that 55 bits are too few for.
    """

    exponent: int
    wide: bool
    fits: bool = True

    @property
    def unit(self) -> float:
        """What 1 stands for in the first word."""
        return float(np.ldexp(1.0, -self.exponent))

    def encode(self, values: NDArray[np.float64]) -> NDArray[np.int32]:
        """Two words [2, *values.shape]: the value is `first + second * 2^-24` units.

        The second is 0 to 2^24 - 1, and 0 where values are not wide.
        """
        scaled = np.ldexp(values, self.exponent)
        if not self.wide:
            return np.stack([np.round(scaled), np.zeros_like(scaled)]).astype(np.int32)
        first = np.floor(scaled)
        second = np.round(np.ldexp(scaled - first, LOW_BITS))
        carry = second == 1 << LOW_BITS
        return np.stack([first + carry, np.where(carry, 0, second)]).astype(np.int32)


@once_a_forest
def fixed_point(forest: Forest) -> FixedPoint:
    """The representation for a forest."""
    largest = np.zeros(forest.outputs)
    with np.errstate(over="ignore"):
        for tree in forest.trees:
            sizes = np.abs(tree.values).max(axis=0)
            if tree.output is None:
                largest += sizes
            else:
                largest[tree.output] += sizes[0]
    most = float(largest.max())
    if not np.isfinite(most):
        return FixedPoint(0, wide=True, fits=False)
    # One unit a tree is kept free for what rounding adds.
    exponent = min(_floor_log2((1 << _BITS) - 1 - len(forest.trees), most), _MOST_EXPONENT) if most > 0 else 0
    wide = _is_seen(forest, exponent)
    return FixedPoint(exponent, wide, fits=not (wide and _is_seen(forest, exponent + LOW_BITS)))


def why_not(forest: Forest, *, wide: bool) -> str | None:
    """Why a kernel cannot add the forest's values as integers, in words; `wide`: it takes values of two words."""
    fixed = fixed_point(forest)
    if not fixed.fits:
        return f"its sums need more than {_BITS + LOW_BITS} bits"
    return f"its sums need more than {_BITS + 1} bits" if fixed.wide and not wide else None


def _floor_log2(numerator: float, denominator: float) -> int:
    """The largest k at which denominator * 2^k is not above the numerator, of positive numbers of any size."""
    (above, exponent), (below, other) = np.frexp(numerator), np.frexp(denominator)
    return int(exponent) - int(other) - (1 if above < below else 0)


def _is_seen(forest: Forest, exponent: int) -> bool:
    """Whether the rounding of values to a unit of 2^-exponent could show in results.

    A source that adds in double is held to the worst case. One that adds in float32 rounds at random itself, so
    here, too, it suffices that what rounding adds up to is all but certain not to be seen.
    """
    trees, unit = len(forest.trees), float(np.ldexp(1.0, -exponent))
    if all((np.ldexp(tree.values, exponent) % 1.0 == 0.0).all() for tree in forest.trees):
        return False
    error = unit * (0.5 * trees if forest.precision == "float64" else _SURE * _SPREAD * np.sqrt(trees))
    if forest.divisor is not None:
        error /= float(forest.divisor.min())
    match forest.transform:
        case "sigmoid":
            return bool(error * forest.scale > _SEEN_BY_SIGMOID)
        case "softmax" | "exponential":
            return bool(error * forest.scale > _SEEN_RELATIVE)
        case "exponential_ratio" | "isolation":
            return bool(error / forest.scale > _SEEN_RELATIVE)
        case _:
            return bool(error > _SEEN[forest.precision])
