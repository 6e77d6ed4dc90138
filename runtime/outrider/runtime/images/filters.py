"""Interpolation along one axis: which source pixels make an output pixel, and by which weights.

Output pixel i covers the source from i * s to (i + 1) * s, with s = source length / output length; its centre is
(i + 0.5) * s, and that of source pixel j is j + 0.5 (*half-pixel centres*). Beyond the border nothing is assumed.

- `nearest`: the source pixel that holds the centre.
- `bilinear`: the two source pixels around the centre, by distance; none in between them when shrinking, which aliases.
- `antialias`: a triangle around the centre that reaches max(s, 1) to both sides, cut at the border, of sum 1. The same
  as `bilinear` when enlarging.
- `area`: the mean over the interval that the output pixel covers, fractions of source pixels included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.images.plan import Interpolation

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Taps:
    """`out[i] = sum over t of weights[t, i] * source[indices[t, i]]`; both are [taps, length of the output].

    `indices` is intp, `weights` float32.
    """

    indices: NDArray[np.intp]
    weights: NDArray[np.float32]

    def part(self, start: int, length: int) -> Taps:
        """Those of output pixels `start` to `start + length`."""
        chosen = slice(start, start + length)
        return Taps(self.indices[:, chosen], self.weights[:, chosen])


@lru_cache(maxsize=128)
def make_taps(interpolation: Interpolation, source: int, target: int) -> Taps:
    """The taps from `source` to `target` pixels, both at least 1."""
    indices, weights = _FILTERS[interpolation](source, target)
    used = np.flatnonzero(weights.any(axis=1))
    clipped = np.clip(indices[used], 0, source - 1).astype(np.intp)
    return Taps(clipped, np.ascontiguousarray(weights[used], np.float32))


def _nearest(source: int, target: int) -> tuple[Floats, Floats]:
    return np.floor(_at(target, source, 0.5))[None], np.ones((1, target))


def _bilinear(source: int, target: int) -> tuple[Floats, Floats]:
    centres = np.clip(_at(target, source, 0.5) - 0.5, 0, source - 1)
    first = np.floor(centres)
    share = centres - first
    return np.stack([first, first + 1]), np.stack([1 - share, share])


def _antialias(source: int, target: int) -> tuple[Floats, Floats]:
    reach = max(source / target, 1.0)
    centres = _at(target, source, 0.5)
    indices = _window(np.floor(centres - reach), 2 * reach)
    weights = np.maximum(1 - np.abs(indices + 0.5 - centres) / reach, 0)
    return _normalised(indices, weights, source)


def _area(source: int, target: int) -> tuple[Floats, Floats]:
    starts, ends, length = _at(target, source, 0.0), _at(target, source, 1.0), source / target
    indices = _window(np.floor(starts), length)
    weights = np.minimum(ends, indices + 1) - np.maximum(starts, indices)
    return _normalised(indices, np.where(weights > 1e-9 * length, weights, 0), source)


def _at(target: int, source: int, share: float) -> Floats:
    """Where this share of every output pixel lies in the source; multiplied first, so that whole places are exact."""
    return (np.arange(target) + share) * source / target


def _window(firsts: Floats, length: float) -> Floats:
    """All pixels that an interval of this length may touch, from the first: [taps, outputs]."""
    return firsts + np.arange(int(np.ceil(length)) + 2)[:, None]


def _normalised(indices: Floats, weights: Floats, source: int) -> tuple[Floats, Floats]:
    inside = np.where((indices >= 0) & (indices < source), weights, 0)
    return indices, inside / inside.sum(axis=0)


_FILTERS: dict[Interpolation, Callable[[int, int], tuple[Floats, Floats]]] = {
    "nearest": _nearest,
    "bilinear": _bilinear,
    "antialias": _antialias,
    "area": _area,
}
