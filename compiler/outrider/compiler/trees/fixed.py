"""Leaf values as integers: sums of integers are exact in any order, and so the same for every batch and on every CPU.

A value `v` becomes `round(v * 2^exponent)`, with the exponent so chosen that no sum of a forest leaves 32 bits. What is
lost is half a unit a tree, which is less than float32 sums lose: with S the largest size that a sum can reach, n trees
lose at most n * S * 2^-32, where adding in float32 loses up to n * S * 2^-25.

Where the source adds in double and that could be seen in its results, values are *wide*: 24 bits more, added apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.forest import Forest

LOW_BITS = 24  # of the second word of a wide value
_BITS = 31
_SEEN_RELATIVE, _SEEN = 9e-6, 2e-7  # errors of a sum that results within 1e-6 + 1e-5 * |value| do not show


@dataclass(frozen=True)
class FixedPoint:
    """How a forest's leaf values are held: a unit is `2^-exponent`; `wide`: as two words, see `encode`."""

    exponent: int
    wide: bool

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


def fixed_point(forest: Forest) -> FixedPoint:
    """The representation for a forest."""
    largest = np.zeros(forest.outputs)
    for tree in forest.trees:
        sizes = np.abs(tree.values).max(axis=0)
        if tree.output is None:
            largest += sizes
        else:
            largest[tree.output] += sizes[0]
    most, trees = float(largest.max()), len(forest.trees)
    # One unit a tree is kept free for what rounding adds.
    exponent = int(np.floor(np.log2(((1 << _BITS) - 1 - trees) / most))) if most > 0 else 0
    exponent = min(exponent, 1000)  # leaf values below 1e-290 are zero
    return FixedPoint(exponent, wide=_is_seen(forest, exponent, trees))


def _is_seen(forest: Forest, exponent: int, trees: int) -> bool:
    """Whether the rounding of values could show in results: never where the source itself adds in float32."""
    if forest.precision == "float32":
        return False
    error = trees * float(np.ldexp(0.5, -exponent))
    if forest.divisor is not None:
        error /= float(forest.divisor.min())
    match forest.transform:
        case "sigmoid" | "softmax" | "exponential":
            return error * forest.scale > _SEEN_RELATIVE
        case "exponential_ratio" | "isolation":
            return error / forest.scale > _SEEN_RELATIVE
        case _:
            return error > _SEEN
