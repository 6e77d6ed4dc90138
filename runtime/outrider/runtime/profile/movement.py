"""How far a distribution moves by itself between spans of rows that are in order of time.

A drift test compares the rows since some moment with all of training. Where rows come in order of time, a short
span is not like the whole even when nothing is wrong: it holds few hours of the day, or one season. What the test
must allow for is the largest |F_span - F| over spans of the training rows themselves.

For each scale s (1, 2, 4, ... blocks), spans of s, 1.25 s, 1.5 s and 1.75 s are slid over the rows by a quarter of a
block. Any longer span is a row of spans between s and 2 s, and its F is their mean, so that the largest movement
found bounds, but for the steps, that of *every* span of at least s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CELLS = 4  # steps a block
_DIFFER_SIGMAS = 4.0


def moves(bins: NDArray[np.intp], count: int, cell: int, scales: int) -> list[float]:
    """For each scale, the largest |F_span - F| over all spans of at least so many blocks, less sampling noise.

    `bins` [n]: each row's bin, 0..count-1, in order of time; `cell`: rows a step, a quarter of a block.

    It is 0 where the rows move no more than samples of one distribution do (a chi-square test at 4 standard
    deviations, at every scale). Where they do move, the noise of the maximum, sqrt(2 ln(tries)) standard errors, is
    taken off in quadrature, so that little is lost of a movement well above the noise. A scale for which there are
    too few rows takes the value of the longest one that has enough, or 1 where none has: what is not known is not
    tested.
    """
    if count < 2:
        return [0.0] * scales
    cells = len(bins) // cell
    flat = np.repeat(np.arange(cells), cell) * count + bins[: cells * cell]
    counts = np.bincount(flat, minlength=cells * count).reshape(cells, count)
    known = [scale for scale in range(scales) if cells >= 2 * CELLS << scale]
    if not known:
        return [1.0] * scales
    if not any(_differ(_blocks(counts, CELLS << scale)) for scale in known):
        return [0.0] * scales
    upto = np.concatenate([np.zeros((1, count), np.int64), counts.cumsum(axis=0)]).cumsum(axis=1)[:, :-1]
    overall = upto[-1] / (cells * cell)
    found = [_largest(upto, overall, cell, [(CELLS + part) << scale for part in range(CELLS)]) for scale in known]
    found += [found[-1]] * (scales - len(found))
    # The bound of a short scale holds for longer spans too.
    return [max(found[i:]) for i in range(scales)]


def _largest(upto: NDArray[np.int64], overall: NDArray[np.float64], cell: int, widths: Sequence[int]) -> float:
    """The largest |F_span - F| over spans of these widths in cells and all bin edges, less noise."""
    cells = len(upto) - 1
    largest = 0.0
    for width in widths:
        if width >= cells:
            break
        shares = (upto[width:] - upto[:-width]) / (width * cell)
        tries = 2 * max(cells // width, 1) * len(overall)
        noise = 2 * math.log(tries) * overall * (1 - overall) / (width * cell)
        largest = max(largest, float(np.max((shares - overall) ** 2 - noise)))
    return min(math.sqrt(largest), 1.0)


def _blocks(counts: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Counts of the whole blocks of `width` cells."""
    whole = len(counts) // width
    blocks: NDArray[np.int64] = counts[: whole * width].reshape(whole, width, -1).sum(axis=1)
    return blocks


def _differ(table: NDArray[np.int64]) -> bool:
    """Whether the rows of a contingency table differ: Pearson's statistic, by Wilson and Hilferty's cube root."""
    table = table[:, table.sum(axis=0) > 0]
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    if freedom == 0:
        return False
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / table.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    scale = 2 / (9 * freedom)
    return bool(((statistic / freedom) ** (1 / 3) - (1 - scale)) / math.sqrt(scale) > _DIFFER_SIGMAS)
