"""Resizing: two sums of weighted rows, in float32, in a fixed order, so that every machine gets the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.images.filters import Taps

_BLOCK = 1 << 15  # values that are summed at a time, so that they stay in the cache


def resize(pixels: NDArray[Any], rows: Taps, columns: Taps) -> NDArray[np.float32]:
    """The image [h, w, c] of uint8 or float32 at the places of the taps: float32 [c, rows, columns]."""
    # Whole rows are gathered much faster than scattered pixels, so each sum leaves columns as rows for the next.
    return _sum_and_turn(_sum_and_turn(pixels, rows), columns)


def _sum_and_turn(source: NDArray[Any], taps: Taps) -> NDArray[np.float32]:
    """Sums along axis 0 of [n, a, b], as float32 [a, b, taps]."""
    count, (first, second) = taps.indices.shape[1], source.shape[1:]
    flat = source.reshape(len(source), first * second)
    turned = np.empty((first, second, count), np.float32)
    step = max(1, _BLOCK // flat.shape[1])
    for start in range(0, count, step):
        block = _blend(flat, taps.part(start, step))
        turned[:, :, start : start + step] = block.reshape(-1, first, second).transpose(1, 2, 0)
    return turned


def _blend(source: NDArray[Any], taps: Taps) -> NDArray[np.float32]:
    total: NDArray[np.float32] = source[taps.indices[0]] * taps.weights[0][:, None]
    for index, weight in zip(taps.indices[1:], taps.weights[1:], strict=True):
        total += source[index] * weight[:, None]
    return total
